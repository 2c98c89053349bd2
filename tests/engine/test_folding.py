"""Folded weights against the layers that they replace."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from drct.engine.folding import fold_swin, pad_head_inputs, pad_heads
from drct.networks.window_attention import SwinBlock, window_partition, window_reverse


def test_folded_block_equals_block_and_convolution() -> None:
    torch.manual_seed(0)
    block = SwinBlock(12, 2, window=4, shift=0, mlp_ratio=2.0)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    adjust = nn.Conv2d(12, 5, 1)
    x = torch.randn(1, 4, 8, 12)
    with torch.no_grad():
        expected = 0.2 * adjust(block(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    folded = fold_swin(block, adjust, 0.2)

    def apply(layer: object, rows: torch.Tensor) -> torch.Tensor:
        return F.linear(rows, layer.weight, layer.bias)

    def norm(values: object, rows: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(rows, (12,), values.weight, values.bias, values.eps)

    padded_qkv, padded_proj = (
        pad_heads(folded.qkv, folded.heads, folded.head_dim, 8),
        pad_head_inputs(folded.proj, folded.heads, folded.head_dim, 8),
    )
    for qkv, proj, head_dim in ((folded.qkv, folded.proj, 6), (padded_qkv, padded_proj, 8)):
        windows = window_partition(norm(folded.norm1, x), 4)
        q, k, v = apply(qkv, windows).view(2, 16, 3, 2, head_dim).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) + folded.position_bias
        attended = (scores.softmax(-1) @ v).transpose(1, 2).reshape(*windows.shape[:-1], 2 * head_dim)
        u = x + window_reverse(apply(proj, attended), 4)
        h = F.gelu(apply(folded.fc1, norm(folded.norm2, u)))
        y = apply(folded.from_residual, u) + apply(folded.from_hidden, h)
        assert (y - expected).abs().max() < 1e-5


def test_multiply_adds_of_a_block() -> None:
    folded = fold_swin(SwinBlock(12, 2, window=4, shift=0, mlp_ratio=2.0), nn.Conv2d(12, 5, 1))
    assert folded.multiply_adds() == 36 * 12 + 12 * 12 + 24 * 12 + 5 * 12 + 5 * 24 + 2 * 16 * 12

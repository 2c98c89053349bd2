"""Folded weights against the layers that they replace."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from drct.engine.cpu.tail import Upsampler, chain
from drct.engine.folding import fold_swin, fold_upsampler, pad_head_inputs, pad_heads
from drct.networks.base import Upsample
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


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_folded_upsampler_equals_its_layers_at_the_borders_too(scale: int) -> None:
    torch.manual_seed(0)
    layers = [*Upsample(scale, 8), nn.Conv2d(8, 3, 3, 1, 1)]
    folded = fold_upsampler(layers, 2.0)
    assert folded is not None
    with torch.no_grad():
        for height, width in ((3, 3), (4, 9), (12, 5)):
            x = torch.randn(2, 8, height, width)
            assert (Upsampler(folded, None)(x) - chain(layers, 2.0)(x)).abs().max() < 1e-5


def test_upsampler_is_folded_only_where_that_saves_work() -> None:
    folded = fold_upsampler([*Upsample(4, 64), nn.Conv2d(64, 3, 3, 1, 1)])
    assert folded is not None
    assert folded.saved_multiply_adds == 64 * 256 * 9 + 4 * 64 * 256 * 9 + 16 * 64 * 3 * 9 - 64 * 48 * 25
    assert fold_upsampler([nn.Conv2d(64, 3, 3, 1, 1)]) is None
    assert fold_upsampler([nn.Conv2d(8, 32, 3, 1, 1), nn.LeakyReLU(0.2), nn.Conv2d(32, 3, 3, 1, 1)]) is None
    assert fold_upsampler([nn.Conv2d(64, 64, 3, 1, 1) for _ in range(3)]) is None  # looks further

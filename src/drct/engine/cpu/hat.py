"""HAT on the CPU: features in raster order, because every hybrid block convolves them beside its attention."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drct.engine.cpu.blocks import Layer, OverlapLayer, SwinLayer, swin_layer
from drct.engine.cpu.body import BodyProgram
from drct.engine.cpu.layout import overlap_order
from drct.engine.cpu.linear import Conv2d
from drct.engine.cpu.tail import Step, convolution
from drct.engine.cpu.workers import for_each, split
from drct.engine.devices import DTYPES
from drct.engine.folding import fold_overlap, fold_swin
from drct.networks.hat import CAB, HAB, HAT, HybridBlocks


class ChannelAttentionBlock:
    """Two 3x3 convolutions through a bottleneck, then channel attention.

    Args:
        block: the block.
        factor: of the result.
        dtype: type of the convolutions; channel attention itself is float32.
    """

    def __init__(self, block: CAB, factor: float, dtype: torch.dtype, device: torch.device | None = None) -> None:
        compress, _, expand, attention = block.cab.children()
        assert isinstance(compress, nn.Conv2d)
        assert isinstance(expand, nn.Conv2d)
        self.compress, self.expand = Conv2d(compress, device=device, dtype=dtype), Conv2d(expand, device=device, dtype=dtype)
        squeeze, excite = (layer for layer in attention.get_submodule("attention").children() if isinstance(layer, nn.Conv2d))
        self.squeeze, self.excite = Conv2d(squeeze, device=device), Conv2d(excite, device=device)
        self.factor = factor
        self.products = [(9 * conv.in_channels, conv.out_channels) for conv in (compress, expand)]

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, C, H, W)`` of ``dtype`` to the convolved map in ``dtype`` and each channel's factor ``(B, C, 1, 1)``, float32."""
        y = self.expand(F.gelu(self.compress(x)))
        means = y.mean((2, 3), keepdim=True, dtype=torch.float32)
        return y, self.excite(self.squeeze(means).relu_()).sigmoid_().mul_(self.factor)


class HATProgram(BodyProgram):
    """The program; see :mod:`drct.engine.cpu.body`."""

    raster = True

    def __init__(self, network: HAT, precision: str) -> None:
        super().__init__(network, precision)
        dtype = DTYPES[precision]
        self.border = (network.options.overlap_window - self.window) // 2
        self.overlap_order = functools.lru_cache(maxsize=8)(overlap_order)
        self.groups: list[tuple[list[tuple[SwinLayer, ChannelAttentionBlock]], OverlapLayer, Step | None]] = []
        for group in network.layers:
            inner = group.get_submodule("residual_group")
            assert isinstance(inner, HybridBlocks)
            hybrids = []
            for block in inner.blocks:
                assert isinstance(block, HAB)
                hybrids.append(
                    (swin_layer(fold_swin(block), dtype), ChannelAttentionBlock(block.conv_block, block.conv_scale, dtype))
                )
            overlap = OverlapLayer(fold_overlap(inner.overlap_attn), dtype)
            self.groups.append((hybrids, overlap, convolution(group.get_submodule("conv"))))
        self.layers: list[Layer] = [
            layer for hybrids, overlap, _ in self.groups for layer in (*(layer for layer, _ in hybrids), overlap)
        ]
        self.folded_multiply_adds = sum(layer.multiply_adds for layer in self.layers)
        self.compressed = network.options.embed_dim // network.options.compress_ratio

    def body(self, tokens: Tensor, size: tuple[int, int, int]) -> Tensor:
        tokens = tokens.clone()
        for hybrids, overlap, conv in self.groups:
            x = tokens.clone()
            for layer, channels in hybrids:
                normed = layer.norm1(x)
                convolved, factors = channels(self.to_map(normed, size))
                self.to_map(x, size).addcmul_(convolved, factors)
                del convolved
                self.step(layer, x, x, size, normed=normed)
                del normed
            self.overlap(overlap, x, size)
            tokens += x if conv is None else self.to_tokens(conv(self.to_map(x, size)))
        return tokens

    def overlap(self, layer: OverlapLayer, x: Tensor, size: tuple[int, int, int]) -> None:
        """Run an overlapping cross-attention block on rows ``x`` in place."""
        kv = x.new_zeros(len(x) + 1, layer.kv.out_dim, dtype=layer.dtype)  # the last row is what lies beyond the map

        def project(bounds: tuple[int, int]) -> None:
            rows = slice(*bounds)
            kv[rows] = layer.keys_and_values(x[rows])

        n, windows = self.window**2, layer.chunk
        for_each(project, split(len(x), windows * n))
        rows_of, keys_of = self.order(*size, self.window, 0, True).tokens, self.overlap_order(*size, self.window, self.border)
        assert rows_of is not None

        def attend(bounds: tuple[int, int]) -> None:
            start, end = bounds
            index = rows_of[start * n : end * n]
            x.index_copy_(0, index, layer(x.index_select(0, index), kv, keys_of[start:end]))

        for_each(attend, split(len(x) // n, windows))

    def body_width(self) -> int:
        per_float = 2 if self.precision == "fp32" else 1  # in half floats
        hybrid = self.dim + per_float * (2 * self.dim + 2 * self.compressed) // 2
        overlap = self.dim + per_float * self.groups[0][1].kv.out_dim // 2
        return 2 * self.dim + max(hybrid, overlap, 2 * self.dim)

"""HAT on a GPU: the convolutions beside the attention are left to the vendor's library."""

from __future__ import annotations

import torch
from torch import Tensor

from drct.engine.cpu.hat import ChannelAttentionBlock
from drct.engine.cpu.tail import Step, convolution
from drct.engine.devices import DTYPES
from drct.engine.folding import fold_overlap, fold_swin
from drct.engine.gpu.blocks import GPULayer
from drct.engine.gpu.body import GPUBodyProgram, as_map, convolve
from drct.networks.hat import HAB, HAT, HybridBlocks


class GPUHATProgram(GPUBodyProgram):
    """The program; see :mod:`drct.engine.gpu.body`."""

    def __init__(self, network: HAT, device: torch.device, precision: str, graphs: bool = True) -> None:
        super().__init__(network, device, precision, graphs)
        dtype = DTYPES[precision]
        self.groups: list[tuple[list[tuple[GPULayer, ChannelAttentionBlock]], GPULayer, Step | None]] = []
        for group in network.layers:
            inner = group.get_submodule("residual_group")
            assert isinstance(inner, HybridBlocks)
            hybrids = []
            for block in inner.blocks:
                assert isinstance(block, HAB)
                channels = ChannelAttentionBlock(block.conv_block, block.conv_scale, dtype, device)
                hybrids.append((GPULayer(fold_swin(block), device, dtype), channels))
            overlap = GPULayer(fold_overlap(inner.overlap_attn), device, dtype)
            self.groups.append((hybrids, overlap, convolution(group.get_submodule("conv"), device)))
        self.folded_multiply_adds = sum(
            layer.multiply_adds for hybrids, overlap, _ in self.groups for layer in (*(layer for layer, _ in hybrids), overlap)
        )
        self.compressed = network.options.embed_dim // network.options.compress_ratio

    def body(self, rows: Tensor, size: tuple[int, int, int]) -> Tensor:
        rows = rows.clone()
        for hybrids, overlap, conv in self.groups:
            x = rows.clone()
            for layer, channels in hybrids:
                normed = layer.norm1(x)
                convolved, factors = channels(as_map(normed[:, : layer.dim], size))
                as_map(x, size).addcmul_(convolved, factors)
                del convolved
                layer.update(x, size, normed)
            overlap.update(x, size)
            rows += convolve(conv, x, size)
        return rows

    def body_bytes(self) -> int:
        return 4 * 4 * self.dim + 2 * (7 * self.dim + self.compressed)

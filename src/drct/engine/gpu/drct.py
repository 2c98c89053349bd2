"""DRCT on a GPU: the dense features of a group lie in one float32 buffer that grows by columns."""

from __future__ import annotations

import torch
from torch import Tensor

from drct.engine.devices import DTYPES
from drct.engine.folding import fold_group
from drct.engine.gpu import kernels
from drct.engine.gpu.blocks import GPULayer
from drct.engine.gpu.body import GPUBodyProgram
from drct.networks.drct import BLOCKS, DRCT, RDG


class GPUDRCTProgram(GPUBodyProgram):
    """The program; see :mod:`drct.engine.gpu.body`."""

    def __init__(self, network: DRCT, device: torch.device, precision: str, graphs: bool = True) -> None:
        super().__init__(network, device, precision, graphs)
        self.width = network.options.block_dims()[-1]
        self.groups: list[list[GPULayer]] = []
        for group in network.layers:
            assert isinstance(group, RDG)
            self.groups.append([GPULayer(block, device, DTYPES[precision]) for block in fold_group(group)])
        self.folded_multiply_adds = sum(layer.multiply_adds for group in self.groups for layer in group)

    def body(self, rows: Tensor, size: tuple[int, int, int]) -> Tensor:
        dense = rows.new_empty(len(rows), self.width)
        dense[:, : self.dim] = rows
        del rows
        for group in self.groups:
            for j, layer in enumerate(group):
                y = layer.folded(dense[:, : layer.dim], size)
                if j < BLOCKS - 1:
                    kernels.leaky_relu_into(y, dense[:, layer.dim : layer.dim + layer.out_dim], 0.2)
                else:
                    kernels.add_into(y, dense[:, : self.dim])
        return dense[:, : self.dim]

    def body_bytes(self) -> int:
        # shallow, first and dense features, then the larger of queries, keys, values and what attention reads and writes
        return 4 * (self.width + 2 * self.dim) + 2 * 6 * self.width

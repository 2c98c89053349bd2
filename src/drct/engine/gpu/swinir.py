"""SwinIR on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from drct.engine.cpu.tail import convolution
from drct.engine.devices import DTYPES
from drct.engine.folding import fold_swin
from drct.engine.gpu.blocks import GPULayer
from drct.engine.gpu.body import GPUBodyProgram, convolve
from drct.networks.swinir import SwinIR


class GPUSwinIRProgram(GPUBodyProgram):
    """The program; see :mod:`drct.engine.gpu.body`."""

    def __init__(self, network: SwinIR, device: torch.device, precision: str, graphs: bool = True) -> None:
        super().__init__(network, device, precision, graphs)
        self.groups = [
            (
                [
                    GPULayer(fold_swin(block), device, DTYPES[precision])
                    for block in group.get_submodule("residual_group.blocks").children()
                ],
                convolution(group.get_submodule("conv"), device),
            )
            for group in network.layers
        ]
        self.folded_multiply_adds = sum(layer.multiply_adds for layers, _ in self.groups for layer in layers)

    def body(self, rows: Tensor, size: tuple[int, int, int]) -> Tensor:
        rows = rows.clone()
        for layers, conv in self.groups:
            x = rows.clone()
            for layer in layers:
                layer.update(x, size)
            rows += convolve(conv, x, size)
        return rows

    def body_bytes(self) -> int:
        return 4 * 4 * self.dim + 2 * 6 * self.dim

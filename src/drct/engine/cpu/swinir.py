"""SwinIR on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from drct.engine.cpu.blocks import swin_layer
from drct.engine.cpu.body import BodyProgram
from drct.engine.cpu.tail import convolution
from drct.engine.devices import DTYPES
from drct.engine.folding import fold_swin
from drct.networks.swinir import SwinIR


class SwinIRProgram(BodyProgram):
    """The program; see :mod:`drct.engine.cpu.body`."""

    def __init__(self, network: SwinIR, precision: str) -> None:
        super().__init__(network, precision)
        self.groups = [
            (
                [
                    swin_layer(fold_swin(block), DTYPES[precision])
                    for block in group.get_submodule("residual_group.blocks").children()
                ],
                convolution(group.get_submodule("conv")),
            )
            for group in network.layers
        ]
        self.layers = [layer for layers, _ in self.groups for layer in layers]
        self.folded_multiply_adds = sum(layer.multiply_adds for layer in self.layers)

    def body(self, tokens: Tensor, size: tuple[int, int, int]) -> Tensor:
        tokens = tokens.clone(memory_format=torch.contiguous_format)
        for layers, conv in self.groups:
            x = tokens.clone()
            for layer in layers:
                self.step(layer, x, x, size)
            assert conv is not None
            tokens += self.to_tokens(conv(self.to_map(x, size)))
        return tokens

    def body_width(self) -> int:
        return 4 * self.dim

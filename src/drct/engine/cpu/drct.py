"""DRCT on the CPU: the dense features of a group lie in one buffer that grows by columns."""

from __future__ import annotations

from torch import Tensor

from drct.engine.cpu.blocks import SwinLayer, swin_layer
from drct.engine.cpu.body import BodyProgram
from drct.engine.devices import DTYPES
from drct.engine.folding import fold_group
from drct.networks.drct import BLOCKS, DRCT, RDG


class DRCTProgram(BodyProgram):
    """The program; see :mod:`drct.engine.cpu.body`."""

    def __init__(self, network: DRCT, precision: str) -> None:
        super().__init__(network, precision)
        self.width = network.options.block_dims()[-1]
        self.groups: list[list[SwinLayer]] = []
        for group in network.layers:
            assert isinstance(group, RDG)
            self.groups.append(
                [
                    swin_layer(block, DTYPES[precision], slope=0.2 if j < BLOCKS - 1 else None)
                    for j, block in enumerate(fold_group(group))
                ]
            )
        self.layers = [layer for group in self.groups for layer in group]
        self.folded_multiply_adds = sum(layer.multiply_adds for layer in self.layers)

    def body(self, tokens: Tensor, size: tuple[int, int, int]) -> Tensor:
        dense = tokens.new_empty(len(tokens), self.width)
        dense[:, : self.dim] = tokens
        del tokens
        for group in self.groups:
            for layer in group[:-1]:
                self.step(layer, dense[:, : layer.dim], dense[:, layer.dim : layer.dim + layer.out_dim], size)
            self.step(group[-1], dense, dense[:, : self.dim], size, add=True)
        return dense[:, : self.dim]

    def body_width(self) -> int:
        return self.width + self.dim

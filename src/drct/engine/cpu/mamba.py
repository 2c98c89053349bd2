"""MambaDRCT on the CPU: linear layers folded and packed as for DRCT, the four scans of a block in one kernel.

Rows of pixels stay in raster order from beginning to end; between a block's linear layers, which work through chunks of rows, stand
only the depthwise convolution and the scan, which need the whole map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drct.engine import native
from drct.engine.cpu.blocks import LayerNorm
from drct.engine.cpu.body import BodyProgram
from drct.engine.cpu.linear import Linear, packing_available
from drct.engine.cpu.workers import for_each, split
from drct.engine.devices import DTYPES
from drct.engine.folding import Affine, Norm, affine, fold_after
from drct.networks.drct import BLOCKS
from drct.networks.mamba_drct import DIRECTIONS, SS2D, MambaBlock, MambaDRCT, MambaRDG

CHUNK_TOKENS = 1024  # rows that one thread works on at once


def why_not(network: MambaDRCT) -> str | None:
    """None when :class:`MambaDRCTProgram` can run a network here, else the reason why not."""
    if network.options.d_state != native.D_STATE:
        return f"the native selective scan has states of {native.D_STATE} numbers, not {network.options.d_state}"
    return native.scan_available()


class Scan:
    """SS2D between its input and output projection."""

    def __init__(self, block: SS2D, dtype: torch.dtype) -> None:
        self.dim, self.dtype = block.d_inner, dtype
        self.conv = block.conv2d.weight.detach().clone(memory_format=torch.channels_last)
        self.conv_bias = None if block.conv2d.bias is None else block.conv2d.bias.detach().clone()
        x_proj = block.x_proj_weight.detach().flatten(0, 1).clone()
        self.x_proj = Linear(Affine(x_proj, x_proj.new_zeros(len(x_proj))), dtype)
        self.steps = block.dt_projs_weight.detach().transpose(1, 2).clone(memory_format=torch.contiguous_format)
        self.steps_bias = block.dt_projs_bias.detach().clone()
        a = -torch.exp(block.A_logs.detach().double()).view(DIRECTIONS, block.d_inner, block.d_state)
        self.a = a.transpose(1, 2).float().contiguous()
        self.skip = block.Ds.detach().view(DIRECTIONS, -1).sum(0)

    def __call__(self, x: Tensor, size: tuple[int, int, int]) -> Tensor:
        """``(B * H * W, dim)`` float32 in raster order to the sum of the four scans, same shape."""
        maps = x.view(*size, self.dim).permute(0, 3, 1, 2)
        maps = F.silu(F.conv2d(maps, self.conv, self.conv_bias, padding=1, groups=self.dim), inplace=True)
        u = maps.permute(0, 2, 3, 1).contiguous()
        rows = u.view(-1, self.dim)
        low = rows.new_empty(len(rows), self.x_proj.out_dim)

        def chunk(bounds: tuple[int, int]) -> None:
            part = slice(*bounds)
            low[part] = self.x_proj(rows[part].to(self.dtype))

        for_each(chunk, split(len(rows), CHUNK_TOKENS))
        low = low.view(*size, DIRECTIONS, -1)
        return native.ss2d_scan(u, low, self.steps, self.steps_bias, self.a, self.skip).view(-1, self.dim)


class MambaLayer:
    """A Mamba block with the 1x1 convolution after it folded in (:func:`drct.engine.folding.fold_after`).

    Args:
        block: of the network.
        after: the 1x1 convolution.
        factor: on its output.
        dtype: type of the matrix products; everything between them is float32.
        slope: of the LeakyReLU after it; None for none.
    """

    def __init__(self, block: MambaBlock, after: nn.Module, factor: float, dtype: torch.dtype, slope: float | None) -> None:
        norms = [Norm.of(norm) for norm in (block.norm1, block.ss2d.out_norm, block.norm2)]
        self.norm1, self.out_norm, self.norm2 = (
            LayerNorm(norm, kind) for norm, kind in zip(norms, (dtype, torch.float32, dtype), strict=True) if norm is not None
        )
        from_residual, from_hidden = fold_after(block.mlp.fc2, after, factor)
        assert from_residual is not None
        layers = [affine(block.ss2d.in_proj), affine(block.ss2d.out_proj), affine(block.mlp.fc1), from_residual, from_hidden]
        self.in_proj, self.out_proj, self.fc1, self.from_residual, self.from_hidden = (Linear(x, dtype) for x in layers)
        self.scan, self.dtype, self.slope = Scan(block.ss2d, dtype), dtype, slope
        self.dim, self.inner, self.out_dim = block.ss2d.in_proj.in_features, block.ss2d.d_inner, len(from_hidden.weight)
        self.products = [(x.weight.shape[1], x.weight.shape[0]) for x in layers]
        self.products.insert(1, (self.inner, self.scan.x_proj.out_dim))
        rank = block.ss2d.dt_rank
        # with the 3 x 3 convolution and the step sizes of the four directions; the recurrence itself is no product
        self.multiply_adds = sum(k * n for k, n in self.products) + self.inner * (9 + DIRECTIONS * rank)
        self.floats_per_token = 3 * self.dim + 2 * self.inner + self.fc1.out_dim

    def room(self, tokens: int) -> int:
        """Floats that a thread holds beside the features, where these rows are all there are."""
        return min(tokens, CHUNK_TOKENS) * self.floats_per_token

    def before(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows ``(n, dim)`` to what is scanned and the gate, ``(n, inner)`` float32 each."""
        made = self.in_proj(self.norm1(x)).float()
        return made[:, : self.inner], F.silu(made[:, self.inner :])

    def after(self, x: Tensor, scanned: Tensor, gate: Tensor) -> Tensor:
        """The block's input, what was scanned and the gate to ``(n, out_dim)`` float32."""
        z = self.out_norm(scanned).mul_(gate)
        if self.dtype == torch.float32:
            u = self.out_proj.add(z, x)
            y = self.from_hidden.add(self.fc1.gelu(self.norm2(u)), self.from_residual(u))
        else:
            u = x + self.out_proj(z.to(self.dtype))
            y = self.from_hidden.add(self.fc1.gelu(self.norm2(u)), self.from_residual(u.to(self.dtype))).float()
        return y if self.slope is None else F.leaky_relu_(y, self.slope)


class MambaDRCTProgram(BodyProgram):
    """The program; see the head of this file and :mod:`drct.engine.cpu.body`."""

    layers: list[MambaLayer]  # type: ignore[assignment]
    raster = True

    def __init__(self, network: MambaDRCT, precision: str) -> None:
        super().__init__(network, precision)
        self.width = network.options.block_dims()[-1]
        self.groups = [self._group(group, DTYPES[precision]) for group in network.layers]
        self.layers = [layer for group in self.groups for layer in group]
        self.folded_multiply_adds = sum(layer.multiply_adds for layer in self.layers)

    @staticmethod
    def _group(group: nn.Module, dtype: torch.dtype) -> list[MambaLayer]:
        assert isinstance(group, MambaRDG)
        layers = []
        for j in range(BLOCKS):
            block, adjust = group.get_submodule(f"mamba{j + 1}"), group.get_submodule(f"adjust{j + 1}")
            assert isinstance(block, MambaBlock)
            last = j == BLOCKS - 1
            layers.append(MambaLayer(block, adjust, 0.2 if last else 1.0, dtype, None if last else 0.2))
        return layers

    def body(self, tokens: Tensor, size: tuple[int, int, int]) -> Tensor:
        dense = tokens.new_empty(len(tokens), self.width)
        dense[:, : self.dim] = tokens
        del tokens
        for group in self.groups:
            for layer in group[:-1]:
                self.scan_step(layer, dense[:, : layer.dim], dense[:, layer.dim : layer.dim + layer.out_dim], size)
            self.scan_step(group[-1], dense, dense[:, : self.dim], size, add=True)
        return dense[:, : self.dim].contiguous()

    def scan_step(self, layer: MambaLayer, source: Tensor, target: Tensor, size: tuple[int, int, int], add: bool = False) -> None:
        """Run a layer on all rows; arguments as :meth:`step`."""
        rows, parts = len(source), split(len(source), CHUNK_TOKENS)
        inner, gate = source.new_empty(rows, layer.inner), source.new_empty(rows, layer.inner)

        def before(bounds: tuple[int, int]) -> None:
            part = slice(*bounds)
            inner[part], gate[part] = layer.before(source[part].contiguous())

        def after(bounds: tuple[int, int]) -> None:
            part = slice(*bounds)
            y = layer.after(source[part].contiguous(), scanned[part], gate[part])
            if add:
                target[part] += y
            else:
                target[part] = y

        for_each(before, parts)
        scanned = layer.scan(inner, size)
        for_each(after, parts)

    def describe(self) -> list[str]:
        reason = packing_available()
        return [
            f"{self.architecture} on cpu in {self.precision}, {torch.get_num_threads()} threads",
            "linear layers: folded, " + ("packed by oneDNN" if reason is None else f"plain torch ({reason})"),
            f"native selective scan in {len(self.layers)} blocks, step sizes made inside",
        ]

    def body_width(self) -> int:
        # a block holds what is scanned, the gate, what the convolution made and the numbers of x_proj, or the result of the scan
        widest = max(4 * layer.inner + layer.scan.x_proj.out_dim for layer in self.layers)
        return self.width + widest

"""A folded Swin block as a sequence of packed operations on a chunk of windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from drct.engine.cpu.attention import choose_attention
from drct.engine.cpu.linear import Linear
from drct.engine.folding import FoldedSwin, Norm


class LayerNorm:
    """LayerNorm of float32 rows, returned in the type of the matrix products."""

    def __init__(self, norm: Norm, dtype: torch.dtype) -> None:
        self.norm, self.dtype = norm, dtype

    def __call__(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, x.shape[-1:], self.norm.weight, self.norm.bias, self.norm.eps)
        return y if self.dtype == torch.float32 else y.to(self.dtype)


class SwinLayer:
    """A Swin block with the layer folded into it (see :class:`drct.engine.folding.FoldedSwin`), and a LeakyReLU after that.

    Args:
        block: folded weights.
        dtype: type of the matrix products; everything between them is float32.
        slope: of the LeakyReLU; None for none.
    """

    def __init__(self, block: FoldedSwin, dtype: torch.dtype, slope: float | None = None) -> None:
        self.attention = choose_attention(block, dtype)
        self.multiply_adds, self.products = block.multiply_adds(), block.products()
        self.dtype, self.slope = dtype, slope
        self.dim, self.out_dim, self.shift, self.window = block.dim, block.out_dim, block.shift, block.window
        self.norm1, self.norm2 = LayerNorm(block.norm1, dtype), LayerNorm(block.norm2, dtype)
        self.qkv, self.proj = Linear(self.attention.qkv, dtype), Linear(self.attention.proj, dtype)
        self.fc1 = Linear(block.fc1, dtype)
        self.from_residual = None if block.from_residual is None else Linear(block.from_residual, dtype)
        self.from_hidden = Linear(block.from_hidden, dtype)

    @property
    def floats_per_token(self) -> int:
        """Memory that a call needs for each row, in floats."""
        return 3 * self.dim + self.qkv.out_dim + self.fc1.out_dim

    def __call__(self, x: Tensor, kinds: Sequence[tuple[int, int, int]]) -> Tensor:
        """Rows of whole windows, ``(tokens, dim)`` to ``(tokens, out_dim)``, float32."""
        attended = self.attention(self.qkv(self.norm1(x)), kinds)
        if self.dtype == torch.float32:
            u = self.proj.add(attended, x)
            h = self.fc1.gelu(self.norm2(u))
            y = self.from_hidden.add(h, u if self.from_residual is None else self.from_residual(u))
        else:
            u = x + self.proj(attended)
            h = self.fc1.gelu(self.norm2(u))
            if self.from_residual is None:
                y = u + self.from_hidden(h)
            else:
                y = self.from_hidden.add(h, self.from_residual(u.to(self.dtype))).float()
        return y if self.slope is None else F.leaky_relu_(y, self.slope)

"""Folded blocks as sequences of packed operations on a chunk of windows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from drct.engine.cpu.attention import Attention, OverlapAttention, choose_attention
from drct.engine.cpu.linear import Linear
from drct.engine.folding import FoldedSwin, Norm


class LayerNorm:
    """LayerNorm of float32 rows, returned in the type of the matrix products."""

    def __init__(self, norm: Norm, dtype: torch.dtype) -> None:
        self.norm, self.dtype = norm, dtype

    def __call__(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, x.shape[-1:], self.norm.weight, self.norm.bias, self.norm.eps)
        return y if self.dtype == torch.float32 else y.to(self.dtype)


class Layer:
    """What follows the attention of a Swin block, with the layer folded into it and a LeakyReLU after that.

    Args:
        block: folded weights, see :class:`drct.engine.folding.FoldedSwin`.
        attention: gives the output projection in its own layout of heads.
        dtype: type of the matrix products; everything between them is float32.
        slope: of the LeakyReLU; None for none.
    """

    def __init__(
        self, block: FoldedSwin, attention: Attention | OverlapAttention, dtype: torch.dtype, slope: float | None = None
    ) -> None:
        self.attention_name = attention.name
        self.multiply_adds, self.products = block.multiply_adds(), block.products()
        self.dtype, self.slope = dtype, slope
        self.dim, self.out_dim, self.shift, self.window = block.dim, block.out_dim, block.shift, block.window
        self.norm1, self.norm2 = LayerNorm(block.norm1, dtype), LayerNorm(block.norm2, dtype)
        self.proj, self.fc1 = Linear(attention.proj, dtype), Linear(block.fc1, dtype)
        self.from_residual = None if block.from_residual is None else Linear(block.from_residual, dtype)
        self.from_hidden = Linear(block.from_hidden, dtype)
        # memory that a call needs for each row, in floats; heads may be padded
        self.floats_per_token = 3 * self.dim + 3 * attention.heads * attention.head_dim + self.fc1.out_dim

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Output projection, residual, second norm, MLP: ``(tokens, dim)`` to ``(tokens, out_dim)``, float32."""
        if self.dtype == torch.float32:
            u = self.proj.add(attended, x)
            h = self.fc1.gelu(self.norm2(u))
            y = self.from_hidden.add(h, u if self.from_residual is None else self.from_residual(u))
        else:
            u = x + self.proj(attended)
            h = self.fc1.gelu(self.norm2(u))
            if self.from_residual is None:
                y = u.add_(self.from_hidden(h))
            else:
                y = self.from_hidden.add(h, self.from_residual(u.to(self.dtype))).float()
        return y if self.slope is None else F.leaky_relu_(y, self.slope)


class SwinLayer(Layer):
    """A whole Swin block; arguments as :class:`Layer`."""

    def __init__(self, block: FoldedSwin, dtype: torch.dtype, slope: float | None = None) -> None:
        self.attention = choose_attention(block, dtype)
        super().__init__(block, self.attention, dtype, slope)
        self.qkv = Linear(self.attention.qkv, dtype)

    def __call__(self, x: Tensor, kinds: Sequence[tuple[int, int, int]], normed: Tensor | None = None) -> Tensor:
        """Rows of whole windows, ``(tokens, dim)`` to ``(tokens, out_dim)``, float32.

        ``normed`` replaces the first norm of ``x``.
        """
        normed = self.norm1(x) if normed is None else normed
        return self.after_attention(x, self.attention(self.qkv(normed), kinds))


class OverlapLayer(Layer):
    """An overlapping cross-attention block: keys and values of all rows first, then windows of queries."""

    def __init__(self, block: FoldedSwin, dtype: torch.dtype) -> None:
        self.attention = OverlapAttention(block, dtype)
        super().__init__(block, self.attention, dtype)
        self.q, self.kv = Linear(self.attention.q, dtype), Linear(self.attention.kv, dtype)

    def keys_and_values(self, x: Tensor) -> Tensor:
        """``(rows, dim)`` to ``(rows, 2 * heads * head_dim)``."""
        return self.kv(self.norm1(x))

    def __call__(self, x: Tensor, kv: Tensor, order: Tensor) -> Tensor:
        """Rows of whole windows, ``(tokens, dim)`` float32 in and out; ``kv`` and ``order`` as in :class:`OverlapAttention`."""
        return self.after_attention(x, self.attention(self.q(self.norm1(x)), kv, order))

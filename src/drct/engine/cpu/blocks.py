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


class SwinAdjust:
    """A Swin block and the layer folded into it (see :class:`drct.engine.folding.FoldedSwin`)."""

    def __init__(self, block: FoldedSwin, dtype: torch.dtype) -> None:
        self.attention = choose_attention(block, dtype)
        self.dtype = dtype
        self.dim, self.out_dim, self.shift, self.window = block.dim, block.out_dim, block.shift, block.window
        self.norm1, self.norm2 = LayerNorm(block.norm1, dtype), LayerNorm(block.norm2, dtype)
        self.qkv, self.proj = Linear(self.attention.qkv, dtype), Linear(self.attention.proj, dtype)
        self.fc1 = Linear(block.fc1, dtype)
        self.from_residual, self.from_hidden = Linear(block.from_residual, dtype), Linear(block.from_hidden, dtype)

    def __call__(self, x: Tensor, kinds: Sequence[tuple[int, int, int]]) -> Tensor:
        """Rows of whole windows, float32 ``(tokens, dim)``, to ``(tokens, out_dim)``; ``x`` is overwritten."""
        attended = self.attention(self.qkv(self.norm1(x)), kinds)
        if self.dtype == torch.float32:
            u = self.proj.add(attended, x)
            v = u
        else:
            u = x.add_(self.proj(attended))
            v = u.to(self.dtype)
        return self.from_hidden.add(self.fc1.gelu(self.norm2(u)), self.from_residual(v))

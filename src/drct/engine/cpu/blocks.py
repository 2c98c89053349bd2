"""Folded blocks: whole ones in a native kernel, or as sequences of packed operations on chunks of many windows."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from drct.engine import native
from drct.engine.cpu.attention import Attention, OverlapAttention, choose_attention, kinds_between
from drct.engine.cpu.layout import WindowOrder
from drct.engine.cpu.linear import Linear
from drct.engine.cpu.workers import split
from drct.engine.folding import FoldedSwin, Norm

CHUNK_TOKENS = 1024  # rows that a chunk has where layers do not choose for themselves
CHUNK_FLOATS = (
    2**22
)  # that a packed layer holds of a chunk: few enough for the last cache, and operators are long enough to be efficient


@dataclasses.dataclass
class Maps:
    """What a Swin layer works on.

    Attributes:
        source: ``(tokens, dim)`` float32 rows in home order; may be columns of a wider buffer.
        target: ``(tokens, out_dim)``, receives the result, or with ``add`` is added to. It may share rows with ``source``: a layer
            reads its rows before it writes the same ones.
        order: of the windows.
        normed: the first norm of ``source`` where it is there already.
    """

    source: Tensor
    target: Tensor
    order: WindowOrder
    add: bool = False
    normed: Tensor | None = None


class LayerNorm:
    """LayerNorm of float32 rows, returned in the type of the matrix products."""

    def __init__(self, norm: Norm, dtype: torch.dtype) -> None:
        self.norm, self.dtype = norm, dtype

    def __call__(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, x.shape[-1:], self.norm.weight, self.norm.bias, self.norm.eps)
        return y if self.dtype == torch.float32 else y.to(self.dtype)


class Layer:
    """What programs ask of every layer of theirs.

    Args:
        block: folded weights, see :class:`drct.engine.folding.FoldedSwin`.
        attention_name: what computes its attention.

    Attributes:
        chunk: windows that it works on at once.
    """

    chunk: int

    def __init__(self, block: FoldedSwin, attention_name: str) -> None:
        self.attention_name = attention_name
        self.multiply_adds, self.products = block.multiply_adds(), block.products()
        self.dim, self.out_dim, self.shift, self.window = block.dim, block.out_dim, block.shift, block.window

    def room(self, tokens: int) -> int:
        """Floats that a thread holds beside the features, where these rows are all there are."""
        raise TypeError(f"{type(self).__name__} does not define room")


class AfterAttention:
    """What follows the attention of a block, with the layer folded into it and a LeakyReLU after that, in packed operations.

    Args:
        block: folded weights.
        attention: gives the output projection in its own layout of heads.
        dtype: type of the matrix products; everything between them is float32.
        slope: of the LeakyReLU; None for none.
    """

    def __init__(
        self, block: FoldedSwin, attention: Attention | OverlapAttention, dtype: torch.dtype, slope: float | None = None
    ) -> None:
        self.dtype, self.slope = dtype, slope
        self.norm2 = LayerNorm(block.norm2, dtype)
        self.proj, self.fc1 = Linear(attention.proj, dtype), Linear(block.fc1, dtype)
        self.from_residual = None if block.from_residual is None else Linear(block.from_residual, dtype)
        self.from_hidden = Linear(block.from_hidden, dtype)
        # of the whole block, for each row; heads may be padded
        self.floats_per_token = 3 * block.dim + 3 * attention.heads * attention.head_dim + self.fc1.out_dim
        self.chunk = max(1, CHUNK_FLOATS // (self.floats_per_token * block.window**2))
        self.chunk_tokens = self.chunk * block.window**2

    def room(self, tokens: int) -> int:
        """As :meth:`Layer.room`, of the whole block."""
        return min(tokens, self.chunk_tokens) * self.floats_per_token

    def __call__(self, x: Tensor, attended: Tensor) -> Tensor:
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
    """A whole Swin block, made by :func:`swin_layer`.

    Attributes:
        norm1: its first norm.
    """

    norm1: LayerNorm

    def parts(self, windows: int) -> list[tuple[int, int]]:
        """Bounds of the parts of all windows that threads work on."""
        return split(windows, self.chunk)

    def run(self, maps: Maps, start: int, end: int) -> None:
        """Run windows ``start`` to ``end``, not included."""
        raise TypeError(f"{type(self).__name__} does not define run")


class PackedSwinLayer(SwinLayer):
    """In packed operations; arguments as :class:`AfterAttention`."""

    def __init__(self, block: FoldedSwin, dtype: torch.dtype, slope: float | None = None) -> None:
        self.attention = choose_attention(block, dtype)
        super().__init__(block, self.attention.name)
        self.norm1, self.qkv = LayerNorm(block.norm1, dtype), Linear(self.attention.qkv, dtype)
        self.rest = AfterAttention(block, self.attention, dtype, slope)
        self.chunk = self.rest.chunk

    def room(self, tokens: int) -> int:
        return self.rest.room(tokens)

    def run(self, maps: Maps, start: int, end: int) -> None:
        n, order = self.window**2, maps.order
        rows = slice(start * n, end * n)
        index = None if order.tokens is None else order.tokens[rows]

        def read(x: Tensor) -> Tensor:
            return x[rows].contiguous() if index is None else x.index_select(0, index)

        x = read(maps.source)
        normed = self.norm1(x) if maps.normed is None else read(maps.normed)
        y = self.rest(x, self.attention(self.qkv(normed), list(kinds_between(order.ends, start, end))))
        if index is None:
            target = maps.target[rows]
            target.copy_(target + y if maps.add else y)
        elif maps.add:
            maps.target.index_add_(0, index, y)
        else:
            maps.target.index_copy_(0, index, y)


class NativeSwinLayer(SwinLayer):
    """In one kernel, window by window; arguments as :class:`AfterAttention`."""

    def __init__(self, block: FoldedSwin, dtype: torch.dtype, slope: float | None = None) -> None:
        super().__init__(block, "native kernel")
        self.norm1 = LayerNorm(block.norm1, dtype)
        self.kernel = native.SwinLayerKernel(block, slope, dtype)
        self.chunk = max(1, CHUNK_TOKENS // block.window**2)

    def room(self, tokens: int) -> int:
        return self.kernel.room  # which threads keep from call to call

    def parts(self, windows: int) -> list[tuple[int, int]]:
        # the kernel itself runs on one thread, so small maps must make enough parts for all
        return split(windows, max(1, min(self.chunk, windows // torch.get_num_threads())))

    def run(self, maps: Maps, start: int, end: int) -> None:
        kinds = maps.order.kinds if self.shift else None
        self.kernel(maps.source, maps.target, (start, end), maps.order.tokens, kinds, maps.add, maps.normed)


def swin_layer(block: FoldedSwin, dtype: torch.dtype, slope: float | None = None) -> SwinLayer:
    """The faster of the two that can run here; arguments as :class:`AfterAttention`."""
    if native.swin_layer_available(dtype) is None and native.supports(block.window):
        return NativeSwinLayer(block, dtype, slope)
    return PackedSwinLayer(block, dtype, slope)


class OverlapLayer(Layer):
    """An overlapping cross-attention block: keys and values of all rows first, then windows of queries."""

    def __init__(self, block: FoldedSwin, dtype: torch.dtype) -> None:
        self.attention = OverlapAttention(block, dtype)
        super().__init__(block, self.attention.name)
        self.norm1, self.dtype = LayerNorm(block.norm1, dtype), dtype
        self.q, self.kv = Linear(self.attention.q, dtype), Linear(self.attention.kv, dtype)
        self.rest = AfterAttention(block, self.attention, dtype)
        self.chunk = self.rest.chunk

    def room(self, tokens: int) -> int:
        return self.rest.room(tokens)

    def keys_and_values(self, x: Tensor) -> Tensor:
        """``(rows, dim)`` to ``(rows, 2 * heads * head_dim)``."""
        return self.kv(self.norm1(x))

    def __call__(self, x: Tensor, kv: Tensor, order: Tensor) -> Tensor:
        """Rows of whole windows, ``(tokens, dim)`` float32 in and out; ``kv`` and ``order`` as in :class:`OverlapAttention`."""
        return self.rest(x, self.attention(self.q(self.norm1(x)), kv, order))

"""Window attention on rows of tokens in window order, by the native kernel or by torch."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from drct.engine import native
from drct.engine.folding import Affine, FoldedSwin, pad_head_inputs, pad_heads
from drct.engine.native.build import load_library
from drct.engine.native.window_attention import LOG2E, Shape


class Attention:
    """``softmax(q k^T + bias + mask) v`` in every window.

    Args:
        block: folded Swin block.

    Attributes:
        qkv, proj: the block's projections, in the head layout that this implementation wants.
    """

    name: str

    def __init__(self, block: FoldedSwin, padded: int) -> None:
        self.window, self.heads, self.head_dim = block.window, block.heads, padded
        self.qkv, self.proj = block.qkv, block.proj
        if padded != block.head_dim:
            self.qkv = pad_heads(block.qkv, block.heads, block.head_dim, padded)
            self.proj = pad_head_inputs(block.proj, block.heads, block.head_dim, padded)
        kinds = block.masks if block.shift else block.masks[:1]
        self.biases = [(block.position_bias + mask).contiguous() for mask in kinds]

    def __call__(self, qkv: Tensor, kinds: Sequence[tuple[int, int, int]]) -> Tensor:
        """``(windows * window**2, 3 * heads * head_dim)`` to ``(windows * window**2, heads * head_dim)``.

        ``kinds`` lists (kind of mask, first window, end) without gaps.
        """
        raise TypeError(f"{type(self).__name__} is not callable")


class NativeAttention(Attention):
    """The C kernel."""

    name = "native kernel"

    def __init__(self, block: FoldedSwin) -> None:
        super().__init__(block, block.head_dim)
        self.biases = [bias.mul_(LOG2E) for bias in self.biases]
        self.kernel = load_library("window_attention.c").drct_window_attention_forward

    def __call__(self, qkv: Tensor, kinds: Sequence[tuple[int, int, int]]) -> Tensor:
        n, w = self.window**2, self.window
        channels = self.heads * self.head_dim
        out = qkv.new_empty(len(qkv), channels)
        size = qkv.element_size() * n * channels
        for kind, start, end in kinds:
            shape = Shape(
                end - start, w, w, self.heads, self.head_dim, w, 0, 1.0, qkv.dtype == torch.bfloat16, torch.get_num_threads()
            )
            failed = self.kernel(
                ctypes.byref(shape),
                ctypes.c_void_p(qkv.data_ptr() + 3 * start * size),
                ctypes.c_void_p(self.biases[kind].data_ptr()),
                ctypes.c_void_p(out.data_ptr() + start * size),
            )
            if failed:
                raise MemoryError("window attention could not allocate its work space")
        return out


class TorchAttention(Attention):
    """Batched matrix products over the heads of one window at a time, so that the scores stay in the cache."""

    name = "torch"

    def __init__(self, block: FoldedSwin, dtype: torch.dtype) -> None:
        super().__init__(block, -(-block.head_dim // 8) * 8)
        self.biases = [bias.to(dtype) for bias in self.biases]

    def __call__(self, qkv: Tensor, kinds: Sequence[tuple[int, int, int]]) -> Tensor:
        n = self.window**2
        q, k, v = qkv.view(-1, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)  # each windows, heads, tokens, head_dim
        out = qkv.new_empty(len(q), n, self.heads, self.head_dim)
        out_heads_first = out.transpose(1, 2)
        scores = torch.empty_like(self.biases[0])
        for kind, start, end in kinds:
            for i in range(start, end):
                _attend(q[i], k[i], v[i], self.biases[kind], scores, out_heads_first[i])
        return out.view(len(qkv), -1)


class OverlapAttention:
    """``softmax(q k^T + bias) v`` in windows whose keys reach over their borders.

    Args:
        block: folded overlapping cross-attention block.

    Attributes:
        q, kv, proj: the block's projections, every head widened to a multiple of 8.
    """

    name = "torch"

    def __init__(self, block: FoldedSwin, dtype: torch.dtype) -> None:
        self.heads, self.head_dim = block.heads, -(-block.head_dim // 8) * 8
        self.queries, self.keys = block.position_bias.shape[1:]
        padded = (block.heads, block.head_dim, self.head_dim)
        qkv, dim = pad_heads(block.qkv, *padded), self.heads * self.head_dim
        self.q, self.kv = Affine(qkv.weight[:dim], qkv.bias[:dim]), Affine(qkv.weight[dim:], qkv.bias[dim:])
        self.proj = pad_head_inputs(block.proj, *padded)
        self.bias = block.position_bias.to(dtype)

    def __call__(self, q: Tensor, kv: Tensor, order: Tensor) -> Tensor:
        """``(windows * queries, heads * head_dim)`` and all keys and values ``(rows, 2 * heads * head_dim)`` to what ``q`` is.

        ``order`` lists the rows of each window's keys, ``(windows, keys)``.
        """
        out = torch.empty_like(q)
        by_head = (-1, self.queries, self.heads, self.head_dim)
        queries, results = q.view(by_head).transpose(1, 2), out.view(by_head).transpose(1, 2)
        scores = torch.empty_like(self.bias)
        for i, rows in enumerate(order):
            k, v = kv.index_select(0, rows).view(self.keys, 2, self.heads, self.head_dim).permute(1, 2, 0, 3)
            _attend(queries[i], k, v, self.bias, scores, results[i])
        return out


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scores: Tensor, out: Tensor) -> None:
    """All heads of one window: ``(heads, queries, head_dim)`` and ``(heads, keys, head_dim)``; ``scores`` is room to work in."""
    torch.baddbmm(bias, q, k.transpose(1, 2), out=scores)
    torch.softmax(scores, -1, out=scores)
    torch.bmm(scores, v, out=out)


def choose_attention(block: FoldedSwin, dtype: torch.dtype) -> Attention:
    """The native kernel where it can be built and takes the window, being faster in every case measured; else torch."""
    if native.available() is None and native.supports(block.window):
        return NativeAttention(block)
    return TorchAttention(block, dtype)


def kinds_between(ends: Sequence[int], start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The kinds of windows ``start`` to ``end``, as :meth:`Attention.__call__` wants them, counted from ``start``."""
    first = 0
    for kind, last in enumerate(ends):
        a, b = max(first, start), min(last, end)
        if a < b:
            yield kind, a - start, b - start
        first = last

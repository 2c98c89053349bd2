"""Window attention on rows of tokens in window order, by the native kernel or by torch."""

from __future__ import annotations

import ctypes
import functools
import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from drct.engine import native
from drct.engine.folding import Affine, FoldedSwin, Norm, pad_head_inputs, pad_heads
from drct.engine.native.build import load_library
from drct.engine.native.window_attention import LOG2E, _Shape


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
            shape = _Shape(
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
                torch.baddbmm(self.biases[kind], q[i], k[i].transpose(1, 2), out=scores)
                torch.softmax(scores, -1, out=scores)
                torch.bmm(scores, v[i], out=out_heads_first[i])
        return out.view(len(qkv), -1)


def choose_attention(block: FoldedSwin, dtype: torch.dtype) -> Attention:
    """The faster implementation for a block."""
    if native.available() is not None or not native.supports(block.window):
        return TorchAttention(block, dtype)
    if dtype == torch.float32 or _native_is_faster(block.window, block.heads, block.head_dim, dtype):
        return NativeAttention(block)
    return TorchAttention(block, dtype)


@functools.cache
def _native_is_faster(window: int, heads: int, head_dim: int, dtype: torch.dtype) -> bool:
    """Measured in turns on two windows with random weights: which one wins depends on the processor's instructions."""
    n, dim = window * window, heads * head_dim
    norm = Norm(torch.ones(dim), torch.zeros(dim), 1e-5)
    layer = Affine(torch.zeros(dim, dim), torch.zeros(dim))
    qkv = Affine(torch.zeros(3 * dim, dim), torch.zeros(3 * dim))
    bias, mask = torch.zeros(heads, n, n), torch.zeros(4, n, n)
    block = FoldedSwin(window, 0, heads, head_dim, norm, qkv, bias, mask, layer, norm, layer, layer, layer)
    candidates = (NativeAttention(block), TorchAttention(block, dtype))
    seconds = [float("inf"), float("inf")]
    for _ in range(7):
        for i, attention in enumerate(candidates):
            x = torch.randn(2 * n, len(attention.qkv.weight)).to(dtype)
            start = time.perf_counter()
            attention(x, [(0, 0, 2)])
            seconds[i] = min(seconds[i], time.perf_counter() - start)
    return seconds[0] <= seconds[1]


def kinds_between(ends: Sequence[int], start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The kinds of windows ``start`` to ``end``, as :meth:`Attention.__call__` wants them, counted from ``start``."""
    first = 0
    for kind, last in enumerate(ends):
        a, b = max(first, start), min(last, end)
        if a < b:
            yield kind, a - start, b - start
        first = last

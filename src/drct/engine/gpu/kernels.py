# mypy: disable-error-code="no-untyped-def"
"""Triton kernels for the parts of a Swin block between its matrix products.

Features are rows of pixels in raster order, ``(B * H * W, C)``, possibly columns of wider buffers. Statistics, scores and sums are
float32 whatever the type of the rows. All kernels also run on CPU tensors through Triton's interpreter (``TRITON_INTERPRET=1``
before this module is imported), which is how they are tested without a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = 1.4426950408889634
MASKED = -100.0 * LOG2E


@triton.jit
def _norm_kernel(
    x, x_stride, branch, branch_stride, total, total_stride, y, y_stride, weight, bias, eps, rows,
    C: tl.constexpr, TOTAL_C: tl.constexpr, Y_C: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """``TOTAL_C``, ``Y_C``: columns that are written; those beyond C are zeros."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    exists = (row < rows)[:, None]
    row = row.to(tl.int64)[:, None]
    column = column[None, :]
    inside = exists & (column < C)
    values = tl.load(x + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        values += tl.load(branch + row * branch_stride + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + row * total_stride + column, values.to(total.dtype.element_ty), mask=exists & (column < TOTAL_C))
    mean = tl.sum(values, 1) / C
    centred = tl.where(inside, values - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, 1) / C
    g = tl.load(weight + column, mask=column < C, other=0.0)
    b = tl.load(bias + column, mask=column < C, other=0.0)
    result = centred * (1.0 / tl.sqrt(variance + eps))[:, None] * g + b
    tl.store(y + row * y_stride + column, result.to(y.dtype.element_ty), mask=exists & (column < Y_C))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype, width: int | None = None) -> Tensor:
    """LayerNorm of rows ``(T, C)``, which may be columns of a wider buffer, as new contiguous rows ``(T, width)`` of ``dtype``.

    ``width`` is C by default; further columns are zeros.
    """
    y = torch.empty(len(x), width or x.shape[1], dtype=dtype, device=x.device)
    _norm(x, None, None, y, weight, bias, eps)
    return y


def add_layer_norm(
    x: Tensor,
    branch: Tensor,
    total: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
    width: int | None = None,
) -> Tensor:
    """Write ``x + branch`` to ``total`` and return its LayerNorm, as :func:`layer_norm`; the sum stays float32 in between.

    ``branch`` and ``total`` may have more columns than x: those of ``branch`` are not read, those of ``total`` become zeros.
    """
    y = torch.empty(len(x), width or x.shape[1], dtype=dtype, device=x.device)
    _norm(x, branch, total, y, weight, bias, eps)
    return y


def _norm(x: Tensor, branch: Tensor | None, total: Tensor | None, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    t, c = x.shape
    assert all(rows is None or rows.stride(1) == 1 for rows in (x, branch, total, y))
    written = [c if result is None else result.shape[1] for result in (total, y)]
    block = triton.next_power_of_2(max(c, *written))
    rows = max(1, 2048 // block)
    _norm_kernel[(triton.cdiv(t, rows),)](
        x, x.stride(0), branch, 0 if branch is None else branch.stride(0), total, 0 if total is None else total.stride(0),
        y, y.stride(0), weight, bias, eps, t, c, *written, block, rows, branch is not None,
    )  # fmt: skip


@triton.jit
def _attention_kernel(
    qkv, bias, out, lse, scale, height, width, windows_down, windows_across,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr, BORDER: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, MASK: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """``KEEP``: multiply scores by ``scale``, and write what backward needs, the logarithms (base 2) of the sums, to ``lse``."""
    n: tl.constexpr = WINDOW * WINDOW
    side: tl.constexpr = WINDOW + 2 * BORDER
    keys: tl.constexpr = side * side
    window = tl.program_id(0)
    head = tl.program_id(1)
    part = tl.program_id(2)
    image = window // (windows_down * windows_across)
    down = (window // windows_across) % windows_down
    across = window % windows_across
    channels = tl.arange(0, BLOCK_D)
    used = channels < D
    stride = 3 * HEADS * D

    # queries: the cyclic shift is a matter of where a window's pixels are read and written
    m = part * BLOCK_M + tl.arange(0, BLOCK_M)
    y, x = m // WINDOW, m % WINDOW
    line_m = image * height + (down * WINDOW + y + SHIFT) % height
    pixel_m = line_m.to(tl.int64) * width + (across * WINDOW + x + SHIFT) % width
    inside_m = (m < n)[:, None] & used[None, :]
    q = tl.load(qkv + pixel_m[:, None] * stride + head * D + channels[None, :], mask=inside_m, other=0.0)
    from_below_m = (y >= WINDOW - SHIFT) & (down == windows_down - 1)
    from_right_m = (x >= WINDOW - SHIFT) & (across == windows_across - 1)

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for start in range(0, keys, BLOCK_N):
        k_at = start + tl.arange(0, BLOCK_N)
        v, u = k_at // side, k_at % side
        if BORDER > 0:  # keys beyond the map are zeros, which take part in the softmax all the same
            row, column = down * WINDOW + v - BORDER, across * WINDOW + u - BORDER
            exists = (k_at < keys) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        else:
            row, column = (down * WINDOW + v + SHIFT) % height, (across * WINDOW + u + SHIFT) % width
            exists = k_at < keys
        pixel_n = (image * height + row).to(tl.int64) * width + column
        inside_n = exists[:, None] & used[None, :]
        at_k = qkv + pixel_n[:, None] * stride + (HEADS + head) * D + channels[None, :]
        k = tl.load(at_k, mask=inside_n, other=0.0)
        pairs = (m < n)[:, None] & (k_at < keys)[None, :]
        scores = tl.dot(q, tl.trans(k), out_dtype=tl.float32, input_precision="ieee")
        if KEEP:
            scores *= scale
        at_bias = bias + head * n * keys + m[:, None] * keys + k_at[None, :]
        scores += tl.load(at_bias, mask=pairs, other=float("-inf")).to(tl.float32)
        if SHIFT > 0:
            from_below_n = (v >= WINDOW - SHIFT) & (down == windows_down - 1)
            from_right_n = (u >= WINDOW - SHIFT) & (across == windows_across - 1)
            apart = (from_below_m[:, None] != from_below_n[None, :]) | (from_right_m[:, None] != from_right_n[None, :])
            scores += tl.where(apart, MASK, 0.0)
        new_top = tl.maximum(top, tl.max(scores, 1))
        new_top = tl.where(new_top == float("-inf"), 0.0, new_top)  # rows beyond the window
        p = tl.exp2(scores - new_top[:, None])
        shrink = tl.exp2(top - new_top)
        total = total * shrink + tl.sum(p, 1)
        values = tl.load(at_k + HEADS * D, mask=inside_n, other=0.0)
        acc = acc * shrink[:, None] + tl.dot(p.to(values.dtype), values, out_dtype=tl.float32, input_precision="ieee")
        top = new_top
    total = tl.where(total > 0, total, 1.0)
    acc = acc / total[:, None]
    at = out + pixel_m[:, None] * (HEADS * D) + head * D + channels[None, :]
    tl.store(at, acc.to(out.dtype.element_ty), mask=inside_m)
    if KEEP:
        tl.store(lse + pixel_m * HEADS + head, top + tl.log2(total), mask=m < n)


class Launch(NamedTuple):
    """How the attention kernel is cut up: queries and keys worked on at once, warps, stages of its pipeline."""

    queries: int = 64
    keys: int = 64
    warps: int = 4
    stages: int = 2


# Of queries or keys at most, by the bytes of a value: with more, wide heads exceed the shared memory of most GPUs (99 KiB), and in
# float32 their registers.
TILE_BYTES = {2: 16384, 4: 8192}
LAUNCH = Launch()  # the sums that a kernel rounds depend on it, so it is fixed; benchmarks/inference.py --tune measures others


def tile_size(wanted: int, positions: int, channels: int, dtype: torch.dtype, limit: int | None = None) -> int:
    """Queries or keys that a program works on at once: as wanted, if there are so many and they take ``limit`` bytes at most.

    The limit is :data:`TILE_BYTES` by default.
    """
    return max(
        16, min(wanted, (limit or TILE_BYTES[dtype.itemsize]) // (channels * dtype.itemsize), triton.next_power_of_2(positions))
    )


def window_attention(
    qkv: Tensor,
    bias: Tensor,
    size: tuple[int, int, int],
    window: int,
    shift: int,
    border: int = 0,
    launch: Launch = LAUNCH,
    scale: float = 1.0,
    lse: Tensor | None = None,
) -> Tensor:
    """(Shifted) window attention on a whole map; nothing of the size of the scores reaches memory.

    Args:
        qkv: ``(B * H * W, 3 * heads * d)`` contiguous, last axis ordered (q|k|v, head, d). The queries carry the scale of the
            scores and a factor log2(e), the base of the softmax being 2.
        bias: ``(heads, window**2, keys)``, times log2(e).
        size: (B, H, W), H and W multiples of ``window``.
        border: keys and values reach this far over each border of a window (HAT's overlapping cross-attention), ``keys`` being
            ``(window + 2 * border)**2``; beyond the map they are zeros. Goes without a shift.
        lse: ``(B * H * W, heads)`` float32, for training: receives the logarithm (base 2) of each query's sum of exponentials.
        scale: with ``lse``, a factor of the scores that the queries do not carry.

    Returns:
        ``(B * H * W, heads * d)``.
    """
    b, h, w = size
    heads, n, keys = bias.shape
    assert keys == (window + 2 * border) ** 2
    assert not (border and shift)
    assert scale == 1.0 or lse is not None
    d = qkv.shape[1] // 3 // heads
    out = qkv.new_empty(len(qkv), heads * d)
    block_d = max(16, triton.next_power_of_2(d))
    block_m = tile_size(launch.queries, n, block_d, qkv.dtype)
    block_n = tile_size(launch.keys, keys, block_d, qkv.dtype)
    down, across = h // window, w // window
    _attention_kernel[(b * down * across, heads, triton.cdiv(n, block_m))](
        qkv, bias, out, lse, scale, h, w, down, across,
        heads, d, block_d, window, shift, border, block_m, block_n, MASKED, lse is not None,
        num_warps=launch.warps, num_stages=launch.stages,
    )  # fmt: skip
    return out


@triton.jit
def _gelu_kernel(x, y, y_stride, elements, C: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < elements
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    result = 0.5 * values * (1.0 + tl.erf(values * 0.7071067811865476))
    tl.store(y + (at // C) * y_stride + at % C, result.to(y.dtype.element_ty), mask=inside)


def gelu_into(x: Tensor, y: Tensor) -> None:
    """Exact GELU of contiguous rows ``x``, written to ``y`` of the same shape, which may be columns of a wider buffer."""
    block = 1024
    _gelu_kernel[(triton.cdiv(x.numel(), block),)](x, y, y.stride(0), x.numel(), x.shape[1], block)


@triton.jit
def _append_kernel(
    x, y, y_stride, elements, slope, C: tl.constexpr, Y_C: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = (at < elements) & (at % C < Y_C)
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    to = y + (at // C) * y_stride + at % C
    if ADD:
        values += tl.load(to, mask=inside, other=0.0).to(tl.float32)
    else:
        values = tl.where(values >= 0, values, values * slope)
    tl.store(to, values.to(y.dtype.element_ty), mask=inside)


def leaky_relu_into(x: Tensor, y: Tensor, slope: float) -> None:
    """LeakyReLU of contiguous rows ``x``, written to ``y``, which may be columns of a wider buffer.

    Where ``x`` is wider than ``y``, its further columns are left out.
    """
    _append(x, y, slope, False)


def add_into(x: Tensor, y: Tensor) -> None:
    """``y += x`` for contiguous rows ``x``; ``y`` and further columns of ``x`` as in :func:`leaky_relu_into`."""
    _append(x, y, 1.0, True)


def _append(x: Tensor, y: Tensor, slope: float, add: bool) -> None:
    block = 1024
    grid = (triton.cdiv(x.numel(), block),)
    _append_kernel[grid](x, y, y.stride(0), x.numel(), slope, x.shape[1], y.shape[1], block, add)

# mypy: disable-error-code="no-untyped-def"
"""Window attention with gradients on CUDA tensors, for training: Triton kernels, nothing of the size of the scores kept.

Forward is the kernel of inference, which also writes the logarithm of each query's sum. Backward computes the scores again, three
times, in kernels that each write what only they write:

1. queries (:func:`_query_gradients_kernel`): a program has some queries of a window and walks through its keys;
2. keys and values (:func:`_key_gradients_kernel`): a program has some keys and walks through the queries;
3. the position bias (:func:`_bias_gradients_kernel`): a program has some pairs of positions and walks through some of the windows.

One kernel for all would need sums by several programs at one place, whose order and so whose rounding would change from run to
run; a run that is resumed must give the same weights.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from drct.engine.bias_table import table_gradient
from drct.engine.gpu.kernels import LAUNCH, LOG2E, MASKED, tile_size
from drct.engine.gpu.kernels import window_attention as attention_forward
from drct.networks.derivatives import first_derivative_only
from drct.networks.window_attention import gather_bias

SHARES = 8  # of the windows, whose sums for the bias are made side by side
BLOCK = 64  # queries or keys that a program works on at once, at most
TILE_BYTES = 8192  # of them: with more, registers are short, and in float32 the shared memory of most GPUs (99 KiB)
STAGES = 2  # of the pipelines, for the same reason
NARROW = 64  # channels of a head; in wider ones, which are not widened to a round number here, four warps spill registers (sm_90)


@triton.jit
def _place(at, window, height, width, windows_down, windows_across, WINDOW: tl.constexpr, SHIFT: tl.constexpr):
    """Of positions in a window: their pixels in the map, and whether they came from below or from the right of it."""
    image = window // (windows_down * windows_across)
    down = (window // windows_across) % windows_down
    across = window % windows_across
    y, x = at // WINDOW, at % WINDOW
    line = image * height + (down * WINDOW + y + SHIFT) % height
    pixel = line.to(tl.int64) * width + (across * WINDOW + x + SHIFT) % width
    below = (y >= WINDOW - SHIFT) & (down == windows_down - 1)
    right = (x >= WINDOW - SHIFT) & (across == windows_across - 1)
    return pixel, below, right


@triton.jit
def _probabilities(
    q, k, bias_at, pairs, lse, below_m, right_m, below_n, right_n, scale, SHIFT: tl.constexpr, MASK: tl.constexpr
):  # fmt: skip
    """Probabilities of keys n for queries m; ``scale`` has the factor log2(e) and so has the bias."""
    scores = tl.dot(q, tl.trans(k), out_dtype=tl.float32, input_precision="ieee") * scale
    scores += tl.load(bias_at, mask=pairs, other=float("-inf")).to(tl.float32)
    if SHIFT > 0:
        apart = (below_m[:, None] != below_n[None, :]) | (right_m[:, None] != right_n[None, :])
        scores += tl.where(apart, MASK, 0.0)
    return tl.exp2(scores - lse[:, None])


@triton.jit
def _query_gradients_kernel(
    qkv, bias, dout, lse, mean, dqkv, scale, factor, height, width, windows_down, windows_across,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    n: tl.constexpr = WINDOW * WINDOW
    window, head = tl.program_id(0), tl.program_id(1)
    channels = tl.arange(0, BLOCK_D)
    used = (channels < D)[None, :]
    stride = 3 * HEADS * D
    m = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    pixel_m, below_m, right_m = _place(m, window, height, width, windows_down, windows_across, WINDOW, SHIFT)
    inside_m = (m < n)[:, None] & used
    at_m = pixel_m[:, None] * stride + head * D + channels[None, :]
    q = tl.load(qkv + at_m, mask=inside_m, other=0.0)
    do = tl.load(dout + pixel_m[:, None] * (HEADS * D) + head * D + channels[None, :], mask=inside_m, other=0.0)
    lse_m = tl.load(lse + pixel_m * HEADS + head, mask=m < n, other=0.0)
    mean_m = tl.load(mean + pixel_m * HEADS + head, mask=m < n, other=0.0)
    dq = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for start in range(0, n, BLOCK):
        at = start + tl.arange(0, BLOCK)
        pixel_n, below_n, right_n = _place(at, window, height, width, windows_down, windows_across, WINDOW, SHIFT)
        inside_n = (at < n)[:, None] & used
        at_k = qkv + pixel_n[:, None] * stride + (HEADS + head) * D + channels[None, :]
        k = tl.load(at_k, mask=inside_n, other=0.0)
        v = tl.load(at_k + HEADS * D, mask=inside_n, other=0.0)
        pairs = (m < n)[:, None] & (at < n)[None, :]
        bias_at = bias + head * n * n + m[:, None] * n + at[None, :]
        p = _probabilities(q, k, bias_at, pairs, lse_m, below_m, right_m, below_n, right_n, scale, SHIFT, MASK)
        ds = p * (tl.dot(do, tl.trans(v), out_dtype=tl.float32, input_precision="ieee") - mean_m[:, None])
        dq += tl.dot(ds.to(k.dtype), k, out_dtype=tl.float32, input_precision="ieee")
    tl.store(dqkv + at_m, (dq * factor).to(dqkv.dtype.element_ty), mask=inside_m)


@triton.jit
def _key_gradients_kernel(
    qkv, bias, dout, lse, mean, dqkv, scale, factor, height, width, windows_down, windows_across,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    n: tl.constexpr = WINDOW * WINDOW
    window, head = tl.program_id(0), tl.program_id(1)
    channels = tl.arange(0, BLOCK_D)
    used = (channels < D)[None, :]
    stride = 3 * HEADS * D
    at = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    pixel_n, below_n, right_n = _place(at, window, height, width, windows_down, windows_across, WINDOW, SHIFT)
    inside_n = (at < n)[:, None] & used
    at_k = pixel_n[:, None] * stride + (HEADS + head) * D + channels[None, :]
    k = tl.load(qkv + at_k, mask=inside_n, other=0.0)
    v = tl.load(qkv + at_k + HEADS * D, mask=inside_n, other=0.0)
    dk = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    for start in range(0, n, BLOCK):
        m = start + tl.arange(0, BLOCK)
        pixel_m, below_m, right_m = _place(m, window, height, width, windows_down, windows_across, WINDOW, SHIFT)
        inside_m = (m < n)[:, None] & used
        q = tl.load(qkv + pixel_m[:, None] * stride + head * D + channels[None, :], mask=inside_m, other=0.0)
        do = tl.load(dout + pixel_m[:, None] * (HEADS * D) + head * D + channels[None, :], mask=inside_m, other=0.0)
        lse_m = tl.load(lse + pixel_m * HEADS + head, mask=m < n, other=0.0)
        mean_m = tl.load(mean + pixel_m * HEADS + head, mask=m < n, other=0.0)
        pairs = (m < n)[:, None] & (at < n)[None, :]
        bias_at = bias + head * n * n + m[:, None] * n + at[None, :]
        p = _probabilities(q, k, bias_at, pairs, lse_m, below_m, right_m, below_n, right_n, scale, SHIFT, MASK)
        dv += tl.dot(tl.trans(p).to(do.dtype), do, out_dtype=tl.float32, input_precision="ieee")
        ds = p * (tl.dot(do, tl.trans(v), out_dtype=tl.float32, input_precision="ieee") - mean_m[:, None])
        dk += tl.dot(tl.trans(ds).to(q.dtype), q, out_dtype=tl.float32, input_precision="ieee")
    tl.store(dqkv + at_k, (dk * factor).to(dqkv.dtype.element_ty), mask=inside_n)
    tl.store(dqkv + at_k + HEADS * D, dv.to(dqkv.dtype.element_ty), mask=inside_n)


@triton.jit
def _bias_gradients_kernel(
    qkv, bias, dout, lse, mean, dbias, scale, height, width, windows_down, windows_across, windows,
    HEADS: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr, WINDOW: tl.constexpr, SHIFT: tl.constexpr,
    BLOCK: tl.constexpr, MASK: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """``dbias`` is (SHARES, HEADS, n, n)."""
    n: tl.constexpr = WINDOW * WINDOW
    blocks: tl.constexpr = (n + BLOCK - 1) // BLOCK
    part, head, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    channels = tl.arange(0, BLOCK_D)
    used = (channels < D)[None, :]
    stride = 3 * HEADS * D
    m = part // blocks * BLOCK + tl.arange(0, BLOCK)
    at = part % blocks * BLOCK + tl.arange(0, BLOCK)
    inside_m, inside_n = (m < n)[:, None] & used, (at < n)[:, None] & used
    pairs = (m < n)[:, None] & (at < n)[None, :]
    pairs_at = head * n * n + m[:, None] * n + at[None, :]
    total = tl.zeros([BLOCK, BLOCK], tl.float32)
    for window in range(windows * share // SHARES, windows * (share + 1) // SHARES):
        pixel_m, below_m, right_m = _place(m, window, height, width, windows_down, windows_across, WINDOW, SHIFT)
        pixel_n, below_n, right_n = _place(at, window, height, width, windows_down, windows_across, WINDOW, SHIFT)
        q = tl.load(qkv + pixel_m[:, None] * stride + head * D + channels[None, :], mask=inside_m, other=0.0)
        do = tl.load(dout + pixel_m[:, None] * (HEADS * D) + head * D + channels[None, :], mask=inside_m, other=0.0)
        lse_m = tl.load(lse + pixel_m * HEADS + head, mask=m < n, other=0.0)
        mean_m = tl.load(mean + pixel_m * HEADS + head, mask=m < n, other=0.0)
        at_k = qkv + pixel_n[:, None] * stride + (HEADS + head) * D + channels[None, :]
        k = tl.load(at_k, mask=inside_n, other=0.0)
        v = tl.load(at_k + HEADS * D, mask=inside_n, other=0.0)
        p = _probabilities(q, k, bias + pairs_at, pairs, lse_m, below_m, right_m, below_n, right_n, scale, SHIFT, MASK)
        total += p * (tl.dot(do, tl.trans(v), out_dtype=tl.float32, input_precision="ieee") - mean_m[:, None])
    tl.store(dbias + share.to(tl.int64) * HEADS * n * n + pairs_at, total, mask=pairs)


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, table: Tensor, index: Tensor, window: int, shift: int, scale: float) -> Tensor:
        b, h, w, _ = qkv.shape
        qkv, bias = qkv.contiguous(), gather_bias(table.float(), index) * LOG2E
        lse = qkv.new_empty(b * h * w, len(bias), dtype=torch.float32)
        launch = LAUNCH if qkv.shape[-1] // 3 // len(bias) <= NARROW else LAUNCH._replace(warps=8)
        with torch.cuda.device_of(qkv):  # Triton launches on the current GPU; a backward pass runs on that of its tensors anyway
            out = attention_forward(qkv.flatten(0, 2), bias, (b, h, w), window, shift, launch=launch, scale=scale * LOG2E, lse=lse)
        ctx.save_for_backward(qkv, bias, out, lse)
        ctx.arguments = (window, shift, scale)
        return out.view(b, h, w, -1)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        qkv, bias, out, lse = ctx.saved_tensors
        window, shift, scale = ctx.arguments
        b, h, w, channels = qkv.shape
        heads, n, _ = bias.shape
        d = channels // 3 // heads
        dout = gradients[0].to(qkv.dtype).contiguous().flatten(0, 2)
        # of each query: the mean of the gradients of its probabilities, weighted by these
        mean = (dout.float() * out.float()).view(-1, heads, d).sum(-1)
        dqkv = torch.empty_like(qkv)
        down, across = h // window, w // window
        windows, block_d = b * down * across, max(16, triton.next_power_of_2(d))
        block = tile_size(BLOCK, n, block_d, qkv.dtype, TILE_BYTES)
        parts = triton.cdiv(n, block)
        given, place = (qkv, bias, dout, lse, mean), (h, w, down, across)
        sizes = (heads, d, block_d, window, shift, block, MASKED)
        for kernel in (_query_gradients_kernel, _key_gradients_kernel):
            kernel[(windows, heads, parts)](*given, dqkv, scale * LOG2E, scale, *place, *sizes, num_stages=STAGES)
        dtable = None
        if ctx.needs_input_grad[1]:  # attribution asks for that of the image alone
            dbias = bias.new_empty(SHARES, heads, n, n)
            grid = (parts**2, heads, SHARES)
            _bias_gradients_kernel[grid](*given, dbias, scale * LOG2E, *place, windows, *sizes, SHARES, num_stages=STAGES)
            dtable = table_gradient(dbias.sum(0), window)
        return dqkv, dtable, None, None, None, None


def window_attention(qkv: Tensor, table: Tensor, index: Tensor, window: int, shift: int, scale: float) -> Tensor:
    """``softmax(scale q k^T + bias + mask) v`` in all (shifted) windows of a map, with gradients for ``qkv`` and the bias table.

    Args:
        qkv: ``(B, H, W, 3 * heads * d)``, float32 or half precision, last axis ordered (q|k|v, head, d); H and W multiples of
            ``window``.
        table: relative position bias table ``((2 * window - 1)**2, heads)``.
        index: row of the table for each (query, key), ``(N, N)``, from ``relative_position_index(window)``; N = ``window**2``.
        shift: cyclic shift in pixels; the kernels roll and mask by themselves.
        scale: factor of the scores.

    Returns:
        ``(B, H, W, heads * d)`` in the type of ``qkv``.

    Raises:
        ValueError: shapes that do not go together.
    """
    heads = table.shape[1]
    if qkv.dim() != 4 or qkv.shape[3] % (3 * heads) or qkv.shape[1] % window or qkv.shape[2] % window:
        raise ValueError(f"qkv {tuple(qkv.shape)} does not go with {heads} heads and window {window}")
    if index.shape != (window**2, window**2):
        raise ValueError(f"the index of the bias table is {tuple(index.shape)}, but window {window} has {window**2} positions")
    return _WindowAttention.apply(qkv, table, index, window, shift, scale)

# mypy: disable-error-code="no-untyped-def"
"""SS2D's four selective scans as Triton kernels: values and gradients on CUDA tensors, in memory linear in the pixels.

    h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t,    y_t = C_t . h_t

A map is scanned where it lies: kernels read pixels in the order of their direction, so nothing is transposed or flipped. The way
through the map is cut into chunks of ``CHUNK`` pixels that run side by side in three passes:

1. each chunk from zero: what it adds to the state, and the sum of its step sizes (:func:`_summary_kernel`);
2. chunk after chunk: the state that each begins with (:func:`_carry_kernel`);
3. each chunk from that state: the outputs (:func:`_output_kernel`).

For training, pass 3 keeps the state before every ``SEGMENT`` pixels. The backward pass is the same recurrence from the end, with C
for B and dy for the inputs; its last pass computes the states of ``PIECE`` pixels again, in registers, and walks back through them.

Like the other kernels these run on CPU tensors through Triton's interpreter, which is how they are tested without a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from drct.networks.derivatives import first_derivative_only

DIRECTIONS = 4
CHUNK = 64  # pixels that a program walks through
SEGMENT = 16  # pixels between the states that are kept
PIECE = 8  # states that the registers of a program hold
BLOCK_D = 32  # channels of a program forward, and backward until the last pass
BLOCK_D_GRADIENTS = 16
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def _pixel(t, direction, height, width):
    """Pixel that a direction visits at step t: rows, columns, rows from the end, columns from the end."""
    at = tl.where(direction < 2, t, height * width - 1 - t)
    return tl.where(direction % 2 == 0, at, (at % height) * width + at // height)


@triton.jit
def _summary_kernel(
    u, delta, a, b, added, total, height, width, dim, chunks,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """What one chunk makes of a state of zero. ``REVERSE``: of a gradient of zero, where u is dy and b is C."""
    chunk, image_direction = tl.program_id(0), tl.program_id(2)
    image, direction = (image_direction // 4).to(tl.int64), image_direction % 4
    length = height * width
    n, d = tl.arange(0, BLOCK_N), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (n < N)[:, None] & (d < dim)[None, :]
    state_at = n[:, None] * dim + d[None, :]
    rate = tl.load(a + direction * N * dim + state_at, mask=inside, other=0.0) * LOG2E
    h = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    steps = tl.zeros([BLOCK_D], tl.float32)
    for j in range(CHUNK):
        t = chunk * CHUNK + (CHUNK - 1 - j if REVERSE else j)
        channels, numbers = tl.where(t < length, dim, 0), tl.where(t < length, N, 0)
        row = image * length + _pixel(tl.minimum(t, length - 1), direction, height, width)
        # beyond the end steps and inputs are zero and change nothing
        step = tl.load(delta + (row * 4 + direction) * dim + d, mask=d < channels, other=0.0)
        x = tl.load(u + row * dim + d, mask=d < channels, other=0.0)
        vector = tl.load(b + (row * 4 + direction) * N + n, mask=n < numbers, other=0.0)
        decay = tl.exp2(step[None, :] * rate)
        if REVERSE:
            h = decay * (h + vector[:, None] * x[None, :])
        else:
            h = decay * h + vector[:, None] * (step * x)[None, :]
        steps += step
    where = image_direction.to(tl.int64) * chunks + chunk
    tl.store(added + where * N * dim + state_at, h, mask=inside)
    tl.store(total + where * dim + d, steps, mask=d < dim)


@triton.jit
def _carry_kernel(
    a, added, total, dim, chunks,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, REVERSE: tl.constexpr,
):  # fmt: skip
    """Replace what each chunk adds by what it begins with; ``REVERSE``: what reaches it from the chunks after it."""
    image_direction = tl.program_id(1)
    n, d = tl.arange(0, BLOCK_N), tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (n < N)[:, None] & (d < dim)[None, :]
    state_at = n[:, None] * dim + d[None, :]
    rate = tl.load(a + (image_direction % 4) * N * dim + state_at, mask=inside, other=0.0) * LOG2E
    h = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for j in range(chunks):
        where = image_direction.to(tl.int64) * chunks + (chunks - 1 - j if REVERSE else j)
        at = added + where * N * dim + state_at
        adds = tl.load(at, mask=inside, other=0.0)
        steps = tl.load(total + where * dim + d, mask=d < dim, other=0.0)
        tl.store(at, h, mask=inside)
        h = tl.exp2(steps[None, :] * rate) * h + adds


@triton.jit
def _output_kernel(
    u, delta, a, b, c, starts, y, kept, height, width, dim, chunks, segments,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, SEGMENT: tl.constexpr,
    KEEP: tl.constexpr,
):  # fmt: skip
    """Outputs of one chunk, ``y`` (B, 4, L, D); ``KEEP``: the state before each segment as well."""
    chunk, image_direction = tl.program_id(0), tl.program_id(2)
    image, direction = (image_direction // 4).to(tl.int64), image_direction % 4
    length = height * width
    n, d = tl.arange(0, BLOCK_N), tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (n < N)[:, None] & (d < dim)[None, :]
    state_at = n[:, None] * dim + d[None, :]
    rate = tl.load(a + direction * N * dim + state_at, mask=inside, other=0.0) * LOG2E
    h = tl.load(starts + (image_direction.to(tl.int64) * chunks + chunk) * N * dim + state_at, mask=inside, other=0.0)
    for j in range(CHUNK):
        t = chunk * CHUNK + j
        channels, numbers = tl.where(t < length, dim, 0), tl.where(t < length, N, 0)
        pixel = _pixel(tl.minimum(t, length - 1), direction, height, width)
        row = image * length + pixel
        if KEEP:  # noqa: SIM102 (one is known when the kernel is compiled, the other when it runs)
            if j % SEGMENT == 0:
                where = image_direction.to(tl.int64) * segments + t // SEGMENT
                tl.store(kept + where * N * dim + state_at, h, mask=(n < numbers)[:, None] & (d < channels)[None, :])
        step = tl.load(delta + (row * 4 + direction) * dim + d, mask=d < channels, other=0.0)
        x = tl.load(u + row * dim + d, mask=d < channels, other=0.0)
        b_t = tl.load(b + (row * 4 + direction) * N + n, mask=n < numbers, other=0.0)
        c_t = tl.load(c + (row * 4 + direction) * N + n, mask=n < numbers, other=0.0)
        h = tl.exp2(step[None, :] * rate) * h + b_t[:, None] * (step * x)[None, :]
        out = tl.sum(h * c_t[:, None], 0)
        tl.store(y + (image_direction.to(tl.int64) * length + pixel) * dim + d, out, mask=d < channels)


@triton.jit
def _gradient_kernel(
    u, delta, a, b, c, dy, kept, carried, du, ddelta, db, dc, batch, height, width, dim, chunks, segments,
    N: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, SEGMENT: tl.constexpr,
    PIECE: tl.constexpr,
):  # fmt: skip
    """Gradients of one chunk; ``carried`` is read as what reaches its last state and receives its share of the gradient of A.

    ``du`` is (B, 4, L, D), ``db`` and ``dc`` are (blocks of D, B, L, 4, N).
    """
    chunk, part, image_direction = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    image, direction = (image_direction // 4).to(tl.int64), image_direction % 4
    length = height * width
    n, d = tl.arange(0, BLOCK_N), part * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (n < N)[:, None] & (d < dim)[None, :]
    state_at = n[:, None] * dim + d[None, :]
    rate = tl.load(a + direction * N * dim + state_at, mask=inside, other=0.0)
    carried_at = carried + (image_direction.to(tl.int64) * chunks + chunk) * N * dim + state_at
    g = tl.load(carried_at, mask=inside, other=0.0)
    sum_a = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for back in range(CHUNK // PIECE):
        first = (chunk + 1) * CHUNK - (back + 1) * PIECE
        if first < length:
            where = image_direction.to(tl.int64) * segments + first // SEGMENT
            h = tl.load(kept + where * N * dim + state_at, mask=inside, other=0.0)
            for t in range(first // SEGMENT * SEGMENT, first):  # from the state that was kept to the one before this piece
                row = image * length + _pixel(t, direction, height, width)
                h = _next(h, u, delta, b, row, direction, rate, d, d < dim, n, n < N, dim, N)
            states = (h,)
            for j in tl.static_range(PIECE - 1):
                t = first + j
                channels, numbers = tl.where(t < length, dim, 0), tl.where(t < length, N, 0)
                row = image * length + _pixel(tl.minimum(t, length - 1), direction, height, width)
                h = _next(h, u, delta, b, row, direction, rate, d, d < channels, n, n < numbers, dim, N)
                states = states + (h,)  # type: ignore[assignment]  # noqa: RUF005 (Triton knows no starred tuples)
            for j in tl.static_range(PIECE):
                t = first + PIECE - 1 - j
                channels, numbers = tl.where(t < length, dim, 0), tl.where(t < length, N, 0)
                pixel = _pixel(tl.minimum(t, length - 1), direction, height, width)
                row = image * length + pixel
                at = (row * 4 + direction) * dim + d
                step = tl.load(delta + at, mask=d < channels, other=0.0)
                x = tl.load(u + row * dim + d, mask=d < channels, other=0.0)
                out = tl.load(dy + row * dim + d, mask=d < channels, other=0.0)
                b_t = tl.load(b + (row * 4 + direction) * N + n, mask=n < numbers, other=0.0)
                c_t = tl.load(c + (row * 4 + direction) * N + n, mask=n < numbers, other=0.0)
                before = states[PIECE - 1 - j]
                scaled = (step * x)[None, :]
                decay = tl.exp2(step[None, :] * rate * LOG2E)
                dh = g + c_t[:, None] * out[None, :]
                h = decay * before + b_t[:, None] * scaled
                dx = tl.sum(dh * b_t[:, None], 0)
                g = dh * decay
                exponent = g * before  # gradient of delta_t A
                sum_a += exponent * step[None, :]
                tl.store(ddelta + at, tl.sum(exponent * rate, 0) + dx * x, mask=d < channels)
                tl.store(du + (image_direction.to(tl.int64) * length + pixel) * dim + d, dx * step, mask=d < channels)
                share = (((part * batch + image) * length + pixel) * 4 + direction) * N + n
                tl.store(db + share, tl.sum(dh * scaled, 1), mask=n < numbers)
                tl.store(dc + share, tl.sum(h * out[None, :], 1), mask=n < numbers)
    tl.store(carried_at, sum_a, mask=inside)


@triton.jit
def _next(h, u, delta, b, row, direction, rate, d, channels, n, numbers, dim, N: tl.constexpr):
    """State after a pixel; ``channels`` and ``numbers`` are masks of d and n."""
    step = tl.load(delta + (row * 4 + direction) * dim + d, mask=channels, other=0.0)
    x = tl.load(u + row * dim + d, mask=channels, other=0.0)
    b_t = tl.load(b + (row * 4 + direction) * N + n, mask=numbers, other=0.0)
    return tl.exp2(step[None, :] * rate * LOG2E) * h + b_t[:, None] * (step * x)[None, :]


def _starts(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, reverse: bool) -> Tensor:
    """State that each chunk begins with, or gradient that reaches its end: ``(B, 4, chunks, N, D)``."""
    batch, height, width, dim = u.shape
    n = a.shape[1]
    chunks, block = triton.cdiv(height * width, CHUNK), _block(dim, BLOCK_D)
    starts, total = u.new_empty(batch, DIRECTIONS, chunks, n, dim), u.new_empty(batch, DIRECTIONS, chunks, dim)
    sizes = (n, triton.next_power_of_2(n), block)
    parts, maps = triton.cdiv(dim, block), batch * DIRECTIONS
    _summary_kernel[(chunks, parts, maps)](
        u, delta, a, b, starts, total, height, width, dim, chunks, *sizes, CHUNK, reverse, num_warps=1
    )  # fmt: skip
    _carry_kernel[(parts, maps)](a, starts, total, dim, chunks, *sizes, reverse, num_warps=1)
    return starts


def _block(dim: int, most: int) -> int:
    return min(most, triton.next_power_of_2(dim))


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, keep: bool) -> Tensor:
        u, delta, a, b, c = (t.contiguous() for t in (u, delta, a, b, c))
        batch, height, width, dim = u.shape
        n, length = a.shape[1], height * width
        chunks, segments, block = triton.cdiv(length, CHUNK), triton.cdiv(length, SEGMENT), _block(dim, BLOCK_D)
        y = u.new_empty(batch, DIRECTIONS, height, width, dim)
        keep = keep and any(ctx.needs_input_grad)
        kept = u.new_empty(batch, DIRECTIONS, segments, n, dim) if keep else None
        with torch.cuda.device_of(u):  # Triton launches on the current GPU; a backward pass runs on that of its tensors anyway
            starts = _starts(u, delta, a, b, reverse=False)
            _output_kernel[(chunks, triton.cdiv(dim, block), batch * DIRECTIONS)](
                u, delta, a, b, c, starts, y, kept, height, width, dim, chunks, segments,
                n, triton.next_power_of_2(n), block, CHUNK, SEGMENT, keep, num_warps=1,
            )  # fmt: skip
        if keep:
            ctx.save_for_backward(u, delta, a, b, c, kept)
        return y.sum(1)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, a, b, c, kept = ctx.saved_tensors
        dy = gradients[0].float().contiguous()
        batch, height, width, dim = u.shape
        n, length = a.shape[1], height * width
        chunks, segments, block = triton.cdiv(length, CHUNK), triton.cdiv(length, SEGMENT), _block(dim, BLOCK_D_GRADIENTS)
        parts = triton.cdiv(dim, block)
        carried = _starts(dy, delta, a, c, reverse=True)
        du, ddelta = u.new_empty(batch, DIRECTIONS, height, width, dim), torch.empty_like(delta)
        db, dc = b.new_empty(parts, *b.shape), c.new_empty(parts, *c.shape)
        _gradient_kernel[(chunks, parts, batch * DIRECTIONS)](
            u, delta, a, b, c, dy, kept, carried, du, ddelta, db, dc, batch, height, width, dim, chunks, segments,
            n, triton.next_power_of_2(n), block, CHUNK, SEGMENT, PIECE, num_warps=1,
        )  # fmt: skip
        return du.sum(1), ddelta, carried.sum((0, 2)), db.sum(0), dc.sum(0), None


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Scan a map along rows, columns and both from the end, and sum the four; with gradients for all arguments.

    Args:
        u: ``(B, H, W, D)`` float32.
        delta: step sizes ``(B, H, W, 4, D)``, not negative.
        a: ``(4, D, N)``, not positive.
        b: ``(B, H, W, 4, N)``.
        c: ``(B, H, W, 4, N)``.

    Returns:
        ``(B, H, W, D)`` float32.

    Raises:
        ValueError: shapes that do not go together, or another type than float32.
    """
    *where, dim = u.shape
    n = a.shape[-1]
    wanted = [(*where, DIRECTIONS, dim), (DIRECTIONS, dim, n), (*where, DIRECTIONS, n), (*where, DIRECTIONS, n)]
    if u.dim() != 4 or [tuple(t.shape) for t in (delta, a, b, c)] != wanted:
        raise ValueError(f"the shapes of delta, a, b and c do not go with u {tuple(u.shape)}: wanted {wanted}")
    if any(t.dtype != torch.float32 for t in (u, delta, a, b, c)):
        raise ValueError("the kernels take float32 only")
    return _SelectiveScan.apply(u, delta, a.transpose(1, 2), b, c, torch.is_grad_enabled())

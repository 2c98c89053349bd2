"""The selective scan of Mamba (Gu & Dao, arXiv 2312.00752, equation 2 discretized by its equation 4) in plain torch.

For every group k and channel d a state of N numbers runs along the sequence:

    h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t        y_t = C_t . h_t

Shapes, here and wherever scans are called: ``u`` and ``delta`` are ``(B, L, K, D)``, ``b`` and ``c`` ``(B, L, K, N)``, ``a`` is
``(K, D, N)`` with negative entries; the result is ``(B, L, K, D)``. The skip ``D u`` and softplus are the caller's.

:func:`sequential_scan` is the formula, :func:`selective_scan` the same values at a fraction of time and memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

STEPS = 64  # largest number of positions in a segment
# numbers in the states that run side by side: on a CPU few enough for the nearest cache, elsewhere enough to fill the device
STATES_CPU = 2**13
STATES_ACCELERATOR = 2**22
LOG2E = math.log2(math.e)  # torch.exp2 is several times faster than torch.exp on CPUs


def sequential_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """One position after the other, all decays and inputs computed beforehand, as in the reference code of Mamba and VMamba."""
    decay = torch.exp(torch.einsum("blkd,kdn->blkdn", delta, a))
    x = torch.einsum("blkd,blkn->blkdn", delta * u, b)
    h = torch.zeros_like(x[:, 0])
    y = []
    for decay_t, x_t, c_t in zip(decay.unbind(1), x.unbind(1), c.unbind(1), strict=True):
        h = decay_t * h + x_t
        y.append(torch.einsum("bkdn,bkn->bkd", h, c_t))
    return torch.stack(y, 1)


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The scan in float32, with gradients, memory linear in the length and far below one state per position.

    The sequence is cut into blocks, a block into segments of up to :data:`STEPS`. The segments of a block run side by side,
    first from zero to learn what each adds, then from the states that follow. Between forward and backward only the state at the
    beginning of each block is kept.
    """
    # state and decay are (.., K, N, D): the longest axis innermost
    return _SelectiveScan.apply(*(t.float() for t in (u, delta, a.transpose(1, 2), b, c)))


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        batch = u.shape[0]
        h = u.new_zeros(batch, *a.shape)
        y, starts = torch.empty_like(u), []
        rate = a * LOG2E
        for span, segments in _blocks(u, a):
            block_delta, block_u, block_b, block_c = (_cut(t[:, span], segments) for t in (delta, u, b, c))
            x = block_delta * block_u
            starts.append(h)
            state = _starts(block_delta, x, rate, block_b, h)
            out, work = torch.empty_like(x), torch.empty_like(state)
            for out_t, d_t, x_t, b_t, c_t in zip(out, *_rows(block_delta, x), *_columns(block_b, block_c), strict=True):
                _advance(state, d_t, x_t, rate, b_t, work)
                torch.sum(torch.mul(state, c_t, out=work), dim=-2, out=out_t)
            h = state.unflatten(0, (batch, segments))[:, -1].clone()
            y[:, span] = _join(out, segments, y[:, span].shape[1])
        ctx.save_for_backward(u, delta, a, b, c, *starts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        u, delta, a, b, c, *starts = ctx.saved_tensors
        dy = gradients[0].float()
        batch, rate = u.shape[0], a * LOG2E
        du, ddelta, db, dc = (torch.empty_like(t) for t in (u, delta, b, c))
        da = torch.zeros_like(a)
        carried = torch.zeros_like(starts[0])  # what later blocks send back to the last state of this one
        for (span, segments), h in reversed(list(zip(_blocks(u, a), starts, strict=True))):
            seg_delta, seg_u, seg_b, seg_c, seg_dy = (_cut(t[:, span], segments) for t in (delta, u, b, c, dy))
            x = seg_delta * seg_u
            first = _starts(seg_delta, x, rate, seg_b, h)
            states = first.new_empty(len(x) + 1, *first.shape)
            states[0] = first
            work = torch.empty_like(first)
            (delta_rows, x_rows, dy_rows), (b_columns, c_columns) = _rows(seg_delta, x, seg_dy), _columns(seg_b, seg_c)
            at = states.unbind(0)
            for t in range(len(x)):
                torch.exp2(torch.mul(delta_rows[t], rate, out=work), out=work)
                torch.mul(work, at[t], out=at[t + 1]).addcmul_(x_rows[t], b_columns[t])
            # the same recurrence runs backwards for the gradient of the state: dh_t = C_t dy_t + exp(delta_{t+1} A) dh_{t+1}
            g = _ends(seg_delta, seg_dy, rate, seg_c, carried)
            dx, dd, sum_a = torch.empty_like(x), torch.empty_like(x), torch.zeros_like(first)
            out_b, out_c = torch.empty_like(seg_b), torch.empty_like(seg_c)
            for t in reversed(range(len(x))):
                g.addcmul_(c_columns[t], dy_rows[t])
                torch.sum(torch.mul(at[t + 1], dy_rows[t], out=work), dim=-1, out=out_c[t])
                torch.sum(torch.mul(g, x_rows[t], out=work), dim=-1, out=out_b[t])
                torch.sum(torch.mul(g, b_columns[t], out=work), dim=-2, out=dx[t])
                g.mul_(torch.exp2(torch.mul(delta_rows[t], rate, out=work), out=work))
                torch.mul(g, at[t], out=work)  # gradient of delta_t A
                sum_a.addcmul_(work, delta_rows[t])
                torch.sum(work.mul_(a), dim=-2, out=dd[t])
            carried = g.unflatten(0, (batch, segments))[:, 0].clone()
            da += sum_a.sum(0)
            length = u[:, span].shape[1]
            du[:, span] = _join(dx * seg_delta, segments, length)
            ddelta[:, span] = _join(dd.addcmul_(dx, seg_u), segments, length)
            db[:, span], dc[:, span] = _join(out_b, segments, length), _join(out_c, segments, length)
        return du, ddelta, da, db, dc


def _blocks(u: Tensor, a: Tensor) -> Iterator[tuple[slice, int]]:
    """Spans of positions, and the number of segments that each is cut into."""
    batch, length = u.shape[:2]
    most = max(1, (STATES_CPU if u.device.type == "cpu" else STATES_ACCELERATOR) // (batch * a.numel()))
    for start in range(0, length, most * STEPS):
        stop = min(start + most * STEPS, length)
        yield slice(start, stop), -(-(stop - start) // STEPS)


def _cut(x: Tensor, segments: int) -> Tensor:
    """``(B, length, K, X)`` to ``(steps, B * segments, K, X)``; what is added at the end is zero and so changes no state."""
    batch, length = x.shape[:2]
    steps = -(-length // segments)
    if steps * segments != length:
        x = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, segments * steps - length))
    return x.reshape(batch * segments, steps, *x.shape[2:]).transpose(0, 1).contiguous()


def _join(x: Tensor, segments: int, length: int) -> Tensor:
    """Inverse of :func:`_cut`."""
    x = x.transpose(0, 1)
    return x.reshape(-1, segments * x.shape[1], *x.shape[2:])[:, :length]


def _rows(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """``(steps, M, K, D)`` to one ``(M, K, 1, D)`` per step."""
    return [t.unsqueeze(-2).unbind(0) for t in tensors]


def _columns(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """``(steps, M, K, N)`` to one ``(M, K, N, 1)`` per step."""
    return [t.unsqueeze(-1).unbind(0) for t in tensors]


def _advance(h: Tensor, delta: Tensor, x: Tensor, rate: Tensor, b: Tensor, work: Tensor) -> None:
    """One step of the recurrence, in place; ``rate`` is A in powers of two."""
    torch.exp2(torch.mul(delta, rate, out=work), out=work)
    h.mul_(work).addcmul_(x, b)


def _starts(delta: Tensor, x: Tensor, rate: Tensor, b: Tensor, h: Tensor) -> Tensor:
    """State before the first position of each segment, ``(B * segments, K, N, D)``, when ``h`` precedes the block."""
    batch, segments = h.shape[0], delta.shape[1] // h.shape[0]
    if segments == 1:
        return h.clone()
    added = delta.new_zeros(delta.shape[1], *rate.shape)
    work = torch.empty_like(added)
    for d_t, x_t, b_t in zip(*_rows(delta, x), *_columns(b), strict=True):
        _advance(added, d_t, x_t, rate, b_t, work)
    decay = torch.exp2(delta.sum(0).unsqueeze(-2) * rate).unflatten(0, (batch, segments))
    added, starts = added.unflatten(0, (batch, segments)), [h]
    for s in range(segments - 1):
        starts.append(decay[:, s] * starts[-1] + added[:, s])
    return torch.stack(starts, 1).flatten(0, 1)


def _ends(delta: Tensor, dy: Tensor, rate: Tensor, c: Tensor, g: Tensor) -> Tensor:
    """What later positions send back to the last state of each segment, when ``g`` arrives at the end of the block."""
    batch, segments = g.shape[0], delta.shape[1] // g.shape[0]
    if segments == 1:
        return g.clone()
    sent = delta.new_zeros(delta.shape[1], *rate.shape)
    work = torch.empty_like(sent)
    for d_t, dy_t, c_t in reversed(list(zip(*_rows(delta, dy), *_columns(c), strict=True))):
        sent.addcmul_(c_t, dy_t)
        sent.mul_(torch.exp2(torch.mul(d_t, rate, out=work), out=work))
    decay = torch.exp2(delta.sum(0).unsqueeze(-2) * rate).unflatten(0, (batch, segments))
    sent, ends = sent.unflatten(0, (batch, segments)), [g]
    for s in reversed(range(1, segments)):
        ends.append(decay[:, s] * ends[-1] + sent[:, s])
    return torch.stack(ends[::-1], 1).flatten(0, 1)

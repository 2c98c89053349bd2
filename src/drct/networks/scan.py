"""The selective scan of Mamba (Gu & Dao, arXiv 2312.00752, equation 2 discretized by its equation 4) in plain torch.

For every group k and channel d a state of N numbers runs along the sequence:

    h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t        y_t = C_t . h_t

Shapes, here and wherever scans are called: ``u`` and ``delta`` are ``(B, L, K, D)``, ``b`` and ``c`` ``(B, L, K, N)``, ``a`` is
``(K, D, N)`` with negative entries; the result is ``(B, L, K, D)``. The skip ``D u`` and softplus are the caller's.

:func:`sequential_scan` is the formula, :func:`selective_scan` the same values at a fraction of time and memory.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from drct.networks.derivatives import first_derivative_only

STEPS = 64  # largest number of positions in a segment
FEWEST_STEPS = 16  # so many even where that leaves the cache
# numbers in the states of segments that run side by side; times STEPS, those of a block: on a CPU they stay in its caches
STATES_CPU = 2**13
STATES_ACCELERATOR = 2**20
LOG2E = math.log2(math.e)  # torch.exp2 is several times faster than torch.exp on CPUs

Half = TypeVar("Half", bound=Callable[..., Any])


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

    The sequence is cut into blocks, a block into segments of up to :data:`STEPS`. All decays and inputs of a block are computed at
    once, so that a step of the recurrence is a single multiplication and addition for all segments side by side; segments run
    from zero first to learn what each adds, then from the states that follow. Between forward and backward only the state at the
    beginning of each block is kept.
    """
    # state and decay are (.., K, N, D): the longest axis innermost
    return _SelectiveScan.apply(*(t.float() for t in (u, delta, a.transpose(1, 2).contiguous(), b, c)))


def _without_autocast(function: Half) -> Half:
    """For both halves of an autograd function, whose matrix products autocast would do in half precision."""

    @functools.wraps(function)
    def run(ctx: Any, first: Tensor, *others: Tensor) -> Any:
        kind = first.device.type
        if not torch.amp.is_autocast_available(kind):  # on "meta", for one
            return function(ctx, first, *others)
        with torch.autocast(kind, enabled=False):
            return function(ctx, first, *others)

    return run  # type: ignore[return-value]


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    @_without_autocast
    def forward(ctx: Any, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        batch = u.shape[0]
        h = u.new_zeros(batch, *a.shape)
        y, starts = torch.empty_like(u), []
        rate = a * LOG2E
        if u.is_meta:  # nothing to compute: what is kept counts, and what blocks need on the way
            blocks = list(_blocks(u, a))
            ctx.save_for_backward(u, delta, a, b, c, *h.new_empty(len(blocks), *h.shape).unbind())
            held = []
            for span, segments in blocks[:2]:  # the states of a block go only when those of the next one are there
                cuts = [_cut(t[:, span], segments) for t in (delta, u, b, c)]
                steps, segments_in_all = cuts[0].shape[:2]
                held.append((torch.empty_like(cuts[0]), h.new_empty(2 * steps + 1, segments_in_all, *h.shape[1:])))
            return y
        for span, segments in _blocks(u, a):
            block_delta, block_u, block_b, block_c = (_cut(t[:, span], segments) for t in (delta, u, b, c))
            starts.append(h)
            states, _ = _states(block_delta, block_delta * block_u, rate, block_b, h)
            out = torch.matmul(block_c.unsqueeze(-2), states[1:]).squeeze(-2)
            h = states[-1].unflatten(0, (batch, segments))[:, -1].clone()
            y[:, span] = _join(out, segments, y[:, span].shape[1])
        ctx.save_for_backward(u, delta, a, b, c, *starts)
        return y

    @staticmethod
    @first_derivative_only
    @_without_autocast
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        u, delta, a, b, c, *starts = ctx.saved_tensors
        dy = gradients[0].float()
        batch, rate = u.shape[0], a * LOG2E
        du, ddelta, db, dc = (torch.empty_like(t) for t in (u, delta, b, c))
        da = torch.zeros_like(a)
        carried = torch.zeros_like(starts[0])  # what later blocks send back to the last state of this one
        for (span, segments), h in reversed(list(zip(_blocks(u, a), starts, strict=True))):
            length = u[:, span].shape[1]
            seg_delta, seg_u, seg_b, seg_c, seg_dy = (_cut(t[:, span], segments) for t in (delta, u, b, c, dy))
            x = seg_delta * seg_u
            states, decay = _states(seg_delta, x, rate, seg_b, h)
            work = torch.mul(states[1:], seg_dy.unsqueeze(-2))  # and a sum: several times faster than small matrix products
            dc[:, span] = _join(work.sum(-1), segments, length)
            # the same recurrence runs backwards for the gradient of the state: dh_t = C_t dy_t + exp(delta_{t+1} A) dh_{t+1}
            dh = seg_c.unsqueeze(-1) * seg_dy.unsqueeze(-2)
            dh[-1] += _ends(decay, dh, seg_delta, rate, carried)
            for now, decay_t, later in _backwards(dh, decay):
                now.addcmul_(decay_t, later)
            db[:, span] = _join(torch.mul(dh, x.unsqueeze(-2), out=work).sum(-1), segments, length)
            dx = torch.matmul(seg_b.unsqueeze(-2), dh).squeeze(-2)
            dh *= decay  # now that of the state before
            carried = dh[0].unflatten(0, (batch, segments))[:, 0].clone()
            dh *= states[:-1]  # now that of delta_t A
            da += torch.mul(dh, seg_delta.unsqueeze(-2), out=work).sum((0, 1))
            dh *= a
            ddelta[:, span] = _join(dh.sum(-2).addcmul_(dx, seg_u), segments, length)
            du[:, span] = _join(dx * seg_delta, segments, length)
        return du, ddelta, da, db, dc


def _blocks(u: Tensor, a: Tensor) -> Iterator[tuple[slice, int]]:
    """Spans of positions, and the number of segments that each is cut into."""
    batch, length = u.shape[:2]
    states = STATES_CPU if u.device.type in ("cpu", "meta") else STATES_ACCELERATOR
    segments = max(1, states // (batch * a.numel()))
    steps = min(STEPS, max(FEWEST_STEPS, states * STEPS // (batch * a.numel())))
    for start in range(0, length, segments * steps):
        stop = min(start + segments * steps, length)
        yield slice(start, stop), -(-(stop - start) // steps)


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


def _states(delta: Tensor, x: Tensor, rate: Tensor, b: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """All states of a block when ``h`` precedes it, and the decays that lead to them.

    Args:
        delta: cut, ``(steps, M, K, D)`` with M = B * segments.
        x: delta u, same shape.
        rate: A in powers of two, ``(K, N, D)``.
        b: ``(steps, M, K, N)``.
        h: ``(B, K, N, D)``.

    Returns:
        States ``(steps + 1, M, K, N, D)``, the first of which precedes each segment, and decays ``(steps, M, K, N, D)``.
    """
    decay = torch.mul(delta.unsqueeze(-2), rate).exp2_()
    states = decay.new_empty(len(decay) + 1, *decay.shape[1:])
    torch.mul(x.unsqueeze(-2), b.unsqueeze(-1), out=states[1:])
    states[0] = _starts(decay, states[1:], delta, rate, h)
    rows = states.unbind(0)
    for before, decay_t, now in zip(rows, decay.unbind(0), rows[1:], strict=False):
        now.addcmul_(decay_t, before)
    return states, decay


def _starts(decay: Tensor, added: Tensor, delta: Tensor, rate: Tensor, h: Tensor) -> Tensor:
    """State before the first position of each segment, ``(M, K, N, D)``, when ``h`` precedes the block."""
    batch, segments = h.shape[0], added.shape[1] // h.shape[0]
    if segments == 1:
        return h
    state = added[0].clone()
    for decay_t, added_t in zip(decay.unbind(0)[1:], added.unbind(0)[1:], strict=True):
        torch.addcmul(added_t, decay_t, state, out=state)
    total = torch.exp2(delta.sum(0).unsqueeze(-2) * rate).unflatten(0, (batch, segments))
    state, starts = state.unflatten(0, (batch, segments)), [h]
    for s in range(segments - 1):
        starts.append(total[:, s] * starts[-1] + state[:, s])
    return torch.stack(starts, 1).flatten(0, 1)


def _backwards(sent: Tensor, decay: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """From the last step but one: what is sent to its state, the decay of the step after it, and what is sent to that."""
    rows = sent.unbind(0)
    return zip(rows[-2::-1], decay.unbind(0)[:0:-1], rows[:0:-1], strict=True)


def _ends(decay: Tensor, sent: Tensor, delta: Tensor, rate: Tensor, g: Tensor) -> Tensor:
    """What later positions send back to the last state of each segment, when ``g`` arrives at the end of the block."""
    batch, segments = g.shape[0], sent.shape[1] // g.shape[0]
    if segments == 1:
        return g
    state = sent[-1].clone()
    for now, decay_t, _ in _backwards(sent, decay):
        torch.addcmul(now, decay_t, state, out=state)
    total = torch.exp2(delta.sum(0).unsqueeze(-2) * rate).unflatten(0, (batch, segments))
    state, ends = (state * decay[0]).unflatten(0, (batch, segments)), [g]
    for s in reversed(range(1, segments)):
        ends.append(total[:, s] * ends[-1] + state[:, s])
    return torch.stack(ends[::-1], 1).flatten(0, 1)

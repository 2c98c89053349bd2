"""SS2D's four selective scans by the C kernel of ``selective_scan.c``: values and gradients on CPU tensors."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from drct.engine.native.build import load_library, reason_against
from drct.networks.derivatives import first_derivative_only

SOURCE = "selective_scan.c"
D_STATE = 16  # N, WIDE and CHUNK of the kernel
WIDE = 16
CHUNK = 32
DIRECTIONS = 4


class _Shape(ctypes.Structure):
    _fields_ = (*((name, ctypes.c_int64) for name in ("batch", "height", "width", "dim")), ("threads", ctypes.c_int32))


def scan_available() -> str | None:
    """None when the kernel can be used here, else the reason why not."""
    return reason_against(SOURCE)


def _shape(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> _Shape:
    batch, height, width, dim = u.shape
    wanted = [(batch, height, width, DIRECTIONS, dim), (DIRECTIONS, D_STATE, dim)] + 2 * [
        (batch, height, width, DIRECTIONS, D_STATE)
    ]
    if [tuple(t.shape) for t in (delta, a, b, c)] != wanted:
        raise ValueError(f"the shapes of delta, a, b and c do not go with u {tuple(u.shape)}: wanted {wanted}")
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in (u, delta, a, b, c)):
        raise ValueError("the kernel takes float32 on the CPU only")
    return _Shape(batch, height, width, dim, torch.get_num_threads())


def _pointers(*tensors: Tensor | None) -> list[ctypes.c_void_p]:
    return [ctypes.c_void_p(None if t is None else t.data_ptr()) for t in tensors]


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("the selective scan could not allocate its work space")


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor, keep: bool) -> Tensor:
        u, delta, a, b, c = (t.contiguous() for t in (u, delta, a, b, c))
        shape = _shape(u, delta, a, b, c)
        batch, height, width, dim = u.shape
        y = torch.empty_like(u)
        states = None
        if keep and any(ctx.needs_input_grad):
            blocks, chunks = -(-dim // WIDE), -(-height * width // CHUNK)
            states = u.new_empty(batch, DIRECTIONS, blocks, chunks, D_STATE, WIDE)
            ctx.save_for_backward(u, delta, a, b, c, states)
        run = load_library(SOURCE).drct_selective_scan_forward
        _check(run(ctypes.byref(shape), *_pointers(u, delta, a, b, c, y, states)))
        return y

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, a, b, c, states = ctx.saved_tensors
        shape = _shape(u, delta, a, b, c)
        batch, height, width, dim = u.shape
        dy = gradients[0].float().contiguous()
        # enough shares of the channels for all threads; every share is summed by itself
        parts = min(-(-dim // WIDE), -(-torch.get_num_threads() // (batch * DIRECTIONS)))
        du = u.new_empty(batch, DIRECTIONS, height, width, dim)
        ddelta, da = torch.empty_like(delta), a.new_empty(batch, *a.shape)
        db, dc = b.new_empty(parts, *b.shape), c.new_empty(parts, *c.shape)
        run = load_library(SOURCE).drct_selective_scan_backward
        pointers = _pointers(u, delta, a, b, c, states, dy, du, ddelta, da, db, dc)
        _check(run(ctypes.byref(shape), *pointers, ctypes.c_int64(parts)))
        return du.sum(1), ddelta, da.sum(0), db.sum(0), dc.sum(0), None


def selective_scan(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Scan a map along rows, columns and both from the end, and sum the four; with gradients for all arguments.

    Args:
        u: ``(B, H, W, D)`` float32.
        delta: step sizes ``(B, H, W, 4, D)``, not negative.
        a: ``(4, D, 16)``, not positive.
        b: ``(B, H, W, 4, 16)``.
        c: ``(B, H, W, 4, 16)``.

    Returns:
        ``(B, H, W, D)``.
    """
    return _SelectiveScan.apply(u, delta, a.transpose(1, 2), b, c, torch.is_grad_enabled())


def ss2d_scan(u: Tensor, low: Tensor, weight: Tensor, bias: Tensor, a: Tensor, skip: Tensor) -> Tensor:
    """What SS2D computes between ``x_proj`` and its norm, without gradients: step sizes, the four scans, their sum, the skip.

    Args:
        u: ``(B, H, W, D)`` float32, contiguous, as all others.
        low: what ``x_proj`` makes of each pixel, ``(B, H, W, 4, R + 32)``: R numbers for the step sizes, B and C.
        weight: ``(4, R, D)``, and
        bias: ``(4, D)``: make the step sizes before softplus.
        a: ``(4, 16, D)``, not positive.
        skip: ``(D)``, sum of the four directions' factors.

    Returns:
        ``(B, H, W, D)``.
    """
    batch, height, width, dim = u.shape
    rank = weight.shape[1]
    wanted = [(batch, height, width, DIRECTIONS, rank + 2 * D_STATE), (DIRECTIONS, rank, dim), (DIRECTIONS, dim)]
    wanted += [(DIRECTIONS, D_STATE, dim), (dim,)]
    given = (low, weight, bias, a, skip)
    if [tuple(t.shape) for t in given] != wanted:
        raise ValueError(f"the shapes of low, weight, bias, a and skip do not go with u {tuple(u.shape)}: wanted {wanted}")
    if any(t.dtype != torch.float32 or t.device.type != "cpu" or not t.is_contiguous() for t in (u, *given)):
        raise ValueError("the kernel takes contiguous float32 on the CPU only")
    y = torch.empty_like(u)
    shape = _Shape(batch, height, width, dim, torch.get_num_threads())
    run = load_library(SOURCE).drct_ss2d_scan
    _check(run(ctypes.byref(shape), ctypes.c_int64(rank), *_pointers(u, *given, y)))
    return y

"""The second half of a Swin block by the C kernel of ``feed_forward.c``: float32 on the CPU, with gradients."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

import torch
from torch import Tensor

from drct.engine.native.build import (
    gradients_of_parameters,
    load_library,
    plain_floats,
    pointer,
    reason_against,
    reason_unmeasured,
    run,
)
from drct.engine.native.swin_layer import NormStructure
from drct.networks.derivatives import first_derivative_only

SOURCE = "feed_forward.c"
MEMORY = "the second half of a Swin block could not allocate its work space"


class _Sizes(ctypes.Structure):
    _fields_ = (*((name, ctypes.c_int64) for name in ("batch", "rows", "dim", "hidden", "out")), ("threads", ctypes.c_int32))


class _Layer(ctypes.Structure):
    _fields_ = (
        ("norm", NormStructure),
        *((name, ctypes.c_void_p) for name in ("fc1", "fc1_bias", "residual", "residual_bias", "last", "last_bias", "factors")),
    )


class _Gradients(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("gain", "offset", "fc1", "residual", "last", "fc1_bias", "bias"))


@dataclasses.dataclass(frozen=True)
class FeedForward:
    """Parameters of :func:`feed_forward`; weights are ``(outputs, inputs)``, biases may be None.

    Attributes:
        gain, offset, eps: of the norm.
        fc1, fc1_bias: ``(hidden, C)``.
        last, last_bias: ``(out, hidden)``.
        residual, residual_bias: ``(out, C)``; None adds the input itself, and out is C.
    """

    gain: Tensor
    offset: Tensor
    eps: float
    fc1: Tensor
    fc1_bias: Tensor | None
    last: Tensor
    last_bias: Tensor | None
    residual: Tensor | None = None
    residual_bias: Tensor | None = None


def feed_forward_available() -> str | None:
    """None when the kernel can be used here and has been measured to be the faster way, else the reason why not."""
    return reason_against(SOURCE) or reason_unmeasured(load_library(SOURCE).drct_feed_forward_lanes())


def _row(columns: int) -> int:
    measure = load_library(SOURCE).drct_feed_forward_row
    measure.restype = ctypes.c_int64
    return int(measure(ctypes.c_int64(columns)))


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, factors: Tensor | None, eps: float, *parameters: Tensor | None) -> Tensor:
        gain, offset, fc1, fc1_bias, last, last_bias, residual, residual_bias = parameters
        assert fc1 is not None
        assert last is not None
        batch, dim, (out, hidden) = len(u), u.shape[-1], last.shape
        sizes = _Sizes(batch, u[0].numel() // dim, dim, hidden, out, torch.get_num_threads())
        kept = u.new_empty(*u.shape[:-1], _row(hidden))
        y = u.new_empty(*u.shape[:-1], out)
        norm = NormStructure(pointer(gain), pointer(offset), eps)
        layer = _Layer(norm, *map(pointer, (fc1, fc1_bias, residual, residual_bias, last, last_bias, factors)))
        run(load_library(SOURCE).drct_feed_forward, MEMORY, ctypes.byref(sizes), ctypes.byref(layer), u, kept, y)
        ctx.save_for_backward(u, kept, factors, gain, offset, fc1, last, residual)
        ctx.sizes, ctx.eps = sizes, eps
        return y

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        u, kept, factors, gain, offset, fc1, last, residual = ctx.saved_tensors
        sizes: _Sizes = ctx.sizes
        dim, hidden, out, parts = sizes.dim, sizes.hidden, sizes.out, sizes.threads  # one sum for each thread
        wide, tall, narrow = map(_row, (dim, hidden, out))
        dgain, doffset = u.new_zeros(2, parts, wide)
        dfc1, dlast = u.new_zeros(parts, hidden, wide), u.new_zeros(parts, out, tall)
        dresidual = None if residual is None else u.new_zeros(parts, out, wide)
        dfc1_bias, dbias = u.new_zeros(parts, tall), u.new_zeros(parts, 2, narrow)
        du, dy = torch.empty_like(u), dy.contiguous()
        norm = NormStructure(pointer(gain), pointer(offset), ctx.eps)
        layer = _Layer(norm, *map(pointer, (fc1, None, residual, None, last, None, factors)))
        frozen = not any(ctx.needs_input_grad[3:])
        weights = (None,) * 5 if frozen else (dfc1, dresidual, dlast, dfc1_bias, dbias)
        gradients = _Gradients(*map(pointer, (dgain, doffset, *weights)))
        function = load_library(SOURCE).drct_feed_forward_backward
        structures = map(ctypes.byref, (sizes, layer))
        run(function, MEMORY, *structures, u, kept, dy, du, ctypes.byref(gradients), ctypes.c_int64(parts))
        if frozen:
            return (du, *(None,) * 10)
        of_biases = dbias.sum(0)[:, :out]
        found = (
            dgain.sum(0)[:dim],
            doffset.sum(0)[:dim],
            dfc1.sum(0)[:, :dim],
            dfc1_bias.sum(0)[:hidden],
            dlast.sum(0)[:, :hidden],
            of_biases[1],
            None if dresidual is None else dresidual.sum(0)[:, :dim],
            of_biases[0],
        )
        return (du, None, None, *gradients_of_parameters(found, ctx.needs_input_grad[3:]))


def feed_forward(u: Tensor, layer: FeedForward, factors: Tensor | None = None) -> Tensor:
    """``u residual^T + residual_bias + factor (gelu(norm(u) fc1^T + fc1_bias) last^T + last_bias)``; gradients of first order.

    Args:
        u: ``(B, ..., C)`` float32 on the CPU.
        factors: ``(B)``, such as stochastic depth draws; they get no gradient. None for ones.
    """
    p, dim = layer, u.shape[-1]
    out, hidden = p.last.shape
    if p.fc1.shape != (hidden, dim) or (out, dim) != ((dim, dim) if p.residual is None else tuple(p.residual.shape)):
        raise ValueError(f"weights {tuple(p.fc1.shape)} and {tuple(p.last.shape)} do not go with {dim} channels")
    if factors is not None and factors.shape != u.shape[:1]:
        raise ValueError(f"{tuple(factors.shape)} factors do not go with {len(u)} samples")
    weights = (p.gain, p.offset, p.fc1, p.fc1_bias, p.last, p.last_bias, p.residual, p.residual_bias)
    u, factors, *parameters = plain_floats(u, factors, *weights)
    return _FeedForward.apply(u, factors, p.eps, *parameters)

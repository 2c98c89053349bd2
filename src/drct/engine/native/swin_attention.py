"""Window attention with its projections by the C kernel of ``swin_attention.c``: float32 on the CPU, with gradients."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

import torch
from torch import Tensor

from drct.engine.bias_table import expand_table, gradient_of_expanded
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
from drct.engine.native.window_attention import LOG2E, Shape, supports
from drct.networks.derivatives import first_derivative_only

SOURCE = "swin_attention.c"
MEMORY = "window attention could not allocate its work space"


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("qkv", "qkv_bias", "proj", "proj_bias")),
        ("norm", NormStructure),
        *((name, ctypes.c_void_p) for name in ("factors", "bias")),
    )


class _Gradients(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("qkv", "qkv_bias", "proj", "proj_bias", "gain", "offset", "bias"))


def swin_attention_available() -> str | None:
    """None when the kernel can be used here and has been measured to be the faster way, else the reason why not."""
    return reason_against(SOURCE) or reason_unmeasured(load_library(SOURCE).drct_swin_attention_lanes())


class _SwinAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        qkv: Tensor,
        qkv_bias: Tensor | None,
        proj: Tensor,
        proj_bias: Tensor | None,
        table: Tensor,
        gain: Tensor | None,
        offset: Tensor | None,
        eps: float,
        factors: Tensor | None,
        window: int,
        shift: int,
        scale: float,
    ) -> Tensor:
        batch, height, width, dim = x.shape
        heads = table.shape[1]
        shape = Shape(batch, height, width, heads, dim // heads, window, shift, scale, False, torch.get_num_threads(), True)
        bias = expand_table(table * LOG2E, window)
        library = load_library(SOURCE)
        sizes = [ctypes.c_int64() for _ in range(3)]
        library.drct_swin_attention_sizes(ctypes.byref(shape), *map(ctypes.byref, sizes))
        padded_head, heads_stride, _ = ctx.sizes = [size.value for size in sizes]
        n, windows = window**2, batch * height * width // window**2
        kept = x.new_empty(windows, heads, 3, n, padded_head)
        attended = x.new_empty(windows, n, heads_stride)
        y = torch.empty_like(x)
        norm = NormStructure(pointer(gain), pointer(offset), eps)
        layer = _Layer(*map(pointer, (qkv, qkv_bias, proj, proj_bias)), norm, pointer(factors), pointer(bias))
        run(library.drct_swin_attention_forward, MEMORY, ctypes.byref(shape), ctypes.byref(layer), x, kept, attended, y)
        ctx.save_for_backward(x, qkv, proj, gain, offset, factors, bias, kept, attended)
        ctx.shape, ctx.eps = shape, eps
        return y

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, qkv, proj, gain, offset, factors, bias, kept, attended = ctx.saved_tensors
        shape: Shape = ctx.shape
        padded_head, heads_stride, row = ctx.sizes
        d, dim, heads, parts = shape.head_dim, x.shape[-1], shape.heads, shape.threads  # one sum for each thread
        frozen = not any(ctx.needs_input_grad[1:])
        dqkv, dqkv_bias = x.new_zeros(parts, heads, 3, padded_head, row), x.new_zeros(parts, heads, 3, padded_head)
        dproj, dproj_bias = x.new_zeros(parts, dim, heads_stride), x.new_zeros(parts, row)
        dgain, doffset, dbias = x.new_zeros(parts, row), x.new_zeros(parts, row), x.new_zeros(parts, *bias.shape)
        norm = NormStructure(pointer(gain), pointer(offset), ctx.eps)
        layer = _Layer(*map(pointer, (qkv, None, proj, None)), norm, pointer(factors), pointer(bias))
        weights = (None,) * 4 if frozen else (dqkv, dqkv_bias, dproj, dproj_bias)
        gradients = _Gradients(*map(pointer, (*weights, dgain, doffset, dbias)))
        dx, dy = torch.empty_like(x), dy.contiguous()
        function, structures = load_library(SOURCE).drct_swin_attention_backward, map(ctypes.byref, (shape, layer))
        sums = (ctypes.byref(gradients), ctypes.c_int64(parts))
        run(function, MEMORY, *structures, x, kept, attended, dy, dx, *sums)
        if frozen:
            return (dx, *(None,) * 12)
        found = (
            dqkv.sum(0)[:, :, :d, :dim].transpose(0, 1).reshape(3 * dim, dim),
            dqkv_bias.sum(0)[:, :, :d].transpose(0, 1).reshape(3 * dim),
            dproj.sum(0)[:, :dim],
            dproj_bias.sum(0)[:dim],
            gradient_of_expanded(dbias.sum(0)),
            dgain.sum(0)[:dim],
            doffset.sum(0)[:dim],
        )
        return (dx, *gradients_of_parameters(found, ctx.needs_input_grad[1:8]), *(None,) * 5)


@dataclasses.dataclass(frozen=True)
class AttentionLayer:
    """Parameters of :func:`swin_attention`; weights are ``(outputs, inputs)``, biases may be None.

    Attributes:
        qkv, qkv_bias: ``(3C, C)``, rows ordered (q|k|v, head, d).
        proj, proj_bias: ``(C, C)``.
        table: relative position bias table ``((2 * window - 1)**2, heads)``.
        window: side in pixels.
        shift: cyclic shift in pixels; the kernel rolls and masks by itself.
        scale: factor of the scores.
        gain, offset, eps: of the norm in front of it, which turns the layer into the first half of a Swin block; None for none.
    """

    qkv: Tensor
    qkv_bias: Tensor | None
    proj: Tensor
    proj_bias: Tensor | None
    table: Tensor
    window: int
    shift: int
    scale: float
    gain: Tensor | None = None
    offset: Tensor | None = None
    eps: float = 0.0


def swin_attention(x: Tensor, layer: AttentionLayer, factors: Tensor | None = None) -> Tensor:
    """``a(x) = proj(softmax(scale q k^T + bias + mask) v)`` with ``q, k, v = qkv(x)``, in all (shifted) windows.

    With a norm it is ``x + factor a(norm(x))``. Gradients are of first order.

    Args:
        x: ``(B, H, W, C)`` float32 on the CPU; H and W multiples of ``window``.
        factors: ``(B)``, with a norm, such as stochastic depth draws; they get no gradient. None for ones.
    """
    heads, dim, window = layer.table.shape[1], x.shape[-1], layer.window
    if x.shape[1] % window or x.shape[2] % window or dim % heads or not supports(window):
        raise ValueError(f"x {tuple(x.shape)} does not go with {heads} heads and window {window}")
    if layer.qkv.shape != (3 * dim, dim) or layer.proj.shape != (dim, dim):
        raise ValueError(f"weights {tuple(layer.qkv.shape)} and {tuple(layer.proj.shape)} do not go with {dim} channels")
    if factors is not None and (layer.gain is None or factors.shape != x.shape[:1]):
        raise ValueError(f"{tuple(factors.shape)} factors go with a norm and as many samples, not with {len(x)}")
    weights = (layer.qkv, layer.qkv_bias, layer.proj, layer.proj_bias, layer.table, layer.gain, layer.offset)
    x, factors, *parameters = plain_floats(x, factors, *weights)
    return _SwinAttention.apply(x, *parameters, layer.eps, factors, window, layer.shift, layer.scale)

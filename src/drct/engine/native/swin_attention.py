"""Window attention with its projections by the C kernel of ``swin_attention.c``: float32 on the CPU, with gradients."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from drct.engine.bias_table import expand_table, gradient_of_expanded
from drct.engine.native.build import load_library, only_measured_on_avx2, pointer, reason_against, run
from drct.engine.native.window_attention import LOG2E, Shape, supports

SOURCE = "swin_attention.c"
MEMORY = "window attention could not allocate its work space"


class _Layer(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("qkv", "qkv_bias", "proj", "proj_bias", "bias"))


class _Gradients(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("qkv", "qkv_bias", "proj", "bias"))


def swin_attention_available() -> str | None:
    """None when the kernel can be used here and has been measured to be the faster way, else the reason why not."""
    return reason_against(SOURCE) or only_measured_on_avx2(load_library(SOURCE).drct_swin_attention_lanes())


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
        window: int,
        shift: int,
        scale: float,
    ) -> Tensor:
        batch, height, width, dim = x.shape
        heads = table.shape[1]
        shape = Shape(batch, height, width, heads, dim // heads, window, shift, scale, False, torch.get_num_threads(), True)
        x, qkv, proj = x.contiguous(), qkv.contiguous(), proj.contiguous()
        bias = expand_table(table * LOG2E, window)
        library = load_library(SOURCE)
        sizes = [ctypes.c_int64() for _ in range(3)]
        library.drct_swin_attention_sizes(ctypes.byref(shape), *map(ctypes.byref, sizes))
        padded_head, heads_stride, _ = ctx.sizes = [size.value for size in sizes]
        n, windows = window**2, batch * height * width // window**2
        kept = x.new_empty(windows, heads, 3, n, padded_head)
        attended = x.new_empty(windows, n, heads_stride)
        y = torch.empty_like(x)
        layer = _Layer(*map(pointer, (qkv, qkv_bias, proj, proj_bias, bias)))
        run(library.drct_swin_attention_forward, MEMORY, ctypes.byref(shape), ctypes.byref(layer), x, kept, attended, y)
        ctx.save_for_backward(x, qkv, proj, bias, kept, attended)
        ctx.shape = shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, qkv, proj, bias, kept, attended = ctx.saved_tensors
        shape: Shape = ctx.shape
        padded_head, heads_stride, row = ctx.sizes
        dim, heads, parts = x.shape[-1], shape.heads, shape.threads
        dx = torch.empty_like(x)
        # one sum for each thread
        dqkv = x.new_zeros(parts, heads, 3, padded_head, row)
        dqkv_bias = x.new_zeros(parts, heads, 3, padded_head)
        dproj = x.new_zeros(parts, dim, heads_stride)
        dbias = x.new_zeros(parts, *bias.shape)
        layer = _Layer(*map(pointer, (qkv, None, proj, None, bias)))
        gradients = _Gradients(*map(pointer, (dqkv, dqkv_bias, dproj, dbias)))
        dy = dy.contiguous()
        run(
            load_library(SOURCE).drct_swin_attention_backward,
            MEMORY,
            *map(ctypes.byref, (shape, layer)),
            *(x, kept, attended, dy, dx),
            ctypes.byref(gradients),
            ctypes.c_int64(parts),
        )
        d = shape.head_dim
        return (
            dx,
            dqkv.sum(0)[:, :, :d, :dim].transpose(0, 1).reshape(3 * dim, dim),
            dqkv_bias.sum(0)[:, :, :d].transpose(0, 1).reshape(3 * dim) if ctx.needs_input_grad[2] else None,
            dproj.sum(0)[:, :dim],
            dy.sum((0, 1, 2)) if ctx.needs_input_grad[4] else None,
            gradient_of_expanded(dbias.sum(0)),
            *(None,) * 3,
        )


def swin_attention(
    x: Tensor,
    qkv: tuple[Tensor, Tensor | None],
    proj: tuple[Tensor, Tensor | None],
    table: Tensor,
    window: int,
    shift: int,
    scale: float,
) -> Tensor:
    """``proj(softmax(scale q k^T + bias + mask) v)`` with ``q, k, v = qkv(x)``, in all (shifted) windows; gradients of first order.

    Args:
        x: ``(B, H, W, C)`` float32 on the CPU; H and W multiples of ``window``.
        qkv: weight ``(3C, C)``, its rows ordered (q|k|v, head, d), and bias.
        proj: weight ``(C, C)`` and bias.
        table: relative position bias table ``((2 * window - 1)**2, heads)``.
        shift: cyclic shift in pixels; the kernel rolls and masks by itself.
        scale: factor of the scores.
    """
    heads, dim = table.shape[1], x.shape[-1]
    if x.shape[1] % window or x.shape[2] % window or dim % heads or not supports(window):
        raise ValueError(f"x {tuple(x.shape)} does not go with {heads} heads and window {window}")
    tensors = [t for t in (x, *qkv, *proj, table) if t is not None]
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in tensors):
        raise ValueError("the kernel takes float32 on the CPU only")
    if qkv[0].shape != (3 * dim, dim) or proj[0].shape != (dim, dim):
        raise ValueError(f"weights {tuple(qkv[0].shape)} and {tuple(proj[0].shape)} do not go with {dim} channels")
    return _SwinAttention.apply(x, *qkv, *proj, table, window, shift, scale)

"""Window attention by the C kernel of ``window_attention.c``: values and gradients on CPU tensors."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from drct.engine.bias_table import table_gradient
from drct.engine.native.build import load_library, reason_against
from drct.networks.derivatives import first_derivative_only

LOG2E = math.log2(math.e)


class Shape(ctypes.Structure):
    """Sizes, as the kernels of this folder that attend take them; see ``attention.h``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "heads", "head_dim", "window", "shift")),
        ("scale", ctypes.c_float),
        ("bf16", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("short_bias", ctypes.c_int32),
    )


def supports(window: int) -> bool:
    """Whether the kernel takes windows of this side: their positions must fill pairs of vectors."""
    return window * window % 32 == 0


def available() -> str | None:
    """None when the kernel can be used here, else the reason why not."""
    return reason_against("window_attention.c")


def _shape(qkv: Tensor, heads: int, window: int, shift: int, scale: float) -> Shape:
    batch, height, width, channels = qkv.shape
    if channels % (3 * heads) or height % window or width % window or not supports(window):
        raise ValueError(f"qkv {tuple(qkv.shape)} does not go with {heads} heads and window {window}")
    if qkv.dtype not in (torch.float32, torch.bfloat16) or qkv.device.type != "cpu":
        raise ValueError(f"the kernel takes float32 and bfloat16 on the CPU, not {qkv.dtype} on {qkv.device}")
    return Shape(
        batch,
        height,
        width,
        heads,
        channels // 3 // heads,
        window,
        shift,
        scale,
        qkv.dtype == torch.bfloat16,
        torch.get_num_threads(),
    )


def _check(failed: int) -> None:
    if failed:
        raise MemoryError("window attention could not allocate its work space")


def window_attention_forward(qkv: Tensor, bias: Tensor, heads: int, window: int, shift: int, scale: float) -> Tensor:
    """``softmax(scale q k^T + bias + mask) v`` in all (shifted) windows of a map; no gradient.

    Args:
        qkv: ``(B, H, W, 3 * heads * d)``, float32 or bfloat16, last axis ordered (q|k|v, head, d); H and W multiples of ``window``.
        bias: ``(heads, N, N)`` float32, N = ``window**2``.
        shift: cyclic shift in pixels; the kernel rolls and masks by itself.
        scale: factor of the scores.

    Returns:
        ``(B, H, W, heads * d)`` in the type of ``qkv``.
    """
    shape = _shape(qkv, heads, window, shift, scale)
    qkv, bias = qkv.contiguous(), (bias.float() * LOG2E).contiguous()
    out = qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)
    library = load_library("window_attention.c")
    _check(library.drct_window_attention_forward(ctypes.byref(shape), *(ctypes.c_void_p(t.data_ptr()) for t in (qkv, bias, out))))
    return out


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, table: Tensor, index: Tensor, window: int, shift: int, scale: float) -> Tensor:
        bias = table.float().t()[:, index]
        out = window_attention_forward(qkv, bias, len(bias), window, shift, scale)
        ctx.save_for_backward(qkv, bias, out)  # the next layer keeps out, too: it costs no memory
        ctx.arguments = (window, shift, scale)
        return out

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        qkv, bias, out = ctx.saved_tensors
        window, shift, scale = ctx.arguments
        shape = _shape(qkv, len(bias), window, shift, scale)
        qkv, scaled = qkv.contiguous(), bias * LOG2E
        dout = gradients[0].to(qkv.dtype).contiguous()
        dqkv = torch.empty_like(qkv)
        parts = torch.get_num_threads()
        dbias = bias.new_zeros(parts, *bias.shape)
        library = load_library("window_attention.c")
        _check(
            library.drct_window_attention_backward(
                ctypes.byref(shape),
                *(ctypes.c_void_p(t.data_ptr()) for t in (qkv, scaled, out, dout, dqkv, dbias)),
                ctypes.c_int64(parts),
            )
        )
        return dqkv, table_gradient(dbias.sum(0), window), None, None, None, None


def window_attention(qkv: Tensor, table: Tensor, index: Tensor, window: int, shift: int, scale: float) -> Tensor:
    """:func:`window_attention_forward` with gradients for ``qkv`` and the bias table.

    Args:
        table: relative position bias table ``((2 * window - 1)**2, heads)``.
        index: row of the table for each (query, key), ``(N, N)``, from ``relative_position_index(window)``.
    """
    return _WindowAttention.apply(qkv, table, index, window, shift, scale)

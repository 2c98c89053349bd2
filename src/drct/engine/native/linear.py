"""Linear layers by the C kernel of ``linear.c``: float32 on the CPU, with gradients."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from drct.engine.native.build import load_library, reason_against, reason_unmeasured
from drct.networks.derivatives import first_derivative_only

SOURCE = "linear.c"


class Matrix(ctypes.Structure):
    """Weights in panels, as the kernels take them; see ``linear.h``."""

    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("inputs", ctypes.c_int64), ("outputs", ctypes.c_int64))


class _Product(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "x_stride", "y_stride")),
        ("threads", ctypes.c_int32),
    )


def linear_available() -> str | None:
    """None when the kernel can be used here and has been measured to be the faster way, else the reason why not."""
    return reason_against(SOURCE) or reason_unmeasured(load_library(SOURCE).drct_linear_lanes())


class PackedLinear:
    """``x @ weight.T + bias`` with the weights laid out for this processor.

    Args:
        weight: ``(out, in)`` float32, any strides, such as those of a transposed matrix.
        bias: ``(out)``; None for none.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            raise ValueError(f"the kernel takes float32 on the CPU, not {weight.dtype} on {weight.device}")
        library = load_library(SOURCE)
        lanes = library.drct_linear_lanes()
        self.outputs, inputs = weight.shape
        whole = -(-self.outputs // lanes) * lanes
        self.weight = torch.empty(whole * inputs, dtype=torch.float32, device="cpu")
        sizes = (ctypes.c_int64(n) for n in (*weight.shape, *weight.stride()))
        library.drct_pack(ctypes.c_void_p(weight.data_ptr()), *sizes, ctypes.c_void_p(self.weight.data_ptr()))
        self.bias = None if bias is None else torch.nn.functional.pad(bias.float(), (0, whole - self.outputs))
        self.matrix = Matrix(self.weight.data_ptr(), None if self.bias is None else self.bias.data_ptr(), inputs, whole)
        self.kernel = library.drct_linear

    def __call__(self, x: Tensor) -> Tensor:
        """``(..., in)`` float32 to ``(..., out)``."""
        if x.dtype != torch.float32 or x.shape[-1] != self.matrix.inputs:
            raise ValueError(f"the kernel takes float32 rows of {self.matrix.inputs} numbers, not {x.dtype} of {x.shape[-1]}")
        rows = x if x.dim() == 2 and x.stride(1) == 1 else x.contiguous().view(-1, x.shape[-1])
        y = x.new_empty(*x.shape[:-1], self.outputs)
        sizes = (len(rows), self.outputs, rows.stride(0), self.outputs)
        product = _Product(rows.data_ptr(), y.data_ptr(), *sizes, torch.get_num_threads())
        self.kernel(ctypes.byref(product), ctypes.byref(self.matrix))
        return y


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return PackedLinear(weight, bias)(x)

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dy, dx, dweight, dbias = gradients[0], None, None, None
        if ctx.needs_input_grad[0]:
            dx = PackedLinear(weight.t())(dy)
        rows = dy.reshape(-1, dy.shape[-1])
        if ctx.needs_input_grad[1]:
            dweight = rows.t() @ x.reshape(-1, x.shape[-1])
        if ctx.needs_input_grad[2]:
            dbias = rows.sum(0)
        return dx, dweight, dbias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear`` of float32 on the CPU by the kernel, with gradients of first order.

    Args:
        x: ``(..., in)``.
        weight: ``(out, in)``.
        bias: ``(out)``; None for none.
    """
    return _Linear.apply(x, weight, bias)

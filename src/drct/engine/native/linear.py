"""Linear layers by the C kernel of ``linear.c``: float32 on the CPU, with gradients."""

from __future__ import annotations

import ctypes
from typing import Any, Literal

import torch
from torch import Tensor

from drct.engine.native.build import load_library
from drct.errors import DeviceError

SOURCE = "linear.c"
AFTER = {"set": 0, "add": 1, "gelu": 2}


class Matrix(ctypes.Structure):
    """Weights in panels, as the kernels take them; see ``linear.h``."""

    _fields_ = (("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("inputs", ctypes.c_int64), ("outputs", ctypes.c_int64))


class _Product(ctypes.Structure):
    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("rows", "columns", "x_stride", "y_stride")),
        ("after", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


def linear_available() -> str | None:
    """None when the kernel can be used here and has been measured to be the faster way, else the reason why not."""
    try:
        library = load_library(SOURCE)
    except DeviceError as error:
        return str(error)
    if library.drct_linear_lanes() != 8:
        return "linear layers in C were measured on processors with AVX2 only"
    return None


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
        self.weight = torch.empty(whole * inputs)
        sizes = (ctypes.c_int64(n) for n in (*weight.shape, *weight.stride()))
        library.drct_pack(ctypes.c_void_p(weight.data_ptr()), *sizes, ctypes.c_void_p(self.weight.data_ptr()))
        self.bias = None if bias is None else torch.nn.functional.pad(bias.float(), (0, whole - self.outputs))
        self.matrix = Matrix(self.weight.data_ptr(), None if self.bias is None else self.bias.data_ptr(), inputs, whole)
        self.kernel = library.drct_linear

    def __call__(self, x: Tensor, after: Literal["set", "add", "gelu"] = "set", out: Tensor | None = None) -> Tensor:
        """``(..., in)`` float32 to ``(..., out)``.

        Args:
            after: with ``gelu`` GELU follows, with ``add`` the result is added to ``out``.
            out: contiguous ``(..., out)``, receives the result.
        """
        if x.dtype != torch.float32 or x.shape[-1] != self.matrix.inputs:
            raise ValueError(f"the kernel takes float32 rows of {self.matrix.inputs} numbers, not {x.dtype} of {x.shape[-1]}")
        rows = x if x.dim() == 2 and x.stride(1) == 1 else x.contiguous().view(-1, x.shape[-1])
        if out is None:
            out = x.new_empty(*x.shape[:-1], self.outputs)
        elif out.shape != (*x.shape[:-1], self.outputs) or out.dtype != torch.float32 or not out.is_contiguous():
            raise ValueError(f"out must be contiguous float32 of {self.outputs} columns")
        product = _Product(
            rows.data_ptr(),
            out.data_ptr(),
            len(rows),
            self.outputs,
            rows.stride(0),
            self.outputs,
            AFTER[after],
            torch.get_num_threads(),
        )
        self.kernel(ctypes.byref(product), ctypes.byref(self.matrix))
        return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return PackedLinear(weight, bias)(x)

    @staticmethod
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

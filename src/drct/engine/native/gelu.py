"""GELU by the C kernel of ``gelu.c``: in place, on float32 CPU tensors, no gradient."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from drct.engine.native.build import load_library, reason_against

SOURCE = "gelu.c"


def gelu_available() -> str | None:
    """None when the kernel can be used here, else the reason why not."""
    return reason_against(SOURCE)


def gelu_(x: Tensor) -> Tensor:
    """Exact GELU (by the error function, absolute error below ``2e-7 * max(1, |x|)``) of a contiguous float32 tensor, in place."""
    if x.dtype != torch.float32 or x.device.type != "cpu" or not x.is_contiguous():
        raise ValueError("the kernel takes contiguous float32 on the CPU only")
    load_library(SOURCE).drct_gelu(ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(x.numel()), torch.get_num_threads())
    return x

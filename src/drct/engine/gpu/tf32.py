"""Float32 convolutions and matrix products on NVIDIA GPUs in all their digits.

cuDNN may round what it multiplies to the eleven bits of TF32, and torch lets it: errors reach 1e-3 where 1e-4 is promised. So may
matrix products where somebody called ``torch.set_float32_matmul_precision("high")``.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

# torch.backends.cudnn.flags would do for both, but fails from torch 2.9 on where somebody uses the names that came with it
_SWITCHES: tuple[tuple[Any, str, object], ...] = (
    ((torch.backends.cudnn.conv, "fp32_precision", "ieee"), (torch.backends.cuda.matmul, "fp32_precision", "ieee"))
    if hasattr(torch.backends.cudnn, "conv")
    else ((torch.backends.cudnn, "allow_tf32", False), (torch.backends.cuda.matmul, "allow_tf32", False))
)
_lock = threading.Lock()
_inside = 0
_before: list[object] = []


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, convolutions and products are computed without TF32, in all threads: the settings are for the whole process.

    The first to enter changes them and the last to leave restores them. If all restored what they had found, one could give TF32
    back while another is at work, or leave it off for good. No thread waits for another; what else is computed meanwhile is exact
    too.
    """
    global _inside, _before
    with _lock:
        if _inside == 0:
            _before = [getattr(owner, name) for owner, name, _ in _SWITCHES]
            for owner, name, off in _SWITCHES:
                setattr(owner, name, off)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                for (owner, name, _), value in zip(_SWITCHES, _before, strict=True):
                    setattr(owner, name, value)

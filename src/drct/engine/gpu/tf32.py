"""Float32 convolutions on NVIDIA GPUs in all their digits.

cuDNN may round what it multiplies to the eleven bits of TF32, and torch lets it: errors reach 1e-3 where 1e-4 is promised.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

# torch.backends.cudnn.flags would do for both, but fails from torch 2.9 on where somebody uses the names that came with it
_SWITCH: tuple[Any, str, object] = (
    (torch.backends.cudnn.conv, "fp32_precision", "ieee")
    if hasattr(torch.backends.cudnn, "conv")
    else (torch.backends.cudnn, "allow_tf32", False)
)
_lock = threading.Lock()
_inside = 0
_before: object = None


@contextlib.contextmanager
def without_tf32() -> Iterator[None]:
    """Inside, convolutions are computed without TF32, in all threads: the setting is one for the whole process.

    The first to enter changes it and the last to leave restores it. If all restored what they had found, one could give TF32 back
    while another is at work, or leave it off for good. No thread waits for another; what else convolves meanwhile is exact too.
    """
    global _inside, _before
    owner, name, off = _SWITCH
    with _lock:
        if _inside == 0:
            _before = getattr(owner, name)
            setattr(owner, name, off)
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                setattr(owner, name, _before)

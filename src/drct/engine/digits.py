"""Float32 convolutions and matrix products in all their digits.

On NVIDIA GPUs cuDNN may round what it multiplies to the eleven bits of TF32, and torch lets it: errors reach 1e-3 where 1e-4 is
promised. So may matrix products where somebody called ``torch.set_float32_matmul_precision("high")``; after ``"medium"`` those on
CPUs may round to the eight bits of bfloat16.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch


class _Products:
    """For torch before 2.9: what ``torch.set_float32_matmul_precision`` sets, as an attribute."""

    @property
    def precision(self) -> str:
        return torch.get_float32_matmul_precision()

    @precision.setter
    def precision(self, value: str) -> None:
        torch.set_float32_matmul_precision(value)


# owner, attribute and value of each setting, by type of device.
# torch.backends.cudnn.flags would do for both, but fails from torch 2.9 on where somebody uses the names that came with it
_Switch = tuple[Any, str, object]
_SWITCHES: dict[str, tuple[_Switch, ...]] = (
    {
        "cuda": ((torch.backends.cudnn.conv, "fp32_precision", "ieee"), (torch.backends.cuda.matmul, "fp32_precision", "ieee")),
        "cpu": tuple((getattr(torch.backends.mkldnn, kind), "fp32_precision", "ieee") for kind in ("conv", "matmul")),
    }
    if hasattr(torch.backends.cudnn, "conv")
    else {
        "cuda": ((torch.backends.cudnn, "allow_tf32", False), (torch.backends.cuda.matmul, "allow_tf32", False)),
        "cpu": ((_Products(), "precision", "highest"),),
    }
)
_lock = threading.Lock()
_inside: dict[str, int] = {"cuda": 0, "cpu": 0}
_before: dict[str, list[object]] = {}


@contextlib.contextmanager
def in_all_digits(device: str) -> Iterator[None]:
    """Inside, convolutions and products of this type of device are computed in whole float32, in all threads: the settings are for
    the whole process. Types that have no such settings stay as they are.

    The first to enter changes them and the last to leave restores them. If all restored what they had found, one could give TF32
    back while another is at work, or leave it off for good. No thread waits for another; what else is computed meanwhile is exact
    too.
    """
    switches = _SWITCHES.get(device, ())
    if not switches:
        yield
        return
    with _lock:
        if _inside[device] == 0:
            _before[device] = [getattr(owner, name) for owner, name, _ in switches]
            for owner, name, exact in switches:
                setattr(owner, name, exact)
        _inside[device] += 1
    try:
        yield
    finally:
        with _lock:
            _inside[device] -= 1
            if _inside[device] == 0:
                for (owner, name, _), value in zip(switches, _before[device], strict=True):
                    setattr(owner, name, "none" if value == _of_library(owner) else value)


def _of_library(owner: Any) -> object:
    """What an operator of oneDNN takes over from the library as long as its own setting is ``"none"``; None for other owners."""
    library: Any = torch.backends.mkldnn
    operators = (getattr(library, kind, None) for kind in ("conv", "matmul"))
    return library.fp32_precision if any(owner is operator for operator in operators) else None

"""What torch takes where nothing is said, and what a caller may have set it to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch


@contextlib.contextmanager
def usual_defaults(devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Inside, tensors are float32 on the CPU where nothing else is said; outside, the caller's random numbers go on as if nothing
    had happened.

    Args:
        devices: GPUs whose random numbers are kept too.
    """
    before = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([device for device in devices if device.type == "cuda"]))
        if torch.get_default_device().type != "cpu":  # only then, since it costs at every call of torch
            stack.enter_context(torch.device("cpu"))
        torch.set_default_dtype(torch.float32)
        stack.callback(torch.set_default_dtype, before)
        yield

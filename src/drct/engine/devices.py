"""What this machine can run: devices and precisions by name, with clear refusals."""

from __future__ import annotations

import torch

from drct.errors import DeviceError, did_you_mean

PRECISIONS = ("fp32", "bf16", "fp16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICES = ("cpu", "cuda", "mps")


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """The device that a name stands for.

    Args:
        name: ``"auto"`` (the first CUDA GPU, else Apple's GPU, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.

    Raises:
        DeviceError: the name is unknown or this machine has no such device.
    """
    if str(name) == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in DEVICES:
        raise DeviceError(f"device '{name}' is unknown{did_you_mean(str(name), DEVICES)}: use auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda":
        if not torch.cuda.is_available():
            reason = (
                "this build of torch has no CUDA"
                if torch.version.cuda is None and torch.version.hip is None
                else "no GPU was found"
            )
            raise DeviceError(f"device '{name}' is not available ({reason}): use --device auto or cpu")
        count = torch.cuda.device_count()
        if device.index is not None and device.index >= count:
            raise DeviceError(f"device '{name}' does not exist: this machine has cuda:0 to cuda:{count - 1}")
        return device if device.index is not None else torch.device("cuda", torch.cuda.current_device())
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(f"device '{name}' is not available: this machine or this build of torch has no Metal support")
    return device


def resolve_precision(name: str = "auto", device: str | torch.device = "cpu") -> str:
    """``"fp32"``, ``"bf16"`` or ``"fp16"`` for a device.

    ``"auto"`` is bf16 on GPUs that have bf16 matrix units and fp32 elsewhere. On CPUs it is fp32 as well: results do not
    depend on the machine unless a lower precision was asked for.

    Raises:
        DeviceError: the precision is unknown or cannot be computed on the device.
    """
    device = resolve_device(device)
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if name not in PRECISIONS:
        raise DeviceError(f"precision '{name}' is unknown{did_you_mean(name, PRECISIONS)}: use auto, fp32, bf16 or fp16")
    if name == "fp16" and device.type == "cpu":
        raise DeviceError("precision 'fp16' is for GPUs: on a CPU use fp32 or bf16")
    return name

"""What this machine can run: devices and precisions by name, with clear refusals."""

from __future__ import annotations

import functools
import time
from pathlib import Path

import torch

from drct.errors import DeviceError, did_you_mean

PRECISIONS = ("fp32", "bf16", "fp16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Instructions for bf16 products, by their names in /proc/cpuinfo; the last is ARM's.
BF16 = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16")
# Those for which "auto" means bf16. No measurement at run time decides, since the bytes of a result must not depend on how busy a
# machine was. That it pays is shown in benchmarks/RESULTS.md: with AVX512_BF16 on AMD's processors; on Intel's, which form such
# products at a fraction of the rate, it takes 1.2 to 1.6 times as long as fp32. Nobody has measured ARM's yet.
CHOSEN = ("amx_bf16", "avx10_2")
CHOSEN_UNLESS_INTEL = "avx512_bf16"
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
    except (RuntimeError, TypeError):  # TypeError: neither a name nor a device
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

    ``"auto"`` is bf16 on GPUs of capability 8.0 or above, on x86 processors with AMX and on those with AVX512_BF16 that are not
    Intel's, which multiply bf16 matrices at twice the rate or more; else fp32. The same machine always gets the same answer.

    Raises:
        DeviceError: the precision is unknown or cannot be computed on the device.
    """
    device = resolve_device(device)
    if name == "auto":
        if device.type == "cuda":
            return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
        return "bf16" if device.type == "cpu" and _bf16_is_faster() else "fp32"
    if name not in PRECISIONS:
        raise DeviceError(f"precision '{name}' is unknown{did_you_mean(name, PRECISIONS)}: use auto, fp32, bf16 or fp16")
    if name == "fp16" and device.type == "cpu":
        raise DeviceError("precision 'fp16' is for GPUs: on a CPU use fp32 or bf16")
    return name


def bf16_instructions() -> tuple[str, ...]:
    """The processor's own instructions for bf16 products, by their names in /proc/cpuinfo; empty when none are known.

    AMX counts where the system grants it to this process: its state is large, so it must be asked for.
    """
    flags = (_cpuinfo("flags") or _cpuinfo("Features")).split()
    if not flags and torch.cpu._is_avx512_bf16_supported():
        flags = ["avx512_bf16"]  # systems without /proc: ask torch
    return tuple(name for name in BF16 if name in flags and (name != "amx_bf16" or torch.cpu._init_amx()))


def _bf16_is_faster() -> bool:
    found = bf16_instructions()
    return any(name in found for name in CHOSEN) or (CHOSEN_UNLESS_INTEL in found and _cpuinfo("vendor_id") != "GenuineIntel")


def _cpuinfo(name: str) -> str:
    """What Linux says of the first processor; empty when nothing."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == name), "")


@functools.cache
def bf16_speedup() -> float:
    """How much faster packed linear layers run in bf16 than in float32 on this CPU: best times, taken in turns; for information."""
    from drct.engine.cpu.linear import Linear
    from drct.engine.folding import Affine

    layer = Affine(torch.randn(576, 192), torch.randn(576))
    x = torch.randn(1024, 192)
    cases = [(Linear(layer, dtype), x.to(dtype)) for dtype in (torch.float32, torch.bfloat16)]
    seconds = [float("inf"), float("inf")]
    with torch.inference_mode():
        for _ in range(15):
            for i, (linear, rows) in enumerate(cases):
                start = time.perf_counter()
                linear(rows)
                seconds[i] = min(seconds[i], time.perf_counter() - start)
    return seconds[0] / seconds[1]

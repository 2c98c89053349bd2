"""Choose the program for a network, a device and a precision."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from drct.engine.cpu import workers
from drct.engine.cpu.drct import DRCTProgram
from drct.engine.cpu.hat import HATProgram
from drct.engine.cpu.mamba import MambaDRCTProgram, why_not
from drct.engine.cpu.swinir import SwinIRProgram
from drct.engine.devices import resolve_device, resolve_precision
from drct.engine.gpu.availability import triton_available
from drct.engine.program import PlainProgram, Program
from drct.errors import OptionError
from drct.networks.base import SuperResolutionNetwork
from drct.networks.drct import DRCT
from drct.networks.hat import HAT
from drct.networks.mamba_drct import MambaDRCT
from drct.networks.swinir import SwinIR

N = TypeVar("N", bound=SuperResolutionNetwork)

CPU_PROGRAMS: dict[type[SuperResolutionNetwork], Callable[[Any, str], Program]] = {
    DRCT: DRCTProgram,
    HAT: HATProgram,
    MambaDRCT: MambaDRCTProgram,
    SwinIR: SwinIRProgram,
}
GPU_PROGRAMS = {  # by module, since importing them needs triton
    DRCT: ("drct.engine.gpu.drct", "GPUDRCTProgram"),
    HAT: ("drct.engine.gpu.hat", "GPUHATProgram"),
    SwinIR: ("drct.engine.gpu.swinir", "GPUSwinIRProgram"),
}


def compile(network: SuperResolutionNetwork, device: str | torch.device = "cpu", precision: str = "fp32") -> Program:
    """Make a program with the values of a network.

    The weights are copied: changing the network afterwards does not change the program.

    Args:
        network: a network with trained weights; its mode, place and type stay as they are.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        precision: ``"auto"``, ``"fp32"`` (within 1e-4 of the network), ``"bf16"`` or ``"fp16"``. On a CPU ``"auto"`` stays at fp32
            where no program of ours runs, since autocast was not shown to be faster.

    Raises:
        DeviceError: the device or precision is unknown or not available here.
        OptionError: ``network`` is no network of drct.
    """
    if not isinstance(network, SuperResolutionNetwork):
        raise OptionError(f"network is {network!r:.80}, but must be a network of drct")
    with torch.autocast("cpu", enabled=False):
        return _compile(network, resolve_device(device), precision)


def _compile(network: SuperResolutionNetwork, device: torch.device, precision: str) -> Program:
    plain = "fp32" if precision == "auto" and device.type == "cpu" else resolve_precision(precision, device)
    precision = resolve_precision(precision, device)
    if getattr(network.options, "ape", False):
        return PlainProgram(network, device, plain, "absolute position embeddings fix the input size")
    if device.type == "cpu" and isinstance(network, MambaDRCT) and (reason := why_not(network)) is not None:
        return PlainProgram(network, device, plain, reason)
    if device.type == "cpu" and type(network) in CPU_PROGRAMS:
        workers.get_ready()
        return CPU_PROGRAMS[type(network)](_in_float32_on_cpu(network), precision)
    if device.type == "cuda" and type(network) in GPU_PROGRAMS and precision != "fp32":
        if (reason := triton_available()) is not None:
            return PlainProgram(network, device, plain, reason)
        module, name = GPU_PROGRAMS[type(network)]
        program = getattr(importlib.import_module(module), name)
        return program(_in_float32_on_cpu(network), device, precision)
    if device.type == "cuda" and type(network) in GPU_PROGRAMS:
        return PlainProgram(network, device, plain, "the faster program for GPUs is for bf16 and fp16")
    return PlainProgram(network, device, plain, f"there is no faster program for {network.architecture} on {device.type}")


def _in_float32_on_cpu(network: N) -> N:
    """The network itself where it can be read as it is, else a copy."""
    if all(p.device.type == "cpu" and p.dtype == torch.float32 for p in network.parameters()):
        return network
    return copy.deepcopy(network).to("cpu", torch.float32)

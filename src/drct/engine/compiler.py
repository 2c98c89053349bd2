"""Choose the program for a network, a device and a precision."""

from __future__ import annotations

import torch

from drct.engine.cpu.drct import DRCTProgram
from drct.engine.devices import resolve_device, resolve_precision
from drct.engine.program import PlainProgram, Program
from drct.networks.base import SuperResolutionNetwork
from drct.networks.drct import DRCT


def compile(network: SuperResolutionNetwork, device: str | torch.device = "cpu", precision: str = "fp32") -> Program:
    """Make a program with the values of a network.

    The weights are copied: changing the network afterwards does not change the program.

    Args:
        network: a network with trained weights; its mode, place and type stay as they are.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        precision: ``"auto"``, ``"fp32"`` (within 1e-4 of the network), ``"bf16"`` or ``"fp16"``.

    Raises:
        DeviceError: the device or precision is unknown or not available here.
    """
    device = resolve_device(device)
    precision = resolve_precision(precision, device)
    if device.type == "cpu" and isinstance(network, DRCT):
        return DRCTProgram(network, precision)
    return PlainProgram(network, device, precision, "no faster program for this architecture yet")

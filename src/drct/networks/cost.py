"""What a network costs: parameters and multiply-adds, counted on the network itself and not taken from a table."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from drct.networks.base import SuperResolutionNetwork
from drct.networks.mamba_drct import DIRECTIONS, SS2D


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one forward pass.

    Attributes:
        parameters: trainable numbers; constants and caches do not count.
        multiply_adds: multiplications with addition in matrix products, convolutions and attention, padding to whole windows
            included. Biases, norms, activations and other work per single value are left out, as is usual.
        height: LR pixels.
        width: LR pixels.
        by_kind: the same by ``"convolution"``, ``"linear"`` (products with a weight), ``"attention"`` (products of activations) and
            ``"scan"``: two for each number of a state and each of the four directions, the update and the output.
        by_module: the same by module name (``"layers.0.swin1.attn"``); a module includes its children, ``""`` is the network.
    """

    parameters: int
    multiply_adds: int
    height: int
    width: int
    by_kind: dict[str, int]
    by_module: dict[str, int]


KINDS = {"convolution": "convolution", "_convolution": "convolution", "mm": "linear", "addmm": "linear"}


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers of a network, each shared one once."""
    return sum(parameter.numel() for parameter in network.parameters())


def count_cost(network: SuperResolutionNetwork, height: int = 64, width: int = 64) -> Cost:
    """Count what upscaling one image of ``height`` x ``width`` LR pixels costs.

    Nothing is computed: the network runs on tensors without data, so large networks and images are counted in a second. The network
    itself is left as it is.
    """
    scans: dict[str, int] = {}
    handles = [
        module.register_forward_hook(functools.partial(_count_scan, scans, name))
        for name, module in network.named_modules()
        if isinstance(module, SS2D)
    ]
    weights = {name: tensor.detach().to("meta") for name, tensor in [*network.named_parameters(), *network.named_buffers()]}
    x = torch.empty(1, network.in_chans, height, width, device="meta")
    # attention as its two products, whatever kernel a device would choose; with gradients enabled no network caches what it
    # derives from its weights
    try:
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
            functional_call(network, weights, (x,))
    finally:
        for handle in handles:
            handle.remove()
    counts = counter.get_flop_counts()
    by_kind = {"convolution": 0, "linear": 0, "attention": 0, "scan": sum(scans.values())}
    for operation, flops in counts["Global"].items():
        by_kind[KINDS.get(operation.__name__, "attention")] += flops // 2
    root = type(network).__name__
    by_module = {
        name.removeprefix(root).removeprefix("."): sum(kinds.values()) // 2 for name, kinds in counts.items() if name != "Global"
    }
    for scan, count in scans.items():
        for operation, flops in counts[f"{root}.{scan}"].items():
            if operation.__name__ not in KINDS:  # batched, but with weights all the same: there is no attention in it
                by_kind["attention"] -= flops // 2
                by_kind["linear"] += flops // 2
        for name in by_module:
            if name in ("", scan) or scan.startswith(f"{name}."):
                by_module[name] += count
    return Cost(count_parameters(network), sum(by_kind.values()), height, width, by_kind, by_module)


def _count_scan(scans: dict[str, int], name: str, module: nn.Module, given: tuple[torch.Tensor], _: object) -> None:
    assert isinstance(module, SS2D)
    pixels = given[0].shape[:3].numel()
    scans[name] = scans.get(name, 0) + 2 * DIRECTIONS * pixels * module.d_inner * module.d_state

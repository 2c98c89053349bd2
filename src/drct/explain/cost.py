"""What a network costs beyond its multiply-adds: the memory of its activations, counted without computing anything.

Parameters and multiply-adds are those of :mod:`drct.networks.cost`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from drct.engine.memory import LiveBytes
from drct.networks import SuperResolutionNetwork
from drct.networks.cost import Cost, count_cost


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of activations for one float32 image; weights and what a kernel uses inside are not in it.

    Attributes:
        inference: most that lives at one time while the network runs forward.
        gradients: what is kept between forward and backward when gradients of the input, not of the weights, are wanted (LAM).
        training: the same when gradients of the weights are wanted.
    """

    inference: int
    gradients: int
    training: int


@dataclasses.dataclass(frozen=True)
class NetworkCost:
    """Operations and memory of one network at one size."""

    name: str
    scale: int
    operations: Cost
    memory: Memory

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        cost = self.operations
        return {
            "model": self.name,
            "scale": self.scale,
            "height": cost.height,
            "width": cost.width,
            "parameters": cost.parameters,
            "multiply_adds": cost.multiply_adds,
            **{f"multiply_adds_{kind}": count for kind, count in cost.by_kind.items()},
            "activation_bytes_inference": self.memory.inference,
            "activation_bytes_training": self.memory.training,
        }


def network_cost(name: str, network: SuperResolutionNetwork, height: int = 64, width: int = 64) -> NetworkCost:
    """Count one network for one image of ``height`` x ``width`` LR pixels."""
    return NetworkCost(name, network.scale, count_cost(network, height, width), activation_memory(network, height, width))


def activation_memory(network: SuperResolutionNetwork, height: int = 64, width: int = 64) -> Memory:
    """Count the activations of one image of ``height`` x ``width`` LR pixels, on tensors without data."""
    return Memory(
        inference=_peak(network, height, width),
        gradients=_saved(network, height, width, weights_too=False),
        training=_saved(network, height, width, weights_too=True),
    )


def gradient_memory(network: SuperResolutionNetwork, height: int, width: int) -> int:
    """Only :attr:`Memory.gradients`."""
    return _saved(network, height, width, weights_too=False)


def _on_meta(network: SuperResolutionNetwork, gradients: bool) -> dict[str, Tensor]:
    weights = {n: p.detach().to("meta").requires_grad_(gradients) for n, p in network.named_parameters()}
    return weights | {n: b.detach().to("meta") for n, b in network.named_buffers()}


def _saved(network: SuperResolutionNetwork, height: int, width: int, weights_too: bool) -> int:
    """Bytes that autograd keeps, each storage once, weights and constants not counted."""
    state = _on_meta(network, weights_too)
    known = {t.untyped_storage()._cdata for t in state.values()}
    sizes: dict[int, int] = {}
    kept = []  # a storage that is freed would give its address to another one

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            sizes[storage._cdata] = storage.nbytes()
            kept.append(storage)
        return tensor

    x = torch.empty(1, network.in_chans, height, width, device="meta", requires_grad=True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        functional_call(network, state, (x,))
    return sum(sizes.values())


def _peak(network: SuperResolutionNetwork, height: int, width: int) -> int:
    state = _on_meta(network, False)
    x = torch.empty(1, network.in_chans, height, width, device="meta")
    # with gradients enabled no network keeps what it derives from its weights; without weights that ask for them nothing is saved
    with torch.enable_grad(), LiveBytes() as live:
        functional_call(network, state, (x,))
    return live.peak


def cost_table(costs: Sequence[NetworkCost]) -> list[str]:
    """Lines of a table, a row for each network."""
    kinds = ["convolution", "linear", "attention"]
    if any(entry.operations.by_kind["scan"] for entry in costs):
        kinds.append("scan")
    head = ["model", "scale", "size", "parameters", "multiply-adds", *kinds, "memory to run", "memory to train"]
    rows = [head]
    for entry in costs:
        cost = entry.operations
        counts = [cost.multiply_adds, *(cost.by_kind[kind] for kind in kinds)]
        row = [entry.name, f"x{entry.scale}", f"{cost.width}x{cost.height}", f"{cost.parameters:,}"]
        row += [_short(count) for count in counts]
        row += [f"{size / 2**20:,.1f} MiB" for size in (entry.memory.inference, entry.memory.training)]
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    return ["  ".join(c.ljust(n) if i == 0 else c.rjust(n) for i, (c, n) in enumerate(zip(r, widths, strict=True))) for r in rows]


def _short(count: int) -> str:
    if not count:
        return "0"
    return f"{count / 1e9:.1f} G" if count >= 1e8 else f"{count / 1e6:.1f} M"

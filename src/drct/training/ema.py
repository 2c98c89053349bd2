"""Exponential moving average of the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA:
    """``shadow = decay * shadow + (1 - decay) * weights`` after every optimizer step.

    Tensors only, no second network: validation swaps them in with :meth:`swap`. In the first steps the decay is capped at
    ``(1 + t) / (10 + t)``, t being the number of updates, so that the average forgets the random start.
    """

    def __init__(self, network: nn.Module, decay: float, ramp: bool = True) -> None:
        self.decay = decay
        self.ramp = ramp
        self.updates = 0
        self.shadow: dict[str, Tensor] = {name: p.detach().clone() for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.ramp else self.decay
        parameters = dict(network.named_parameters())
        torch._foreach_lerp_(list(self.shadow.values()), [parameters[name] for name in self.shadow], 1 - decay)

    @torch.no_grad()
    def swap(self, network: nn.Module) -> None:
        """Exchange weights and averages; call it twice to get the weights back."""
        for name, p in network.named_parameters():
            held = p.detach().clone()
            p.copy_(self.shadow[name])
            self.shadow[name].copy_(held)

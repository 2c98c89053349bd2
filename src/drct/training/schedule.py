"""Learning rates as functions of the iteration, so that nothing about them needs saving."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Factor of the base learning rate at an iteration (0-based).

    ``MultiStepLR``: multiplied by ``gamma`` at each milestone. ``CosineAnnealingLR``: half a cosine from 1 down to ``eta_min``
    (also a factor) over the iterations that follow the warm-up. ``warmup`` iterations rise linearly before either.
    """

    kind: str
    total: int
    warmup: int = 0
    milestones: tuple[int, ...] = ()
    gamma: float = 0.5
    eta_min: float = 0.0

    def __call__(self, iteration: int) -> float:
        if iteration < self.warmup:
            return (iteration + 1) / self.warmup
        if self.kind == "MultiStepLR":
            return self.gamma ** sum(iteration >= m for m in self.milestones)
        progress = (iteration - self.warmup) / max(1, self.total - self.warmup)
        return self.eta_min + (1 - self.eta_min) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

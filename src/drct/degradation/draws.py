"""Random numbers of a degradation, all from one generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Draws:
    """Draws numbers, choices and noise.

    Numbers come from the generator itself, on its own device (a CPU generator costs a GPU no wait). Noise is drawn on the device of
    the image: from the generator if that is its device, else from one that is seeded by it.
    """

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator
        self._others: dict[torch.device, torch.Generator] = {}

    def uniform(self, range_: tuple[float, float], count: int) -> Tensor:
        """``(count,)`` float64 on the CPU, between the ends of a range."""
        low, high = range_
        unit = torch.rand(count, generator=self._generator, device=self._generator.device, dtype=torch.float64).cpu()
        return low + unit * (high - low)

    def logarithmic(self, range_: tuple[float, float], count: int) -> Tensor:
        """``(count,)`` float64 on the CPU, in equal parts of a logarithmic scale between the positive ends of a range."""
        low, high = range_
        return self.uniform((math.log(low), math.log(high)), count).exp()

    def number(self, range_: tuple[float, float]) -> float:
        """One number between the ends of a range."""
        return float(self.uniform(range_, 1))

    def chance(self, probability: float) -> bool:
        """True with a probability."""
        return self.number((0, 1)) < probability

    def chances(self, probability: float, count: int) -> Tensor:
        """``(count,)`` booleans on the CPU, each true with a probability."""
        return self.uniform((0, 1), count) < probability

    def indices(self, shares: Sequence[float], count: int) -> Tensor:
        """``(count,)`` integers on the CPU, each as often as its share says."""
        edges = torch.tensor(shares, dtype=torch.float64).cumsum(0)
        found = torch.searchsorted(edges / edges[-1], self.uniform((0, 1), count), right=True)
        return found.clamp_(max=len(shares) - 1)

    def choice(self, things: Sequence[T], shares: Sequence[float] | None = None) -> T:
        """One of several things, equally often without shares."""
        return things[int(self.indices(shares or [1.0] * len(things), 1))]

    def order(self, count: int) -> Tensor:
        """``(count,)`` integers on the CPU: a permutation."""
        return torch.randperm(count, generator=self._generator, device=self._generator.device).cpu()

    def normal(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """Standard normal noise with the type and device of an image."""
        return torch.randn(tuple(shape), generator=self.on(like.device), device=like.device, dtype=like.dtype)

    def poisson(self, rates: Tensor) -> Tensor:
        """Poisson noise of given rates, on their device."""
        return torch.poisson(rates, generator=self.on(rates.device))

    def on(self, device: torch.device) -> torch.Generator:
        """The generator for tensors on a device."""
        if device.type == self._generator.device.type:
            return self._generator
        if device not in self._others:
            seed = torch.randint(2**62, (1,), generator=self._generator, device=self._generator.device)
            self._others[device] = torch.Generator(device).manual_seed(int(seed))
        return self._others[device]

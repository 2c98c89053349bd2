"""Effective receptive field (Luo et al., NeurIPS 2016): how much each input pixel moves the middle of the output."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
import torch

from drct.errors import OptionError
from drct.explain.subjects import Subject, device_of, enough_memory
from drct.imaging import to_tensor


@dataclasses.dataclass(frozen=True)
class Field:
    """Effective receptive field of one network.

    Attributes:
        map: ``(h, w)`` sum over colours of the gradient's magnitude on LR pixels, averaged over images, divided by its maximum.
        sides: share of the whole, and the side in LR pixels of the square around the middle that holds it, by :func:`side_of`.
    """

    map: np.ndarray
    sides: dict[float, int]

    def square(self, share: float, unit: str) -> str:
        """The square of a share in words: what of it lies inside the images, and whether it ends at their border."""
        h, w = self.map.shape
        side = self.sides[share]
        border = " (up to the border)" if side // 2 >= (min(h, w) - 1) // 2 else ""
        return f"{min(side, w)} x {min(side, h)} {unit}{border}"


def receptive_field(subject: Subject, images: Iterable[np.ndarray], advance: Callable[[int], None] | None = None) -> Field:
    """Gradient of the output's middle (all colours of ``scale`` x ``scale`` pixels) with respect to the input.

    Args:
        subject: network in eval mode; it is left as it was.
        images: LR images ``(h, w, 3)`` of one size, at least one.
        advance: called with the number of images done.

    Raises:
        OptionError: images of different sizes, or an output that does not depend on the input.
    """
    network, scale = subject.network, subject.network.scale
    total = np.zeros(0)
    for done, pixels in enumerate(images, start=1):
        x = to_tensor(pixels).to(device_of(network)).requires_grad_()
        top, left = (side // 2 * scale for side in x.shape[-2:])
        with enough_memory(x), torch.enable_grad():
            middle = network(x)[..., top : top + scale, left : left + scale].sum()
            (gradient,) = torch.autograd.grad(middle, x)
        magnitude = gradient[0].abs().sum(0).cpu().double().numpy()
        if done > 1 and magnitude.shape != total.shape:
            raise OptionError("images of different sizes have no common receptive field: use a smaller --crop")
        total = magnitude if done == 1 else total + magnitude
        if advance is not None:
            advance(done)
    if not total.size or not total.max() > 0:
        raise OptionError(f"the output of {subject.name} does not depend on its input")
    return Field((total / total.max()).astype(np.float32), {share: side_of(total, share) for share in (0.5, 0.9, 0.99)})


def side_of(values: np.ndarray, share: float) -> int:
    """Side of the smallest square around the middle pixel that holds a share of the sum of ``(h, w)``; at most the longer side."""
    y, x = values.shape[0] // 2, values.shape[1] // 2
    radius = 0
    while values[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1].sum() < share * values.sum():
        radius += 1
    return min(2 * radius + 1, max(values.shape))

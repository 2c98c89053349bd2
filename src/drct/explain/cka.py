"""Similarity between layers: linear centred kernel alignment (Kornblith et al., ICML 2019, equation 3 with linear kernels)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from drct.errors import OptionError
from drct.explain.features import group_features
from drct.explain.subjects import Subject

SAMPLES = 4096  # pixels of each image, at equal distances


def linear_cka(x: Tensor, y: Tensor) -> float:
    """Similarity of two representations of the same n samples, ``(n, p)`` and ``(n, q)``; 0..1, 1 for rotated or scaled copies.

    A representation that is constant has no similarity to anything: NaN.
    """
    x, y = (t.double() - t.double().mean(0) for t in (x, y))
    norms = (x.T @ x).norm() * (y.T @ y).norm()
    return float((y.T @ x).norm() ** 2 / norms) if norms > 0 else float("nan")


def samples(subject: Subject, images: Iterable[np.ndarray], advance: Callable[[int], None] | None = None) -> list[Tensor]:
    """Features of every group at up to :data:`SAMPLES` pixels of each image; one ``(n, C)`` per group.

    Raises:
        OptionError: the images are a single pixel, or the network has no named groups.
    """
    parts: list[list[Tensor]] = []
    for done, pixels in enumerate(images, start=1):
        flat = [feature.flatten(0, 1) for feature in group_features(subject, pixels).values()]
        # in float32 the last of 16.7 million pixels and more would be rounded to one that does not exist
        chosen = torch.linspace(0, len(flat[0]) - 1, min(SAMPLES, len(flat[0])), dtype=torch.float64).long()
        parts.append([feature[chosen] for feature in flat])
        if advance is not None:
            advance(done)
    if sum(len(part[0]) for part in parts) < 2:
        raise OptionError("similarity needs images of more than one pixel: choose a larger crop")
    return [torch.cat(group) for group in zip(*parts, strict=True)]


def similarity(a: Sequence[Tensor], b: Sequence[Tensor]) -> np.ndarray:
    """Matrix of :func:`linear_cka` between the groups of two networks, or of one and itself."""
    return np.array([[linear_cka(x, y) for y in b] for x in a])

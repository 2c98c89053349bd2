"""Blur kernels: Gaussian, generalized Gaussian and plateau, each round or stretched, and sinc.

Generalized Gaussian and plateau kernels as in Real-ESRGAN (arXiv 2107.10833, section 3.2), sinc as in its section 3.3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from drct.degradation.draws import Draws
from drct.degradation.options import SMALLEST_KERNEL, KernelKind, Range

Values = Tensor | Sequence[float] | float


class Kernels(NamedTuple):
    """Kernels that were drawn, one for each image.

    Attributes:
        weights: float64 ``(N, K, K)`` on the CPU, K the largest side of all.
        names: kind of each: one of the published kinds, ``"sinc"`` or ``"none"``.
        strengths: ``(N,)``: the larger standard deviation in pixels, the cut-off of sinc in radians per pixel, 0 of none.
    """

    weights: Tensor
    names: tuple[str, ...]
    strengths: Tensor


def blur_kernels(
    sizes: Values,
    sigma_x: Values,
    sigma_y: Values,
    theta: Values = 0.0,
    beta: Values = 1.0,
    plateau: Tensor | Sequence[bool] | bool = False,
    pad_to: int | None = None,
) -> Tensor:
    """Kernels from their quadratic form q = p^T S^-1 p, where S has the standard deviations as axes.

    Gaussian exp(-q/2), generalized Gaussian exp(-q^beta / 2), plateau 1 / (1 + q^beta).

    Args:
        sizes: odd sides of the kernels in pixels. A single number stands for all kernels, here and below.
        sigma_x, sigma_y: standard deviations along the two axes in pixels.
        theta: angle from the x axis of the picture to the first axis of the kernel, in radians.
        beta: exponent.
        plateau: whether it is a plateau kernel.
        pad_to: side of the result; default the largest of ``sizes``. What lies outside of a kernel is zero.

    Returns:
        float64 ``(N, pad_to, pad_to)`` on the CPU; each sums to one.
    """
    columns = [_column(values) for values in (sizes, sigma_x, sigma_y, theta, beta)]
    size, first, second, angle, exponent = torch.broadcast_tensors(*columns)
    x, y = _grid(size, pad_to)
    along = (x * angle.cos() + y * angle.sin()) / first
    across = (y * angle.cos() - x * angle.sin()) / second
    q = (along**2 + across**2) ** exponent
    flat = torch.as_tensor(plateau).reshape(-1, 1, 1)
    return _normalized(torch.where(flat, 1 / (1 + q), torch.exp(-q / 2)), size)


def sinc_kernels(cutoff: Values, sizes: Values, pad_to: int | None = None) -> Tensor:
    """Ideal round low-pass filters, cut to a square: c J1(c r) / (2 pi r), with c^2 / (4 pi) in the middle.

    Args:
        cutoff: highest frequency that passes, in radians per pixel (pi passes everything).
        sizes, pad_to: as for :func:`blur_kernels`.

    Returns:
        float64 ``(N, pad_to, pad_to)`` on the CPU; each sums to one.
    """
    size, limit = torch.broadcast_tensors(_column(sizes), _column(cutoff))
    x, y = _grid(size, pad_to)
    # the same few distances from the middle occur again and again; the first one is 0
    squares, place = torch.unique(x**2 + y**2, return_inverse=True)
    limit, radius = limit.reshape(-1, 1), squares.sqrt()[1:]
    rings = limit * _bessel_j1(limit * radius) / (2 * math.pi * radius)
    values = torch.cat([limit**2 / (4 * math.pi), rings], 1)
    return _normalized(values[:, place.squeeze(0)], size)


def _bessel_j1(z: Tensor) -> Tensor:
    """Bessel's function J1 by its integral, whose trapezoid rule is exact to rounding; torch's own is good to eight digits only."""
    steps = int(z.max()) + 32
    angle = torch.arange(steps, dtype=z.dtype) * (math.pi / steps)
    phase = angle - z.unsqueeze(-1) * angle.sin()
    # the two ends of the integral, cos(0) = 1 and cos(pi) = -1, cancel out
    return phase.cos()[..., 1:].sum(-1) / steps


def identity_kernels(count: int, size: int) -> Tensor:
    """Kernels that change nothing, float64 ``(count, size, size)``."""
    kernels = torch.zeros(count, size, size, dtype=torch.float64)
    kernels[:, size // 2, size // 2] = 1
    return kernels


def draw_kernels(
    draws: Draws,
    count: int,
    *,
    largest: int,
    kinds: Sequence[KernelKind],
    shares: Sequence[float],
    sinc_prob: float,
    sigma: Range,
    betag: Range,
    betap: Range,
) -> Kernels:
    """One kernel for each image of a batch, as the published data set draws them.

    Sides are odd numbers from 7 to ``largest``. The exponents of generalized and plateau kernels lie below and above 1 equally
    often.
    """
    sizes = draw_sizes(draws, count, largest)
    kind = [kinds[i] for i in draws.indices(shares, count).tolist()]
    round_ = torch.tensor([name in ("iso", "generalized_iso", "plateau_iso") for name in kind])
    generalized = torch.tensor([name.startswith("generalized") for name in kind])
    plateau = torch.tensor([name.startswith("plateau") for name in kind])
    sigma_x, sigma_y = draws.uniform(sigma, count), draws.uniform(sigma, count)
    beta = torch.ones(count, dtype=torch.float64)
    for which, (low, high) in ((generalized, betag), (plateau, betap)):
        below = draws.chances(0.5, count)
        drawn = torch.where(below, draws.uniform((low, 1), count), draws.uniform((1, high), count))
        beta = torch.where(which, drawn, beta)
    theta = torch.where(round_, 0.0, draws.uniform((-math.pi, math.pi), count))
    pad_to = int(sizes.max())
    sigma_y = torch.where(round_, sigma_x, sigma_y)
    blurs = blur_kernels(sizes, sigma_x, sigma_y, theta, beta, plateau, pad_to)
    is_sinc, cutoffs = draws.chances(sinc_prob, count), _draw_cutoffs(draws, sizes)
    return Kernels(
        torch.where(is_sinc.reshape(-1, 1, 1), sinc_kernels(cutoffs, sizes, pad_to), blurs),
        tuple("sinc" if sinc else name for sinc, name in zip(is_sinc.tolist(), kind, strict=True)),
        torch.where(is_sinc, cutoffs, torch.maximum(sigma_x, sigma_y)),
    )


def draw_final_sinc(draws: Draws, count: int, probability: float, largest: int) -> Kernels:
    """The filters beside the last compression: sinc with a probability, else nothing."""
    sizes = draw_sizes(draws, count, largest)
    pad_to = int(sizes.max())
    cutoffs, is_sinc = draws.uniform((math.pi / 3, math.pi), count), draws.chances(probability, count)
    weights = torch.where(is_sinc.reshape(-1, 1, 1), sinc_kernels(cutoffs, sizes, pad_to), identity_kernels(count, pad_to))
    names = tuple("sinc" if sinc else "none" for sinc in is_sinc.tolist())
    return Kernels(weights, names, torch.where(is_sinc, cutoffs, 0.0))


def draw_sizes(draws: Draws, count: int, largest: int) -> Tensor:
    """Odd sides from 7 to ``largest``, equally often."""
    return SMALLEST_KERNEL + 2 * draws.indices([1.0] * ((largest - SMALLEST_KERNEL) // 2 + 1), count)


def _draw_cutoffs(draws: Draws, sizes: Tensor) -> Tensor:
    # a small kernel cannot hold a low cut-off
    lowest = torch.where(sizes < 13, math.pi / 3, math.pi / 5).double()
    return lowest + draws.uniform((0, 1), len(sizes)) * (math.pi - lowest)


def _column(values: Values) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64).reshape(-1, 1, 1)


def _grid(sizes: Tensor, pad_to: int | None) -> tuple[Tensor, Tensor]:
    """Distances from the middle, x to the right and y down."""
    side = int(sizes.max()) if pad_to is None else pad_to
    steps = torch.arange(side, dtype=torch.float64) - side // 2
    return steps.reshape(1, 1, -1), steps.reshape(1, -1, 1)


def _normalized(kernels: Tensor, sizes: Tensor) -> Tensor:
    reach = kernels.shape[-1]
    distance = (torch.arange(reach) - reach // 2).abs()
    outside = torch.maximum(distance.reshape(1, 1, -1), distance.reshape(1, -1, 1)) > (sizes - 1) / 2
    kernels = kernels.masked_fill(outside, 0)
    return kernels / kernels.sum((-2, -1), keepdim=True)

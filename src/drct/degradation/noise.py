"""Gaussian and Poisson noise, in colour and in grey, of a strength of its own for each image."""

from __future__ import annotations

import torch
from torch import Tensor

from drct.degradation.draws import Draws

GREY = (0.299, 0.587, 0.114)


def gaussian_noise(x: Tensor, sigma: Tensor, grey: Tensor, draws: Draws) -> Tensor:
    """Gaussian noise to be added to images.

    Args:
        x: ``(N, 3, H, W)`` in 0..1.
        sigma: ``(N,)`` standard deviations, of 255.
        grey: ``(N,)`` booleans: the same noise in all channels.
        draws: random numbers.

    Returns:
        ``(N, 3, H, W)``; the sum is not clipped.
    """
    noise = draws.normal(x.shape, x)
    noise = torch.where(_column(grey, x).bool(), noise[:, :1], noise)
    return noise * _column(sigma / 255, x)


def poisson_noise(x: Tensor, scale: Tensor, grey: Tensor, draws: Draws) -> Tensor:
    """Poisson noise to be added to images: a pixel of value v is taken for v * levels photons.

    The number of levels is the next power of two above the number of different 8-bit values in the image.

    Args:
        x: ``(N, 3, H, W)``, taken in 0..1 with 8 bits.
        scale: ``(N,)`` strengths; 1 is the noise of the photons.
        grey: ``(N,)`` booleans: the noise of the grey image in all channels.
        draws: random numbers.

    Returns:
        ``(N, 3, H, W)``; the sum is not clipped.
    """
    noise = torch.zeros_like(x)
    for wanted, source in ((~grey, x), (grey, _grey(x))):
        if bool(wanted.any()):
            photons = (source * 255).round().clamp(0, 255)
            levels = _levels(photons)
            photons = photons / 255 * levels
            drawn = (draws.poisson(photons) - photons) / levels
            noise = torch.where(_column(wanted, x).bool(), drawn, noise)
    return noise * _column(scale, x)


def _grey(x: Tensor) -> Tensor:
    return torch.einsum("j,njhw->nhw", x.new_tensor(GREY), x).unsqueeze(1)


def _levels(photons: Tensor) -> Tensor:
    """``(N, 1, 1, 1)``, from ``(N, C, H, W)`` in whole numbers 0..255."""
    values = photons.flatten(1).long()
    seen = torch.zeros(len(values), 256, device=photons.device).scatter_(1, values, 1)
    return torch.exp2(seen.sum(1).log2().ceil()).reshape(-1, 1, 1, 1)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device, like.dtype, non_blocking=True).reshape(-1, 1, 1, 1)

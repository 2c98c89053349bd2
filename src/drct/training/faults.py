"""Faults in clean training pairs: what a network does with images that are not as clean as those it is trained on.

Networks that know nothing but clean LR blow the noise of a scan, the blocks of a JPEG file and sharpened edges up to blotches: dark
areas may turn black. Here some LR patches get such faults, and their GT gets the same ones, enlarged by the bicubic: the network
learns to leave to other networks what it cannot restore, and to pass it on as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from drct.degradation import jpeg
from drct.degradation.draws import Draws
from drct.degradation.filters import blur
from drct.degradation.noise import gaussian_noise
from drct.imaging import resize

EACH = 0.5  # how often each of the three kinds comes: an image may have several, as photographs of the web do
SHARPENING = (0.0, 3.0)  # weight of the unsharp mask
NOISE = (1.0, 30.0)  # standard deviation, of 255; in equal parts of a logarithmic scale
QUALITY = (10.0, 95.0)  # of JPEG


def add_faults(lq: Tensor, gt: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Give some pairs of a batch sharpening, noise and JPEG errors, in this order.

    Args:
        lq: ``(N, 3, h, w)`` float32 in 0..1.
        gt: ``(N, 3, H, W)`` float32 in 0..1, a whole number of times larger.
        share: how many of all pairs, 0..1, may get faults.
        generator: on the CPU.

    Returns:
        New ``lq``, with 8 bits, and ``gt``; pairs without faults keep their values.
    """
    draws = Draws(generator)
    count = len(lq)
    chosen = draws.chances(share, count)
    faulty = lq
    weight = draws.uniform(SHARPENING, count) * draws.chances(EACH, count)
    faulty = faulty + _column(weight, lq) * (faulty - blur(faulty, 1.0, 7))
    sigma = draws.logarithmic(NOISE, count) * draws.chances(EACH, count)
    faulty = (faulty + gaussian_noise(faulty, sigma, draws.chances(0.5, count), draws)).clamp(0, 1)
    compressed = jpeg(faulty, draws.uniform(QUALITY, count))
    faulty = torch.where(_column(draws.chances(EACH, count), lq).bool(), compressed, faulty)
    return passed_on(torch.where(_column(chosen, lq).bool(), faulty, lq), lq, gt)


def add_grain(
    lq: Tensor, gt: Tensor, share: float, range_: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Give some pairs Gaussian noise alone, grey in half of them; arguments and result as those of :func:`add_faults`.

    ``range_``: standard deviation, of 255; in equal parts of a logarithmic scale.
    """
    draws = Draws(generator)
    count = len(lq)
    sigma = draws.logarithmic(range_, count) * draws.chances(share, count)
    noise = gaussian_noise(lq, sigma, draws.chances(0.5, count), draws)
    return passed_on((lq + noise).clamp(0, 1), lq, gt)


def passed_on(faulty: Tensor, lq: Tensor, gt: Tensor) -> tuple[Tensor, Tensor]:
    """LR with faults, rounded to 8 bits, and GT with the same ones, enlarged by the bicubic."""
    faulty = (faulty * 255).round() / 255
    return faulty, (gt + resize(faulty - lq, size=(gt.shape[-2], gt.shape[-1]))).clamp(0, 1)


def _column(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device, like.dtype, non_blocking=True).reshape(-1, 1, 1, 1)

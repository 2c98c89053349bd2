"""Dead leaves in place of photographs: discs and rectangles of plain colours that fall on each other.

Plain surfaces with sharp outlines are rare in photographs; drawings, charts, screens and scans consist of them. A network that has
not seen them may take some for something else and paint whole windows black. Random ones are known to teach restoration even by
themselves (Achddou, Gousseau, Ladjal: Synthetic images as a regularity prior for image restoration neural networks, SSVM 2021).
The model with its power law of sizes is that of Lee, Mumford and Huang (Occlusion models for natural images, IJCV 2001).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from drct.degradation.draws import Draws
from drct.imaging import resize
from drct.training.faults import add_faults, add_grain

LEAVES = (2.0, 40.0)  # how many lie in an image; this and what follows in equal parts of a logarithmic scale
SMALLEST = (0.02, 0.2)  # radius of the smallest leaves that an image can have, of its side; that of the largest is the side
ASPECT = (0.1, 1.0)  # of a leaf: its width by its length
SOFTNESS = (0.5, 3.0)  # width of outlines in pixels
SHADING = 0.2  # how much of the range a leaf may change over the side of the image
GRAIN = 0.5  # how many get weak noise: it is on plain surfaces that networks take it for something else
SIGMA = (0.5, 8.0)  # its standard deviation, of 255
AT_ONCE = 8  # leaves that a GPU draws side by side: one by one, it would wait for most of its launches; a CPU's cache is too small
FAULTS = 0.5  # how many get the faults of :mod:`.faults`: many drawings of the web are compressed or scanned


def dead_leaves(count: int, side: int, draws: Draws, device: torch.device) -> Tensor:
    """Draw images.

    Args:
        count: number of images.
        side: their side in pixels.
        draws: random numbers.
        device: where they are made.

    Returns:
        ``(count, 3, side, side)`` float32 in 0..1, in steps of 1/255.
    """
    most = int(LEAVES[1])

    def uniform(low: float, high: float, leaves: int = most) -> Tensor:
        """``(count, leaves, 1, 1)``"""
        return draws.uniform((low, high), count * leaves).float().reshape(count, leaves, 1, 1)

    def logarithmic(range_: tuple[float, float], leaves: int = most) -> Tensor:
        return draws.logarithmic(range_, count * leaves).float().reshape(count, leaves, 1, 1)

    present = torch.arange(most).reshape(1, -1, 1, 1) < logarithmic(LEAVES, 1)
    smallest = logarithmic(SMALLEST, 1)
    # areas of all sizes cover equally much: the density of radii falls with their third power
    radius = side * (smallest**-2 + uniform(0, 1) * (1 - smallest**-2)).rsqrt()
    width = radius * logarithmic(ASPECT)
    angle = uniform(0, 2 * math.pi)
    x, y = uniform(0, side), uniform(0, side)
    disc = uniform(0, 1) < 0.5
    softness = logarithmic(SOFTNESS, 1)
    colour = _colours(count, most + 1, draws)
    slope = SHADING / side * torch.cat([uniform(-1, 1), uniform(-1, 1)], -1) * (uniform(0, 1) < 0.5)

    values = present, radius, width, angle, x, y, disc, softness.expand(-1, most, -1, -1), colour[:, :-1], slope
    at_once = 1 if device.type == "cpu" else AT_ONCE
    fallen = [v.to(device, non_blocking=True).split(at_once, 1) for v in values]
    image = colour[:, -1].to(device, non_blocking=True).expand(-1, -1, side, side)
    for some in zip(*fallen, strict=True):
        image = _fall(image, *some)
    return (image * 255).round() / 255


def _fall(
    image: Tensor,
    present: Tensor,
    radius: Tensor,
    width: Tensor,
    angle: Tensor,
    x: Tensor,
    y: Tensor,
    disc: Tensor,
    softness: Tensor,
    colour: Tensor,
    slope: Tensor,
) -> Tensor:
    """Let some leaves fall on images, ``(N, 3, S, S)``. Of the leaves, ``(N, some, 1, 1)`` each but for the last two:

    Args:
        present: whether there is one.
        radius, width: half its length and half its width in pixels.
        angle: in which it lies.
        x, y: its centre.
        disc: or rectangle.
        softness: width of its outline.
        colour: ``(N, some, 3, 1, 1)``.
        slope: ``(N, some, 1, 2)``, change of colour per pixel to the right and down.
    """
    at = torch.arange(image.shape[-1], device=image.device)
    dx, dy = at - x, at[:, None] - y
    along = dx * angle.cos() + dy * angle.sin()
    across = dy * angle.cos() - dx * angle.sin()
    of_disc = (torch.hypot(along / radius, across / width) - 1) * width
    of_rectangle = torch.maximum(along.abs() - radius, across.abs() - width)
    outside = torch.where(disc, of_disc, of_rectangle)  # distance to the outline, roughly for flat discs
    covered = ((0.5 - outside / softness).clamp_(0, 1) * present)[:, :, None]
    shading = (dx * slope[..., :1] + dy * slope[..., 1:])[:, :, None]
    shaded = (colour + shading).clamp_(0, 1)
    for i in range(x.shape[1]):
        image = torch.lerp(image, shaded[:, i], covered[:, i])
    return image


def _colours(count: int, leaves: int, draws: Draws) -> Tensor:
    """``(count, leaves, 3, 1, 1)`` in 0..1: half of the images are grey, a third each mostly dark, light, of all tones."""
    colour = draws.uniform((0, 1), count * leaves * 3).float().reshape(count, leaves, 3)
    grey = draws.chances(0.5, count).reshape(-1, 1, 1)
    colour = torch.where(grey, colour[..., :1], colour)
    tones = draws.indices((1, 1, 1), count).reshape(-1, 1, 1)
    colour = torch.where(tones == 0, colour**2, torch.where(tones == 1, 1 - colour**2, colour))
    return colour[..., None, None]


def add_leaves(lq: Tensor, gt: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put dead leaves in the place of some pairs of a batch: LR made by the MATLAB bicubic, some with noise and faults.

    Args:
        lq: ``(N, 3, h, h)`` float32 in 0..1.
        gt: ``(N, 3, H, H)`` float32 in 0..1, a whole number of times larger.
        share: how many of all pairs, 0..1.
        generator: on the CPU.

    Returns:
        ``lq`` and ``gt``, new where a pair was replaced.
    """
    draws = Draws(generator)
    chosen = _chosen(len(gt), share, draws, gt.device)
    if not len(chosen):
        return lq, gt
    scale = gt.shape[-1] // lq.shape[-1]
    border = 2  # the kernel of the bicubic reaches 2 LR pixels to each side
    leaves = dead_leaves(len(chosen), gt.shape[-1] + 2 * border * scale, draws, gt.device)
    reduced = resize(255 * leaves, scale=1 / scale, rounding="uint8_per_pass") / 255
    leaves = leaves[..., border * scale : -border * scale, border * scale : -border * scale]
    reduced, leaves = add_grain(reduced[..., border:-border, border:-border], leaves, GRAIN, SIGMA, generator)
    reduced, leaves = add_faults(reduced, leaves, FAULTS, generator)
    return lq.index_copy(0, chosen, reduced), gt.index_copy(0, chosen, leaves)


def add_leaves_to_degrade(gt: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Put dead leaves in the place of some images ``(N, 3, H, H)`` that have no LR yet; the rest as in :func:`add_leaves`."""
    draws = Draws(generator)
    chosen = _chosen(len(gt), share, draws, gt.device)
    return gt.index_copy(0, chosen, dead_leaves(len(chosen), gt.shape[-1], draws, gt.device)) if len(chosen) else gt


def _chosen(count: int, share: float, draws: Draws, device: torch.device) -> Tensor:
    return draws.chances(share, count).nonzero()[:, 0].to(device, non_blocking=True)

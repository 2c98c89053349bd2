"""Filters of images by small kernels, and the sharpening of ground truth."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

USM_SIDE = 51
USM_SIGMA = 0.3 * ((USM_SIDE - 1) * 0.5 - 1) + 0.8  # OpenCV's rule for a kernel that is given by its side


def filter2d(x: Tensor, kernels: Tensor) -> Tensor:
    """Filter images, each by its own kernel, with mirrored borders (the edge pixel not repeated).

    Args:
        x: ``(N, C, H, W)``.
        kernels: ``(K, K)`` or ``(N, K, K)``, K odd, in any floating type on any device. Not flipped.

    Returns:
        ``(N, C, H, W)``.
    """
    n, c, h, w = x.shape
    side = kernels.shape[-1]
    weight = kernels.to(x.device, x.dtype, non_blocking=True).expand(n, side, side)
    padded = mirrored(x, side // 2, side // 2).reshape(1, n * c, h + side - 1, w + side - 1)
    # one group per plane: CPUs and GPUs both have fast code for that
    planes = weight.reshape(n, 1, 1, side, side).expand(n, c, 1, side, side).reshape(n * c, 1, side, side)
    return F.conv2d(padded, planes, groups=n * c).reshape(n, c, h, w)


def mirrored(x: Tensor, rows: int, columns: int) -> Tensor:
    """Mirror the borders of ``(N, C, H, W)``; images smaller than the border are mirrored again and again."""
    h, w = x.shape[-2:]
    if rows < h and columns < w:
        return F.pad(x, (columns, columns, rows, rows), mode="reflect")
    return x[..., _mirror(h, rows, x.device)[:, None], _mirror(w, columns, x.device)]


def _mirror(length: int, border: int, device: torch.device) -> Tensor:
    index = torch.arange(-border, length + border, device=device)
    if length == 1:
        return torch.zeros_like(index)
    index = index.remainder(2 * (length - 1))
    return torch.minimum(index, 2 * (length - 1) - index)


def blur(x: Tensor, sigma: float, side: int) -> Tensor:
    """A Gaussian blur of ``(N, C, H, W)`` in two passes, with mirrored borders."""
    c = x.shape[1]
    line = _gaussian_line(side, sigma).to(x.device, x.dtype, non_blocking=True)
    padded = mirrored(x, side // 2, side // 2)
    rows = F.conv2d(padded, line.reshape(1, 1, side, 1).expand(c, 1, side, 1), groups=c)
    return F.conv2d(rows, line.reshape(1, 1, 1, side).expand(c, 1, 1, side), groups=c)


def usm_sharpen(x: Tensor, weight: float = 0.5, threshold: float = 10.0) -> Tensor:
    """Sharpen ground truth by unsharp masking, where it differs from its blur (Real-ESRGAN, section 3.5).

    Args:
        x: ``(N, C, H, W)`` in 0..1.
        weight: of what is added.
        threshold: smallest difference from the blurred image that counts, of 255.

    Returns:
        ``(N, C, H, W)`` in 0..1.
    """
    difference = x - blur(x, USM_SIGMA, USM_SIDE)
    # the edge of the mask is blurred, so that it does not show
    mask = blur((difference.abs() * 255 > threshold).to(x.dtype), USM_SIGMA, USM_SIDE)
    sharp = (x + weight * difference).clamp(0, 1)
    return torch.lerp(x, sharp, mask)


@functools.lru_cache(maxsize=64)  # a limit, since sigma may be drawn at random
def _gaussian_line(side: int, sigma: float) -> Tensor:
    steps = torch.arange(side, dtype=torch.float64) - side // 2
    line = torch.exp(-(steps**2) / (2 * sigma**2))
    return line / line.sum()

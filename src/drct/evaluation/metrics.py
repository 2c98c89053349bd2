"""Full-reference metrics as functions on batches of images: PSNR, SSIM and multi-scale SSIM.

Images are tensors of shape ``(N, C, H, W)`` with C 1 or 3 (RGB): floating point in 0..1, or uint8 in 0..255. Every function returns
one float64 value per image, shape ``(N,)``. The published tables of super-resolution use ``y=True, crop=scale`` on images that were
rounded to 8 bits before; :func:`quantize` does that rounding.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from drct.errors import DataError
from drct.imaging import rgb_to_y

MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, section 3.2, finest scale first
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2  # constants of SSIM for values in 0..1


def quantize(x: Tensor) -> Tensor:
    """Clip to 0..1 and round to the 256 values that an 8-bit file can hold; same shape and type, values 0..1."""
    return (x.clamp(0, 1) * 255).round() / 255


def psnr(sr: Tensor, gt: Tensor, *, y: bool = False, crop: int = 0) -> Tensor:
    """Peak signal-to-noise ratio in dB, ``-10 log10(mean squared error)`` over all pixels and channels of an image.

    Args:
        sr: images, ``(N, C, H, W)``, float 0..1 or uint8.
        gt: ground truth of the same shape.
        y: compare the luma of BT.601 (16..235, not rounded) instead of RGB; single-channel images are compared as they are.
        crop: pixels cut from each side before comparing.

    Returns:
        ``(N,)`` float64; infinity for identical images.

    Raises:
        DataError: the shapes differ, or nothing is left after cropping.
    """
    a, b = _prepare(sr, gt, y, crop)
    return -10 * (a - b).square().mean((1, 2, 3)).log10()


def ssim(sr: Tensor, gt: Tensor, *, y: bool = False, crop: int = 0) -> Tensor:
    """Structural similarity (Wang et al. 2004, IEEE TIP 13(4)), at most 1.

    11 x 11 Gaussian window of sigma 1.5, no padding: only positions where the whole window lies in the image count. Colour images
    get the mean over their channels. Arguments, shapes and errors are those of :func:`psnr`; images need at least 11 x 11 pixels
    after cropping.
    """
    a, b = _prepare(sr, gt, y, crop)
    if min(a.shape[-2:]) < SSIM_WINDOW:
        raise DataError(f"SSIM needs {SSIM_WINDOW} x {SSIM_WINDOW} pixels after cropping, got {_size(a)}: use larger images")
    return _ssim_maps(a, b)[0].mean((1, 2, 3))


def ms_ssim(sr: Tensor, gt: Tensor, *, y: bool = False, crop: int = 0) -> Tensor:
    """Multi-scale structural similarity (Wang, Simoncelli and Bovik, Asilomar 2003), 0..1.

    Five scales, each half the size of the last by averaging 2 x 2 pixels (an odd last row or column is mirrored, as in the
    authors' program); contrast and structure count at every scale, luminance at the coarsest, with the exponents of the paper.
    Negative terms count as 0. Each channel has its own product; colour images get their mean. Arguments are those of
    :func:`psnr`; images need at least 161 x 161 pixels after cropping.
    """
    a, b = _prepare(sr, gt, y, crop)
    smallest = (SSIM_WINDOW - 1) * 2 ** (len(MS_SSIM_WEIGHTS) - 1) + 1
    if min(a.shape[-2:]) < smallest:
        raise DataError(f"MS-SSIM needs {smallest} x {smallest} pixels after cropping, got {_size(a)}: use larger images or SSIM")
    result = torch.ones(a.shape[:2], dtype=a.dtype, device=a.device)
    for level, weight in enumerate(MS_SSIM_WEIGHTS):
        whole, contrast = (m.mean((2, 3)).clamp(min=0) for m in _ssim_maps(a, b))
        coarsest = level == len(MS_SSIM_WEIGHTS) - 1
        result = result * (whole if coarsest else contrast) ** weight
        if not coarsest:
            odd = (0, a.shape[-1] % 2, 0, a.shape[-2] % 2)
            a, b = (F.avg_pool2d(F.pad(t, odd, mode="replicate"), 2) for t in (a, b))
    return result.mean(1)


def to_float(x: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Images as floating point in 0..1; uint8 is divided by 255. Raises :class:`DataError` for other types and shapes."""
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        raise DataError(f"metrics take images of shape (N, 3, H, W) or (N, 1, H, W), got {tuple(x.shape)}")
    if x.device.type == "mps" and dtype == torch.float64:
        x = x.cpu()  # Apple's GPUs have no float64
    if x.dtype == torch.uint8:
        return x.to(dtype) / 255
    if not x.is_floating_point():
        raise DataError(f"metrics take floating point images in 0..1 or uint8, got {x.dtype}")
    return x.to(dtype)


def crop_border(x: Tensor, crop: int) -> Tensor:
    """Cut ``crop`` pixels from each side of ``(..., H, W)``; raises :class:`DataError` when nothing would be left."""
    h, w = x.shape[-2:]
    if crop < 0 or 2 * crop >= min(h, w):
        raise DataError(f"cannot cut {crop} pixels from each side of an image of {_size(x)}")
    return x[..., crop : h - crop, crop : w - crop]


def luma(x: Tensor) -> Tensor:
    """Luma of BT.601, ``(N, 1, H, W)``, 16/255..235/255 for RGB in 0..1; single-channel images are returned as they are."""
    return x if x.shape[1] == 1 else rgb_to_y(x) / 255


def _prepare(sr: Tensor, gt: Tensor, y: bool, crop: int) -> tuple[Tensor, Tensor]:
    if sr.shape != gt.shape:
        raise DataError(f"images to compare differ in shape: {tuple(sr.shape)} and {tuple(gt.shape)}")
    a, b = (crop_border(to_float(t), crop) for t in (sr, gt))
    return (luma(a), luma(b)) if y else (a, b)


def _size(x: Tensor) -> str:
    return f"{x.shape[-1]} x {x.shape[-2]}"


def _ssim_maps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """SSIM at each position, and its contrast-structure factor alone; ``(N, C, H - 10, W - 10)`` each."""
    mean_a, mean_b, aa, bb, ab = (_blur(x) for x in (a, b, a * a, b * b, a * b))
    variances = aa - mean_a.square() + bb - mean_b.square()
    contrast = (2 * (ab - mean_a * mean_b) + C2) / (variances + C2)
    luminance = (2 * mean_a * mean_b + C1) / (mean_a.square() + mean_b.square() + C1)
    return luminance * contrast, contrast


def _blur(x: Tensor) -> Tensor:
    """Gaussian-weighted means of all 11 x 11 windows that lie in the image."""
    weights = [math.exp(-((i - SSIM_WINDOW // 2) ** 2) / (2 * SSIM_SIGMA**2)) for i in range(SSIM_WINDOW)]
    for dim in (-2, -1):
        length = x.shape[dim] - SSIM_WINDOW + 1
        # shifted sums: ten times as fast as a convolution of one channel in float64
        total = x.narrow(dim, 0, length) * (weights[0] / sum(weights))
        for i in range(1, SSIM_WINDOW):
            total.add_(x.narrow(dim, i, length), alpha=weights[i] / sum(weights))
        x = total
    return x

"""BT.601 luma and YCbCr in the studio swing of MATLAB's ``rgb2ycbcr``, as the benchmarks of the field measure it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

Image = TypeVar("Image", np.ndarray, "Tensor")

# Rows Y, Cb, Cr for R, G, B in 0..1 (ITU-R BT.601, 8-bit quantization: Y 16..235, Cb and Cr 16..240).
# Plain numbers: a numpy scalar would turn float32 images into float64.
FROM_RGB = ((65.481, 128.553, 24.966), (-37.797, -74.203, 112.0), (112.0, -93.786, -18.214))
OFFSET = (16.0, 128.0, 128.0)
TO_RGB = np.linalg.inv(np.array(FROM_RGB)).tolist()


def rgb_to_y(rgb: Image, rounded: bool = False) -> Image:
    """BT.601 luma.

    Args:
        rgb: numpy ``(..., 3)`` or torch ``(..., 3, H, W)``: uint8 0..255, uint16 0..65535, or floats 0..1.
        rounded: round half up to whole levels and clip to 0..255, as MATLAB does for 8-bit images; the published PSNR and SSIM
            figures use unrounded luma.

    Returns:
        Y in 16..235 as floats (float64 for float64 input, else float32), numpy ``(...)`` or torch ``(..., 1, H, W)``.
    """
    x, last = _unit_range(rgb)
    y = _weighted(x, FROM_RGB[0], last) + OFFSET[0]
    y = _round(y) if rounded else y
    return y if last else y.unsqueeze(-3)


def rgb_to_ycbcr(rgb: Image, rounded: bool = False) -> Image:
    """Y, Cb and Cr in 16..235 and 16..240, same layout as the input; arguments as for :func:`rgb_to_y`."""
    x, last = _unit_range(rgb)
    planes = [_weighted(x, row, last) + offset for row, offset in zip(FROM_RGB, OFFSET, strict=True)]
    if rounded:
        planes = [_round(p) for p in planes]
    return _stack(planes, last)


def ycbcr_to_rgb(ycbcr: Image) -> Image:
    """RGB in 0..1, not clipped, from floats as :func:`rgb_to_ycbcr` returns them."""
    last = isinstance(ycbcr, np.ndarray)
    channels: list[Any] = [ycbcr[..., i] if isinstance(ycbcr, np.ndarray) else ycbcr.select(-3, i) for i in range(3)]
    return _stack([sum((channels[i] - OFFSET[i]) * row[i] for i in range(3)) for row in TO_RGB], last)


def _unit_range(rgb: Any) -> tuple[Any, bool]:
    """The image as floats in 0..1, and whether its channels are last (numpy)."""
    if isinstance(rgb, np.ndarray):
        if rgb.dtype.kind == "f":
            return (rgb if rgb.dtype == np.float64 else rgb.astype(np.float32)), True
        return rgb.astype(np.float32) / np.float32(np.iinfo(rgb.dtype).max), True
    import torch

    if rgb.is_floating_point():
        return (rgb if rgb.dtype == torch.float64 else rgb.float()), False
    return rgb.float() / torch.iinfo(rgb.dtype).max, False


def _weighted(x: Any, row: tuple[float, float, float], last: bool) -> Any:
    r, g, b = (x[..., i] if last else x.select(-3, i) for i in range(3))
    return r * row[0] + g * row[1] + b * row[2]


def _round(x: Any) -> Any:
    return np.clip(np.floor(x + 0.5), 0, 255) if isinstance(x, np.ndarray) else (x + 0.5).floor().clamp(0, 255)


def _stack(planes: list[Any], last: bool) -> Any:
    if last:
        return np.stack(planes, axis=-1)
    import torch

    return torch.stack(planes, dim=-3)

"""JPEG by its formulas: batched, on any device, and differentiable if wanted."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from drct.errors import OptionError

# Recommendation T.81 annex K: tables K.1 and K.2, row by row
LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# JFIF: full-range BT.601
TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def jpeg(x: Tensor, quality: Tensor | float, differentiable: bool = False) -> Tensor:
    """What JPEG with halved chroma (4:2:0) leaves of images.

    Sides are filled up to multiples of 16 by repeating the last row and column, as encoders do.

    Args:
        x: ``(N, 3, H, W)`` RGB in 0..1.
        quality: 1..100 in the scale of the Independent JPEG Group, one for all or ``(N,)``; fractions are allowed.
        differentiable: round by a cubic whose slope is not zero between whole numbers (Shin and Song, "JPEG-resistant
            adversarial images", 2017), so that gradients pass.

    Returns:
        ``(N, 3, H, W)`` in 0..1.

    Raises:
        OptionError: a quality outside of 1..100.
    """
    n, _, h, w = x.shape
    factor = _factor(quality, n).to(x.device, x.dtype, non_blocking=True).reshape(n, 1, 1, 1, 1, 1)
    to_ycbcr, to_rgb, luma_table, chroma_table, cosines = _constants(x.device, x.dtype)
    ycbcr = torch.einsum("ij,njhw->nihw", to_ycbcr, x * 255)
    ycbcr = F.pad(ycbcr, (0, -w % 16, 0, -h % 16), mode="replicate")
    luma = _coded(ycbcr[:, :1] - 128, factor, luma_table, cosines, differentiable)
    chroma = _coded(F.avg_pool2d(ycbcr[:, 1:], 2), factor, chroma_table, cosines, differentiable)
    planes = torch.cat([luma + 128, chroma.repeat_interleave(2, -2).repeat_interleave(2, -1)], 1)[..., :h, :w]
    return torch.einsum("ij,njhw->nihw", to_rgb, planes).div(255).clamp(0, 1)


def _factor(quality: Tensor | float, count: int) -> Tensor:
    """By how much the tables are stretched."""
    q = torch.as_tensor(quality, dtype=torch.float64).expand(count)
    if not q.is_cuda and not bool(((q >= 1) & (q <= 100)).all()):
        raise OptionError(f"JPEG quality must be 1 to 100, not {q.min():g} to {q.max():g}")
    return torch.where(q < 50, 50 / q, 2 - q / 50)


def _coded(planes: Tensor, factor: Tensor, table: Tensor, cosines: Tensor, differentiable: bool) -> Tensor:
    """Planes ``(N, C, H, W)`` after the transform of their 8 x 8 blocks, quantization and the way back."""
    n, c, h, w = planes.shape
    blocks = planes.reshape(n, c, h // 8, 8, w // 8, 8).transpose(3, 4)
    steps = (table * factor).clamp(min=1)
    scaled = cosines @ blocks @ cosines.T / steps
    rounded = scaled.round()
    if differentiable:
        rounded = rounded.detach() + (scaled - rounded.detach()) ** 3
    blocks = cosines.T @ (rounded * steps) @ cosines
    return blocks.transpose(3, 4).reshape(n, c, h, w)


@functools.cache
def _constants(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Matrices to YCbCr and back, tables of luma and chroma, and the transform; on a device once, since copying makes it wait."""
    # The published maths applies table K.1 with its axes swapped; networks were trained on that, so it is kept.
    with torch.inference_mode(False):  # they may be kept for a backward pass
        values = torch.tensor(TO_YCBCR), torch.tensor(TO_RGB), torch.tensor(LUMA).T, torch.tensor(CHROMA), _cosines()
        return tuple(value.to(device, dtype) for value in values)


def _cosines() -> Tensor:
    """The orthonormal 8-point discrete cosine transform as a matrix."""
    frequency, place = torch.arange(8, dtype=torch.float64).reshape(-1, 1), torch.arange(8, dtype=torch.float64)
    matrix = torch.cos((2 * place + 1) * frequency * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix

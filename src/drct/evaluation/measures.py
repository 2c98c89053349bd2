"""The metrics by name, as test runs and tables use them, in the conventions of the field.

The conventions differ in how PSNR, SSIM and MS-SSIM on Y see an image:

* ``"float"``: luma of colour images in floating point; grey images (Set14 has one) are compared as they are.
* ``"basicsr"``: the same, but grey images count as RGB, whose luma spans 16..235 only. So the programs measured that made the
  published figures of SwinIR, HAT and DRCT: 0.09 dB more on Set14.
* ``"matlab"``: luma is rounded to 8 bits; grey images are compared as they are. So older tables were made: about 0.01 dB less.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from drct.errors import OptionError, did_you_mean
from drct.evaluation.metrics import ms_ssim, psnr, ssim
from drct.evaluation.no_reference import niqe
from drct.evaluation.perceptual import dists, lpips
from drct.imaging import rgb_to_y

Convention = Literal["float", "basicsr", "matlab"]
ON_Y = ("psnr", "ssim", "ms_ssim", "niqe")


@dataclasses.dataclass(frozen=True)
class Measure:
    """A metric as tables show it.

    Attributes:
        label: heading of its column.
        function: takes SR, ground truth (each ``(1, 3, H, W)``) and the pixels to cut from each side.
        digits: decimals in tables.
        higher_is_better: direction.
        needs_hr: whether it compares with ground truth.
    """

    label: str
    function: Callable[[Tensor, Tensor, int], Tensor]
    digits: int
    higher_is_better: bool
    needs_hr: bool = True


MEASURES: Mapping[str, Measure] = {
    "psnr": Measure("PSNR", lambda a, b, crop: psnr(a, b, y=True, crop=crop), 2, True),
    "ssim": Measure("SSIM", lambda a, b, crop: ssim(a, b, y=True, crop=crop), 4, True),
    "ms_ssim": Measure("MS-SSIM", lambda a, b, crop: ms_ssim(a, b, y=True, crop=crop), 4, True),
    "psnr_rgb": Measure("PSNR (RGB)", lambda a, b, crop: psnr(a, b, crop=crop), 2, True),
    "ssim_rgb": Measure("SSIM (RGB)", lambda a, b, crop: ssim(a, b, crop=crop), 4, True),
    "lpips": Measure("LPIPS", lambda a, b, crop: lpips(a, b, crop=crop), 4, False),
    "lpips_vgg": Measure("LPIPS (VGG)", lambda a, b, crop: lpips(a, b, net="vgg", crop=crop), 4, False),
    "dists": Measure("DISTS", lambda a, b, crop: dists(a, b, crop=crop), 4, False),
    "niqe": Measure("NIQE", lambda a, _, crop: niqe(a, crop=crop), 2, False, needs_hr=False),
}


def check_measures(names: Sequence[str]) -> tuple[str, ...]:
    """The names in their order, each once; raises :class:`OptionError` for an unknown one."""
    for name in names:
        if name not in MEASURES:
            raise OptionError(f"metric '{name}' is unknown{did_you_mean(name, MEASURES)}; known: {', '.join(MEASURES)}")
    return tuple(dict.fromkeys(names))


def check_convention(name: str) -> Convention:
    """The convention of this name; raises :class:`OptionError` for an unknown one."""
    if name not in get_args(Convention):
        raise OptionError(f"convention '{name}' is unknown: use {', '.join(get_args(Convention))}")
    return cast(Convention, name)


def measure(name: str, sr: np.ndarray, hr: np.ndarray | None, crop: int, convention: Convention = "float") -> float | None:
    """One value for one image.

    Args:
        name: key of :data:`MEASURES`.
        sr: ``(H, W, 3)`` or grey ``(H, W, 1)``, uint8 or uint16, as it would be saved.
        hr: ground truth of the same shape and type, or None.
        crop: pixels cut from each side.
        convention: how luma and grey are seen.

    Returns:
        The value; infinity for the PSNR of identical images; None for a metric that needs the missing ground truth.

    Raises:
        DataError: the image is too small for the metric.
    """
    chosen = MEASURES[name]
    if hr is None and chosen.needs_hr:
        return None
    if name in ON_Y and convention == "matlab":
        sr = _rounded_luma(sr)
        hr = None if hr is None else _rounded_luma(hr)
    a = _tensor(sr, convention)
    return float(chosen.function(a, a if hr is None else _tensor(hr, convention), crop))


def _rounded_luma(pixels: np.ndarray) -> np.ndarray:
    return pixels if pixels.shape[2] == 1 else rgb_to_y(pixels, rounded=True).astype(np.uint8)[:, :, None]


def _tensor(pixels: np.ndarray, convention: Convention) -> Tensor:
    # float64 and not the float32 of networks, so that the last digit does not hang on rounding
    values = torch.from_numpy(pixels.astype(np.float64) / np.iinfo(pixels.dtype).max).permute(2, 0, 1)[None]
    return values.expand(-1, 3, -1, -1) if convention == "basicsr" else values

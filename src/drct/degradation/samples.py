"""What a network is trained on, shown on one image: a low-quality version of it, or a sheet of several."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import torch
from torch import Tensor

from drct.degradation.condition import float_range
from drct.degradation.filters import usm_sharpen
from drct.degradation.options import DegradationOptions
from drct.degradation.process import MODES, Step, degrade
from drct.errors import OptionError
from drct.imaging import Picture, from_tensor, side_by_side, to_tensor
from drct.imaging.writing import on_white

SEEDS = 1 << 32  # so many the generator of the CPU tells apart
SIDE = 256  # of the ground truth in a sheet: that of the published training patches; smaller pictures are shown enlarged to it


@dataclasses.dataclass(frozen=True)
class Sample:
    """A low-quality image and how it came about.

    Attributes:
        pixels: uint8 RGB ``(H, W, 3)``.
        seed: what it was drawn with.
        steps: in order.
    """

    pixels: np.ndarray
    seed: int
    steps: tuple[Step, ...]

    @property
    def words(self) -> str:
        """All steps in one line."""
        return ", ".join(step.words() for step in self.steps)

    @property
    def label(self) -> str:
        """The seed, and noise and compression, which show most, in few letters."""
        shown = [step for step in self.steps if re.match("noise|compress|again", step.stage) and step.names[0] not in MODES]
        short = [re.sub("^(grey|colour) ", "", step.words()).replace("Gaussian", "noise") for step in shown]
        return f"{self.seed}: {', '.join(short)}"


def degrade_picture(
    picture: Picture, options: DegradationOptions, *, scale: int = 4, seed: int = 0, sharpen: bool = True
) -> Sample:
    """A low-quality version of a picture, made as for training: sharpened (unless told otherwise), then degraded.

    Right and bottom are cut to a multiple of the scale; grey becomes RGB, transparency is laid on white, all depths become 8 bits.
    Floats beyond 0..1 are brought there linearly.

    Raises:
        OptionError: a scale below 1, a picture smaller than the scale, or a seed that is not within 0..4294967295.
    """
    _check_seed(seed)
    gt = _ground_truth(picture, scale)
    return _sample(usm_sharpen(gt) if sharpen else gt, options, scale, seed)


def sample_sheet(
    picture: Picture,
    options: DegradationOptions,
    *,
    scale: int = 4,
    seed: int = 0,
    count: int = 11,
    side: int = SIDE,
    sharpen: bool = True,
) -> tuple[np.ndarray, list[Sample]]:
    """The middle of a picture and what a network would get for it, each time drawn anew.

    Args:
        picture: the good image.
        options: of the degradation.
        scale: how many times smaller the samples are; they are shown enlarged, each pixel a square,
            and so is the whole of a small picture.
        seed: of the first sample; each next one has the next seed.
        count: samples.
        side: of the part of the picture that is used, in pixels.
        sharpen: sharpen it first.

    Returns:
        The sheet, uint8 ``(H, W, 3)``: ground truth, the samples in reading order; and the samples.

    Raises:
        OptionError: as :func:`degrade_picture`, or no samples.
    """
    if count < 1:
        raise OptionError(f"a sheet of {count} samples: at least 1 is needed")
    _check_seed(seed)
    _check_seed(seed + count - 1)
    gt = _ground_truth(picture, scale)
    height, width = (min(side - side % scale or scale, length) for length in gt.shape[-2:])
    top, left = (gt.shape[-2] - height) // 2, (gt.shape[-1] - width) // 2
    gt = gt[..., top : top + height, left : left + width]
    gt = usm_sharpen(gt) if sharpen else gt
    samples = [_sample(gt, options, scale, seed + i) for i in range(count)]
    zoom = max(1, SIDE // max(height, width))
    panels = [_enlarged(from_tensor(gt, np.uint8), zoom), *(_enlarged(sample.pixels, zoom * scale) for sample in samples)]
    labels = ["ground truth, sharpened" if sharpen else "ground truth", *(sample.label for sample in samples)]
    whole = [re.sub("(?<=[^,]) ", "\N{NO-BREAK SPACE}", label) for label in labels]  # broken between steps, not within one
    return side_by_side(panels, whole, columns=_columns(len(panels)), text_height=12), samples


def _enlarged(pixels: np.ndarray, factor: int) -> np.ndarray:
    return pixels.repeat(factor, 0).repeat(factor, 1)


def _columns(panels: int) -> int:
    """As many as make the sheet a little wider than high."""
    return next(n for n in range(1, panels + 1) if n * n * 3 >= panels * 4 or n == panels)


def _ground_truth(picture: Picture, scale: int) -> Tensor:
    if scale < 1:
        raise OptionError(f"scale is {scale}, but must be at least 1")
    pixels = picture.pixels
    if pixels.dtype == np.float32:
        low, high = float_range(picture)
        pixels = (pixels - np.float32(low)) / np.float32(high - low)
    if picture.alpha is not None:
        pixels = on_white(pixels, picture.alpha)
    height, width = (length - length % scale for length in pixels.shape[:2])
    if not height or not width:
        raise OptionError(
            f"{picture.path or 'the picture'}: {picture.width} x {picture.height} pixels are too few for scale {scale}"
        )
    return to_tensor(pixels[:height, :width]).clamp(0, 1)


def _check_seed(seed: int) -> None:
    if not 0 <= seed < SEEDS:
        raise OptionError(f"the seed of a sample is {seed}, but must be within 0 to {SEEDS - 1}")


def _sample(gt: Tensor, options: DegradationOptions, scale: int, seed: int) -> Sample:
    steps: list[Step] = []
    generator = torch.Generator().manual_seed(seed)
    lq = degrade(gt, options, scale=scale, generator=generator, report=steps.append)
    return Sample(from_tensor(lq, np.uint8), seed, tuple(steps))


__all__ = ["Sample", "degrade_picture", "sample_sheet"]

"""In which condition an image is: clean, or compressed, noisy or blurred.

Three measures of the pixels, each made so that the picture itself disturbs it little, are added up as defects. Where a defect
begins and where it is enough by itself was fitted on clean and degraded images (``benchmarks/condition.py`` counts the errors, and
fits again). A JPEG file besides tells its quality itself, by its quantization tables.
"""

from __future__ import annotations

import dataclasses
import math
import os
from typing import BinaryIO

import numpy as np

from drct.degradation.jpeg import CHROMA, LUMA
from drct.imaging import Picture, visible_range

SIDE = 1024  # of the middle of the image, which is looked at
SMALLEST = 24  # shorter sides tell nothing
BLOCK = 8
CHANCE = 2.0  # standard deviations that the best of eight shares exceeds the others by, roughly

POOR_JPEG = 80  # quality below which a file counts as degraded whatever its pixels look like
# Where a measure begins to be a defect, and where it is one that is enough by itself.
DEFECTS = {"blockiness": (0.0, 0.1), "noise": (0.5, 2.0), "sharpness": (0.7, 0.325)}
NAMED = 0.3  # smaller defects are not spoken of

_SECOND_DIFFERENCE = math.sqrt(math.pi / 2) / 6  # from the mean magnitude of Immerkaer's filter to a standard deviation


@dataclasses.dataclass(frozen=True)
class Condition:
    """What was found.

    Attributes:
        jpeg_quality: of a JPEG file, 1..100 in the scale of the Independent JPEG Group; None for everything else.
        blockiness: by how much more often neighbouring pixels differ most at the borders of 8 x 8 blocks than elsewhere, 0..1;
            clean images stay below 0.03.
        noise: standard deviation in the quietest parts of the luma, of 255.
        sharpness: finest details against those of half the resolution, in the busiest parts; 0.4 to 1 in clean images, 1 and more
            in noise, 0.2 and less in blurred ones.
    """

    jpeg_quality: int | None
    blockiness: float
    noise: float
    sharpness: float

    @property
    def defects(self) -> dict[str, float]:
        """How bad it is, by measure: 0 where there is nothing, 1 where that alone makes the image a degraded one."""
        begin, enough = DEFECTS["blockiness"]
        found = {"blockiness": (self.blockiness - begin) / (enough - begin)}
        for name in ("noise", "sharpness"):  # whose effect grows by factors
            begin, enough = DEFECTS[name]
            found[name] = math.log(max(getattr(self, name), 1e-6) / begin) / math.log(enough / begin)
        return {name: max(0.0, value) for name, value in found.items()}

    @property
    def degraded(self) -> bool:
        """Whether a network for degraded images suits it better than one for clean images."""
        return sum(self.defects.values()) > 1 or (self.jpeg_quality is not None and self.jpeg_quality < POOR_JPEG)

    def __str__(self) -> str:
        """For people, in a few words: ``"JPEG quality 43, blocks, noise 3.1 of 255"``, ``"clean"``."""
        words = [] if self.jpeg_quality is None else [f"JPEG quality {self.jpeg_quality}"]
        if not self.degraded:
            return ", ".join(["clean", *words])
        names = {"blockiness": "blocks", "noise": f"noise {self.noise:.1f} of 255", "sharpness": "blur"}
        return ", ".join(words + [names[name] for name, value in self.defects.items() if value >= NAMED])


def inspect(picture: Picture) -> Condition:
    """Estimate the condition of a picture from its pixels, and from its file if it is a JPEG that still lies at ``picture.path``.

    Only the middle of large pictures is looked at. Pictures of less than 24 pixels on a side count as clean.
    """
    quality = None
    if picture.source_format == "jpeg" and picture.path is not None:
        try:
            with open(picture.path, "rb") as file:
                quality = jpeg_quality(file)
        except OSError:
            quality = None  # the file is gone; its pixels are here
    luma = _luma(picture)
    if min(luma.shape) < SMALLEST:
        return Condition(quality, 0.0, 0.0, 1.0)
    fine, coarse = _quiet_and_busy(_roughness(luma)), _quiet_and_busy(_roughness(_halved(luma)), BLOCK // 2)
    # a tenth of a level keeps flat pictures from being called blurred or sharp by their rounding
    sharpness = (fine[1] + 0.1) / (coarse[1] + 0.1)
    blockiness = (_blockiness(luma) + _blockiness(luma.T)) / 2
    return Condition(quality, float(blockiness), float(fine[0]), float(sharpness))


def jpeg_quality(file: BinaryIO) -> int | None:
    """Quality of a JPEG file by its first quantization table, against those of the Independent JPEG Group; None if it has none.

    Other encoders' tables are told by their mean, so that the answer is the quality of about equal loss.
    """
    if file.read(2) != b"\xff\xd8":
        return None
    while len(head := file.read(4)) == 4 and head[0] == 0xFF:
        while head[1] == 0xFF and (more := file.read(1)):  # fill bytes (T.81, B.1.1.2)
            head = head[1:] + more
        marker, length = head[1], int.from_bytes(head[2:], "big") - 2
        if marker == 0xDB:
            return _quality_of(file.read(length))
        if marker == 0xDA or length < 0:
            return None
        file.seek(length, os.SEEK_CUR)
    return None


def _quality_of(segment: bytes) -> int | None:
    """From the contents of a segment of quantization tables (T.81, B.2.4.1)."""
    if not segment:
        return None
    wide, table = segment[0] >> 4, segment[0] & 15
    values = np.frombuffer(segment[1 : 1 + 64 * (1 + wide)], ">u2" if wide else "u1")
    if wide > 1 or len(values) < 64:
        return None
    standard = np.array(LUMA if table == 0 else CHROMA)
    return min(range(1, 101), key=lambda q: abs(int(_table(standard, q).sum()) - int(values.sum())))


def _table(standard: np.ndarray, quality: int) -> np.ndarray:
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return ((standard * percent + 50) // 100).clip(1, 255)


def _luma(picture: Picture) -> np.ndarray:
    """The middle, float32 in 0..255. Floats beyond 0..1 are brought there, as they are for networks."""
    pixels = picture.pixels
    top, left = (max(0, (length - SIDE) // 2) for length in pixels.shape[:2])
    middle = pixels[top : top + SIDE, left : left + SIDE]
    low, high = float_range(picture) if middle.dtype == np.float32 else (0.0, float(np.iinfo(middle.dtype).max))
    factor = 255 / (high - low)
    values = middle.astype(np.float32) * np.float32(factor) - np.float32(low * factor)  # in this order, or large floats overflow
    return values[:, :, 0] if values.shape[2] == 1 else values @ np.array([0.299, 0.587, 0.114], np.float32)


def float_range(picture: Picture) -> tuple[float, float]:
    """What becomes 0 and what becomes 1 of the floats of a picture; 0 and 1 themselves where none lies beyond."""
    darkest, brightest = visible_range(picture.pixels, picture.alpha)
    return min(darkest, 0.0), max(brightest, 1.0)


def _roughness(plane: np.ndarray) -> np.ndarray:
    """What is left of a plane where neither slopes nor straight edges along the axes count (Immerkaer, "Fast noise variance
    estimation", 1996), scaled so that its mean magnitude in noise is the standard deviation of the noise."""
    rows = plane[:-2] - 2 * plane[1:-1] + plane[2:]
    return np.asarray(np.abs(rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:]) * np.float32(_SECOND_DIFFERENCE))


def _quiet_and_busy(roughness: np.ndarray, side: int = BLOCK) -> tuple[float, float]:
    """Roughness of the quietest and of the busiest blocks: the 5th and the 90th percentile."""
    height, width = (length - length % side for length in roughness.shape)
    blocks = roughness[:height, :width].reshape(height // side, side, width // side, side).mean((1, 3))
    quiet, busy = np.percentile(blocks, (5, 90))
    return float(quiet), float(busy)


def _halved(plane: np.ndarray) -> np.ndarray:
    height, width = (length - length % 2 for length in plane.shape)
    return np.asarray(plane[:height, :width].reshape(height // 2, 2, width // 2, 2).mean((1, 3)))


def _blockiness(luma: np.ndarray) -> float:
    """How much more often the difference of two pixels in a row exceeds those beside it on one of the eight possible grids.

    Counting instead of adding keeps edges of the picture from deciding. What chance alone makes of the best of eight shares in a
    picture of this size is taken off.
    """
    step = np.abs(np.diff(luma, axis=1))
    here, before, after = step[:, 1:-1], step[:, :-2], step[:, 2:]
    peaks = ((here > before) & (here > after)).sum(0)
    alive = ((here > 0) | (before > 0) | (after > 0)).sum(0)
    counts = np.array([max(1, alive[k::BLOCK].sum()) for k in range(BLOCK)])
    shares = np.array([peaks[k::BLOCK].sum() for k in range(BLOCK)]) / counts
    best = int(shares.argmax())
    others = (shares.sum() - shares[best]) / (BLOCK - 1)
    chance = CHANCE * math.sqrt(max(others * (1 - others), 1e-9) / counts[best])
    return max(0.0, float(shares[best] - others - chance))

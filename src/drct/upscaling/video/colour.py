"""Between the samples of video and RGB: range, matrix, chroma positions and depth, computed in floats and rounded once.

A video frame holds luma and two colour differences, the latter often at half size, in a studio or a full range of 8 to 16 bits
(ITU-R BT.601, BT.709, BT.2020; codes of ITU-T H.273). Chroma samples of 4:2:0 are taken to lie where MPEG-2 and all later
standards put them unless told otherwise: beside the left one of two luma columns and between two rows. JPEG and MPEG-1 put them
between two columns, too, and video in HDR often beside the upper left one of four luma samples.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

UNSPECIFIED = 2  # of matrix, primaries and transfer (H.273)
BT709, SMPTE170M = 1, 6
STUDIO_RANGE, FULL_RANGE = 1, 2  # libav's codes; 0 is unspecified
LEFT_SITED = (False, True)  # of ``Samples.centred``: as in MPEG-2 and later

# Weights of red and blue in luma by matrix code (H.273, table 4)
_LUMA = {1: (0.2126, 0.0722), 4: (0.30, 0.11), 5: (0.299, 0.114), 6: (0.299, 0.114), 7: (0.212, 0.087), 9: (0.2627, 0.0593)}
MATRICES = frozenset(_LUMA)
_ROWS = 256  # rows that are made YUV at once, so that their floats are never those of a whole frame; even


@dataclasses.dataclass(frozen=True)
class Samples:
    """How the samples of a frame are to be read.

    Attributes:
        kind: ``"yuv"``, ``"grey"`` or ``"rgb"`` (planes in the order green, blue, red, as libav has them).
        bits: depth, 8 to 16.
        subsampling: columns and rows of luma per chroma sample: ``(2, 2)`` for 4:2:0.
        matrix: code of the matrix, one of :data:`MATRICES`.
        full_range: levels from 0 to the peak, and not from 16 to 235 (240 for chroma) of 8 bits.
        centred: whether a chroma sample lies in the middle of its luma columns, and of its rows, and not at the first of them.
    """

    kind: str
    bits: int
    subsampling: tuple[int, int] = (1, 1)
    matrix: int = BT709
    full_range: bool = False
    centred: tuple[bool, bool] = LEFT_SITED

    @property
    def dtype(self) -> type[np.uint8] | type[np.uint16]:
        return np.uint8 if self.bits == 8 else np.uint16

    def plane_shapes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Height and width of each plane."""
        if self.kind == "grey":
            return [(height, width)]
        across, down = self.subsampling
        chroma = (-(-height // down), -(-width // across))
        return [(height, width), chroma, chroma]

    def _luma(self) -> tuple[float, float]:
        """Level of black and span up to white."""
        peak, step = (1 << self.bits) - 1, 1 << (self.bits - 8)
        return (0.0, float(peak)) if self.full_range else (16.0 * step, 219.0 * step)

    def _chroma(self) -> tuple[float, float]:
        """Level of neutral and span from one end to the other."""
        peak, step = (1 << self.bits) - 1, 1 << (self.bits - 8)
        return 128.0 * step, float(peak) if self.full_range else 224.0 * step


def assumed_matrix(height: int, width: int) -> int:
    """The matrix that players take for video that names none: BT.709 for high definition, BT.601 below."""
    return BT709 if width >= 1280 or height > 576 else SMPTE170M


def to_rgb(planes: list[np.ndarray], samples: Samples) -> np.ndarray:
    """RGB of a frame.

    Args:
        planes: of the shapes ``samples.plane_shapes`` and its type.
        samples: how they are to be read.

    Returns:
        ``(H, W, 3)`` uint16, 0 black, 65535 white; what lies outside (blacker than black, out of gamut) is clipped.
    """
    height, width = planes[0].shape
    result = np.empty((height, width, 3), np.uint16)
    black, span = samples._luma()
    first = [(_floats(plane) - black) / span for plane in (planes if samples.kind == "rgb" else planes[:1])]
    if samples.kind == "yuv":
        neutral, reach = samples._chroma()
        blue, red = ((_enlarged(_floats(p), samples, height, width) - neutral) / reach for p in planes[1:])
        kr, kb = _LUMA[samples.matrix]
        y = first[0]
        r, b = y + 2 * (1 - kr) * red, y + 2 * (1 - kb) * blue
        channels = [r, (y - kr * r - kb * b) / (1 - kr - kb), b]
    elif samples.kind == "rgb":
        channels = [first[2], first[0], first[1]]
    else:
        channels = first
    levels = [channel.mul_(65535).round_().clamp_(0, 65535).to(torch.int32).numpy() for channel in channels]
    for i in range(3):
        result[:, :, i] = levels[i % len(levels)]
    return result


def from_rgb(rgb: np.ndarray, samples: Samples) -> list[np.ndarray]:
    """Planes of a frame, each sample rounded to the nearest level; ``rgb`` is ``(H, W, 3)`` uint16, as :func:`to_rgb` gives it.

    Smaller chroma planes are averages over 1 2 1 columns and two rows: :data:`LEFT_SITED`, whatever ``samples`` says.
    """
    height, width = rgb.shape[:2]
    planes = [np.empty(shape, samples.dtype) for shape in samples.plane_shapes(height, width)]
    across, down = samples.subsampling
    black, span = samples._luma()
    peak = (1 << samples.bits) - 1
    for top in range(0, height, _ROWS):
        rows = rgb[top : top + _ROWS]
        r, g, b = (_floats(rows[:, :, i]).div_(65535) for i in range(3))
        if samples.kind == "rgb":
            for plane, values in zip(planes, (g, b, r), strict=True):
                plane[top : top + len(rows)] = _levels(values * span + black, peak)
            continue
        kr, kb = _LUMA[samples.matrix]
        y = kr * r + (1 - kr - kb) * g + kb * b
        planes[0][top : top + len(rows)] = _levels(y * span + black, peak)
        if samples.kind == "grey":
            continue
        neutral, reach = samples._chroma()
        for plane, colour, weight in ((planes[1], b, kb), (planes[2], r, kr)):
            values = _reduced((colour - y) / (2 * (1 - weight)), across, down) * reach + neutral
            plane[top // down : top // down + len(values)] = _levels(values, peak)
    return planes


def _floats(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


def _levels(values: Tensor, peak: int) -> np.ndarray:
    return values.round().clamp_(0, peak).to(torch.int32).numpy()


def _enlarged(plane: Tensor, samples: Samples, height: int, width: int) -> Tensor:
    """A chroma plane at the size of luma, interpolated linearly between the positions of its samples."""
    across, down = samples.subsampling
    if across > 1:
        plane = _interpolated(plane.T, width, across, samples.centred[0]).T
    if down > 1:
        plane = _interpolated(plane, height, down, samples.centred[1])
    return plane


def _interpolated(plane: Tensor, count: int, step: int, centred: bool) -> Tensor:
    """So many rows between those of a plane, ``step`` for one of them, held at its borders."""
    first = (step - 1) / 2 if centred else 0
    positions = ((torch.arange(count) - first) / step).clamp(0, len(plane) - 1)
    before = positions.floor().long()
    after = (before + 1).clamp_max(len(plane) - 1)
    return torch.lerp(plane[before], plane[after], (positions - before)[:, None])


def _reduced(plane: Tensor, across: int, down: int) -> Tensor:
    """A plane at the size of chroma; at odd borders the last column or row counts as often as it is needed."""
    if across == 2:
        if plane.shape[1] % 2:
            plane = torch.cat((plane, plane[:, -1:]), 1)
        even, odd = plane[:, 0::2], plane[:, 1::2]
        before = torch.cat((even[:, :1], odd[:, :-1]), 1)
        plane = (before + 2 * even + odd) / 4
    if down == 2:
        if plane.shape[0] % 2:
            plane = torch.cat((plane, plane[-1:]), 0)
        plane = (plane[0::2] + plane[1::2]) / 2
    return plane

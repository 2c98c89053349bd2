"""Passes of an image through networks: the size that they lead to, the tile plans that they are cut by, and what they give.

These are the words that the upscaler and those who call it for files, clips and reports have in common.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from drct.errors import OptionError
from drct.imaging import Picture
from drct.upscaling.options import LARGEST_SCALE
from drct.upscaling.tiles import TilePlan

Progress = Callable[[float], None]  # called with the finished part of the work, 0..1


@dataclasses.dataclass(frozen=True)
class Pass:
    """One run of a network over an image.

    Attributes:
        model: name or file of the network.
        scale: its magnification.
        plan: the tiles.
    """

    model: str
    scale: int
    plan: TilePlan


@dataclasses.dataclass(frozen=True)
class Upscaled:
    """What became of an image.

    Attributes:
        pixels: the result.
        passes: networks that it went through, in order; a resize to the exact size may have followed.
        notices: what a user should know, one sentence each.
    """

    pixels: np.ndarray
    passes: tuple[Pass, ...]
    notices: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class UpscaledPicture:
    """As :class:`Upscaled`, for a picture with all that it carries.

    ``choice`` tells in one line which network was chosen and why; "" where there was nothing to choose.
    """

    picture: Picture
    passes: tuple[Pass, ...]
    notices: tuple[str, ...]
    choice: str = ""


@dataclasses.dataclass(frozen=True)
class Stages:
    """An image on its way through the networks, strip by strip.

    Attributes:
        strips: arrays ``(h, W, C)`` of the result, from top to bottom.
        passes, notices: as of :class:`Upscaled`.
    """

    strips: Iterator[np.ndarray]
    passes: tuple[Pass, ...]
    notices: tuple[str, ...]


class TilesTooLarge(Exception):
    """Memory ran out between two strips; smaller tiles may do."""

    def __init__(self, scale: int, smaller: int, notice: str) -> None:
        super().__init__(notice)
        self.scale = scale
        self.smaller = smaller


class Plans:
    """The tile plans of one picture's passes, in their order; so an interrupted picture is cut again as it was the first time.

    Args:
        earlier: plans of an earlier attempt; they are used again as far as they fit.
        chosen: called with all plans so far whenever one was added or replaced, before its tiles are computed.
    """

    def __init__(self, earlier: Iterable[TilePlan] = (), chosen: Callable[[list[TilePlan]], None] | None = None) -> None:
        self._plans = list(earlier)
        self._chosen = chosen
        self._begun = 0

    def next(self, height: int, width: int) -> TilePlan | None:
        """Begin the next pass, over an image of this size, and return its earlier plan if there is one."""
        self._begun += 1
        if len(self._plans) >= self._begun:
            plan = self._plans[self._begun - 1]
            if (plan.height, plan.width) == (height, width):
                return plan
        return None

    def restart(self) -> None:
        """Begin again with the first pass, without the earlier plans: the memory does not suffice for them."""
        self._plans = []
        self._begun = 0

    def choose(self, plan: TilePlan) -> None:
        """The plan of the pass that was begun last."""
        if self._plans[self._begun - 1 : self._begun] == [plan]:
            return
        self._plans[self._begun - 1 :] = [plan]
        if self._chosen is not None:
            self._chosen(list(self._plans))


def is_whole(value: object) -> bool:
    """Whether a value that a caller gave is a whole number, as those of numpy are, too."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_real(value: object) -> bool:
    """Whether a value that a caller gave is a number."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def target_size(
    height: int, width: int, scale: float, to_width: int | None = None, to_height: int | None = None
) -> tuple[int, int]:
    """Height and width of the result: the exact ones where given, else ``scale`` times the image's, rounded half up, at least 1.

    Raises:
        OptionError: the scale, given or resulting, is not in (0, 16].
    """
    for name, side in (("width", to_width), ("height", to_height)):
        if side is not None and not (is_whole(side) and side >= 1):
            raise OptionError(f"{name} is {side!r}, but must be a whole number of pixels, at least 1")
    # plain numbers, since the narrow ones of numpy overflow and round
    height, width = int(height), int(width)
    to_width, to_height = (None if side is None else int(side) for side in (to_width, to_height))
    if to_width is None and to_height is None:
        if not is_real(scale):
            raise OptionError(f"scale is {scale!r}, but must be a number")
        if not 0 < scale <= LARGEST_SCALE:
            raise OptionError(f"scale is {float(scale):g}, but must be above 0 and at most {LARGEST_SCALE:g}")
        scale = float(scale)
        return max(1, math.floor(height * scale + 0.5)), max(1, math.floor(width * scale + 0.5))
    new_height = to_height if to_height is not None else max(1, math.floor(height * (to_width or 1) / width + 0.5))
    new_width = to_width if to_width is not None else max(1, math.floor(width * new_height / height + 0.5))
    factor = max(new_height / height, new_width / width)
    if factor > LARGEST_SCALE:
        raise OptionError(
            f"{new_width} x {new_height} is {factor:.4g} times the size of the image ({width} x {height}): "
            f"at most {LARGEST_SCALE:g} times is possible"
        )
    return new_height, new_width

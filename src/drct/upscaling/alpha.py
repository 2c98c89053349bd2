"""Colours under transparency.

What lies under full transparency is arbitrary, often black, and a network would draw an edge there whose fringe shows in the
half-transparent border. So the colours of the visible pixels spread over the invisible ones through a pyramid: each level sums the
visible pixels of 2 x 2 of the finer one, and what is invisible on a level takes the colour of the coarser one.
"""

from __future__ import annotations

import itertools

import numpy as np

LEVELS = 6
BAND = 1 << LEVELS  # rows of a band: what lies above its levels is small enough to be kept for images of any size

Level = tuple[np.ndarray, np.ndarray]  # sums of visible colours (h, w, C), and of how many (h, w, 1)


def bleed(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Give fully transparent pixels the colours of the nearest visible ones.

    Args:
        pixels: ``(H, W, C)``.
        alpha: ``(H, W)``; 0 is invisible.

    Returns:
        Pixels like ``pixels``, the visible ones unchanged.
    """
    bleeding = Bleeding()
    bleeding.add(pixels, alpha)
    bleeding.finish()
    return bleeding.apply(pixels, alpha, 0)


class Bleeding:
    """The same for an image that comes in bands: all are shown once, then each can be treated.

    Bands begin at multiples of :data:`BAND` rows and are whole multiples high, but for the last one. The result does not depend on
    how the image is cut into them.
    """

    def __init__(self) -> None:
        self._coarse: list[Level] = []
        self._colours: np.ndarray | None = None  # of the coarsest level that bands have
        self._any_visible = self._any_invisible = False

    def add(self, pixels: np.ndarray, alpha: np.ndarray) -> None:
        """Show the next band."""
        visible = alpha > 0
        self._any_visible |= bool(visible.any())
        self._any_invisible |= not visible.all()
        self._coarse.append(_levels(pixels, visible, LEVELS)[-1])

    def finish(self) -> None:
        """All bands were shown."""
        if not self.needed:
            return
        sums, counts = (np.concatenate(parts) for parts in zip(*self._coarse, strict=True))
        levels = [(sums, counts)]
        while levels[-1][1].size > 1:
            levels.append((_halve(levels[-1][0]), _halve(levels[-1][1])))
        colours, count = levels.pop()
        self._colours = _spread(colours / count, levels)
        self._coarse = []

    @property
    def needed(self) -> bool:
        """Whether there are invisible pixels, and visible ones to give them colours."""
        return self._any_visible and self._any_invisible

    def apply(self, pixels: np.ndarray, alpha: np.ndarray, row: int) -> np.ndarray:
        """A band, which begins at ``row`` of the image, with colours under its transparency."""
        visible = alpha > 0
        if self._colours is None or visible.all():
            return pixels
        levels = _levels(pixels, visible, LEVELS)
        first = row // BAND
        count = levels.pop()[1]
        colours = _spread(self._colours[first : first + len(count)], levels)
        if pixels.dtype != np.float32:
            colours = np.floor(colours + 0.5)
        return np.where(visible[:, :, None], pixels, colours.astype(pixels.dtype))


def _levels(pixels: np.ndarray, visible: np.ndarray, coarser: int) -> list[Level]:
    weights = visible[:, :, None].astype(np.float32)
    levels = [(pixels * weights, weights)]
    for _ in itertools.repeat(None, coarser):
        levels.append((_halve(levels[-1][0]), _halve(levels[-1][1])))
    return levels


def _spread(colours: np.ndarray, finer: list[Level]) -> np.ndarray:
    """Colours everywhere on the finest level, from those on the level above."""
    for sums, count in reversed(finer):
        height, width = count.shape[:2]
        above = colours.repeat(2, 0).repeat(2, 1)[:height, :width]
        colours = np.where(count > 0, sums / np.maximum(count, 1), above)
    return colours


def _halve(values: np.ndarray) -> np.ndarray:
    """Sums over 2 x 2; odd sides are filled with zeros."""
    height, width = values.shape[:2]
    padded = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    result: np.ndarray = padded[0::2, 0::2] + padded[1::2, 0::2] + padded[0::2, 1::2] + padded[1::2, 1::2]
    return result

"""Colours under transparency."""

from __future__ import annotations

import numpy as np


def bleed(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Give fully transparent pixels the colours of the nearest visible ones.

    What lies under full transparency is arbitrary, often black, and a network would draw an edge there whose fringe shows in the
    half-transparent border. The colours spread through a pyramid: each level averages the visible pixels of 2 x 2 of the finer one,
    and what is invisible on a level takes the colour of the coarser one.

    Args:
        pixels: ``(H, W, C)``.
        alpha: ``(H, W)``; 0 is invisible.

    Returns:
        Pixels like ``pixels``, the visible ones unchanged.
    """
    visible = alpha > 0
    if visible.all() or not visible.any():
        return pixels
    # sums of colours and their number, level by level
    levels = [(pixels * visible[:, :, None].astype(np.float32), visible.astype(np.float32)[:, :, None])]
    while levels[-1][1].size > 1:
        levels.append((_halve(levels[-1][0]), _halve(levels[-1][1])))
    colours, count = levels.pop()
    colours = colours / count
    while levels:
        finer, count = levels.pop()
        height, width = count.shape[:2]
        spread = colours.repeat(2, 0).repeat(2, 1)[:height, :width]
        colours = np.where(count > 0, finer / np.maximum(count, 1), spread)
    if pixels.dtype != np.float32:
        colours = np.floor(colours + 0.5)
    return np.where(visible[:, :, None], pixels, colours.astype(pixels.dtype))


def _halve(values: np.ndarray) -> np.ndarray:
    """Sums over 2 x 2; odd sides are filled with zeros."""
    height, width = values.shape[:2]
    padded = np.pad(values, ((0, height % 2), (0, width % 2), (0, 0)))
    result: np.ndarray = padded[0::2, 0::2] + padded[1::2, 0::2] + padded[0::2, 1::2] + padded[1::2, 1::2]
    return result

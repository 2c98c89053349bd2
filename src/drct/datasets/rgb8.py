"""What training takes of a picture: RGB of 8 bits."""

from __future__ import annotations

import numpy as np

from drct.errors import ImageError
from drct.imaging import Picture, from_tensor, to_tensor

HALF_LEVEL = 0.5 / 255  # floats so far beyond 0..1 are rounded to black and white, not cut off


def rgb8(picture: Picture, name: str) -> np.ndarray:
    """Pixels as H x W x 3 uint8; alpha is dropped, grey repeated, 16 bit and floats rounded.

    Raises:
        ImageError: floats beyond 0..1, whose highlights would become white; ``name`` says which image in the message. They are not
            brought to 0..1 here: each image, and GT and LR alike, would be by a factor of its own.
    """
    pixels = picture.pixels
    if pixels.dtype == np.float32:
        low, high = float(pixels.min()), float(pixels.max())
        if low < -HALF_LEVEL or high > 1 + HALF_LEVEL:
            raise ImageError(f"{name}: float values from {low:.6g} to {high:.6g}, beyond 0..1: bring them there, or leave it out")
    if pixels.dtype != np.uint8:
        pixels = from_tensor(to_tensor(pixels), np.dtype(np.uint8))
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels

"""Images as bytes in memory: what data bases of training images hold."""

from __future__ import annotations

import numpy as np

from drct.imaging._vips import enter, pyvips


def encode_png(pixels: np.ndarray, compression: int = 3) -> bytes:
    """PNG file of ``H x W x 3`` or ``H x W x 1`` uint8 pixels, without metadata."""
    enter("encode_png")
    h, w, bands = pixels.shape
    image = pyvips.Image.new_from_memory(np.ascontiguousarray(pixels).data, w, h, bands, "uchar")
    return bytes(image.copy(interpretation="srgb" if bands == 3 else "b-w").pngsave_buffer(compression=compression, keep="none"))

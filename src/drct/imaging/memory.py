"""Images as bytes in memory: what data bases of training images hold."""

from __future__ import annotations

import numpy as np

from drct.errors import ImageError
from drct.imaging._vips import cause, pyvips


def encode_png(pixels: np.ndarray, compression: int = 3) -> bytes:
    """PNG file of ``H x W x 3`` or ``H x W x 1`` uint8 pixels, without metadata."""
    h, w, bands = pixels.shape
    image = pyvips.Image.new_from_memory(np.ascontiguousarray(pixels).data, w, h, bands, "uchar")
    return bytes(image.copy(interpretation="srgb" if bands == 3 else "b-w").pngsave_buffer(compression=compression, keep="none"))


def decode(data: bytes, name: str) -> np.ndarray:
    """Pixels of an image file held in memory: ``H x W x 3`` uint8, grey repeated, alpha dropped, 16 bit rounded.

    Raises:
        ImageError: the bytes are no image; ``name`` says which in the message.
    """
    try:
        image = pyvips.Image.new_from_buffer(data, "", fail_on="error")
        if image.interpretation in ("rgb16", "grey16") or image.format == "ushort":
            image = (image.cast("float") / 257 + 0.5).cast("uchar")
        if image.hasalpha():
            image = image.extract_band(0, n=image.bands - 1)
        if image.bands == 1:
            image = image.bandjoin([image, image])
        if image.bands != 3 or image.format != "uchar":
            raise ImageError(f"{name}: {image.bands} bands of {image.format} are no RGB image")
        return np.asarray(image.numpy())
    except pyvips.Error as error:
        raise ImageError(f"{name}: {cause(error)}") from None

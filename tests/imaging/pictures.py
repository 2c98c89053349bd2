"""Pictures and metadata that the tests of this folder make for themselves."""

from __future__ import annotations

import numpy as np
from PIL import Image

PEAK = {"uint8": 255, "uint16": 65535, "float32": 1}


def smooth(height: int, width: int, channels: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    """A soft coloured pattern with a little noise, so that lossy codecs keep it nearly."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width, 2)
    planes = [0.5 + 0.4 * np.sin(3 * x + 2 * y + c + seed) * np.cos(2 * x - y) for c in range(channels)]
    values = np.stack(planes, axis=-1) + random.normal(0, 0.004, (height, width, channels))
    values = np.clip(values, 0, 1)
    if dtype == "float32":
        return values.astype(np.float32)
    return np.round(values * PEAK[dtype]).astype(dtype)


def exif_with(**tags: object) -> bytes:
    """EXIF data (no prefix) made by Pillow: orientation, width, height, a maker note and a camera's name."""
    exif = Image.Exif()
    exif[0x010F] = "A camera's maker"
    exif[0x0112] = tags.get("orientation", 1)
    exif[0x011A], exif[0x011B], exif[0x0128] = 72.0, 72.0, 2
    details = exif.get_ifd(0x8769)
    details[0xA002], details[0xA003] = tags.get("width", 40), tags.get("height", 30)
    details[0x927C] = b"maker note \x00\x01\x02"
    details[0x829A] = 0.005
    return exif.tobytes().removeprefix(b"Exif\0\0")

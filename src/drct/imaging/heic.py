"""HEIC images, as phones take them, through pi-heif (extra ``heic``): libvips as it is installed by pip cannot decode HEVC."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from drct.errors import ImageError
from drct.imaging._vips import pyvips
from drct.imaging.heif_boxes import GAIN_MAP

# What pi-heif raises for files that it cannot read
_BROKEN = (ValueError, EOFError, SyntaxError, RuntimeError, OSError)
_UNKNOWN = "coded in a way that pi-heif cannot decode: convert it to another format first"


def is_installed() -> bool:
    return _pi_heif() is not None


def load(path: Path | str, data: bytes, decode: bool, check: Callable[[int, int], None]) -> tuple[pyvips.Image, tuple[str, ...]]:
    """The primary picture of a HEIC file, upright, with the fields that libvips' own loader would set; and what is left out.

    Args:
        decode: False for a black picture of the same kind, whose size and fields are all that is wanted.
        check: hears width and height before memory is asked for.

    Raises:
        ImageError: the file is damaged, or coded in another way than by HEVC.
    """
    pi_heif = _pi_heif()
    try:
        # samples of 9 to 15 bits in the upper bits of 16, as libvips has them
        file = pi_heif.open_heif(data, convert_hdr_to_8bit=False)
        if not len(file):
            raise ImageError(f"{path}: HEIC image: {_UNKNOWN}")
        check(*file.size)
        image = _image(file, decode)
    except MemoryError:
        raise ImageError(f"{path}: not enough memory") from None
    except _BROKEN as error:
        raise ImageError(f"{path}: HEIC image: {_cause(str(error))}") from None
    return image, tuple(_left_out(file.info))


def _pi_heif() -> Any:
    try:
        return importlib.import_module("pi_heif")
    except ImportError:
        return None


def _image(file: Any, decode: bool) -> pyvips.Image:
    colours, _, deep = file.mode.partition(";")  # such as "RGB;16"
    format = "ushort" if deep else "uchar"
    if decode:
        samples = np.array(file)  # a copy, since pi-heif's memory goes with its file
        height, width = samples.shape[:2]
        image = pyvips.Image.new_from_memory(samples, width, height, samples.size // (width * height), format)
    else:
        image = pyvips.Image.black(*file.size, bands=len(colours)).cast(format)
    grey, colour = ("grey16", "rgb16") if deep else ("b-w", "srgb")
    image = image.copy(interpretation=grey if image.bands < 3 else colour)
    if colours.endswith("a"):
        image = image.unpremultiply(max_alpha=65535 if deep else 255).rint().cast(format)
    info = file.info
    image.set_type(pyvips.GValue.gint_type, "heif-bitdepth", info["bit_depth"])
    image.set_type(pyvips.GValue.gint_type, "n-pages", len(file))
    for field, name in (("exif-data", "exif"), ("xmp-data", "xmp"), ("icc-profile-data", "icc_profile")):
        if info.get(name):
            image.set_type(pyvips.GValue.blob_type, field, bytes(info[name]))
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)  # libvips has read that of the EXIF data, which does not count here
    return image


def _left_out(info: dict[str, Any]) -> list[str]:
    kinds = list(info.get("aux", ()))
    return [GAIN_MAP] * any("gainmap" in kind for kind in kinds) + ["the depth map is left out"] * bool(info.get("depth_images"))


def _cause(message: str) -> str:
    message = message.lower()  # begins with libheif's kind of error
    if message.startswith("unsupported") or "no decoding plugin" in message:
        return _UNKNOWN
    if "memory" in message or "security limit" in message:
        return "too large for pi-heif"
    return "the file is cut off or damaged"

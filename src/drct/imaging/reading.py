"""Reading image files, bounded in memory and suspicious of what they claim."""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from drct.errors import ImageError
from drct.imaging import exif, tiff_exif
from drct.imaging._vips import cause, enter, has_operation, pyvips
from drct.imaging.formats import FORMATS, sniff
from drct.imaging.picture import Picture

MAX_PIXELS = 500_000_000
MAX_SIDE = 100_000_000  # what libvips allows
HEAD_BYTES = 16384

# Fewest bytes in which a file can hold a pixel. Deflate packs at most 1032 bytes into one; a JPEG needs a bit for the DC
# coefficient of each 8 x 8 block of the full-size channel. A header that claims more lies, and is found out before memory is
# asked for.
_LEAST_BYTES_PER_PIXEL = {"png": 1 / 8 / 1032, "jpeg": 1 / 512}

_TYPES = {"uchar": np.uint8, "ushort": np.uint16, "float": np.float32}


class _Header(NamedTuple):
    """An image file whose header was read and checked, nothing decoded yet."""

    name: str
    image: pyvips.Image
    exif: bytes | None
    frames: int


def read(path: str | os.PathLike[str], max_pixels: int | None = None) -> Picture:
    """Read the first frame of an image file with all that it carries.

    The format is told by content, not by name. Palettes and 1-bit images become 8-bit RGB and grey, CMYK becomes sRGB through its
    profile, Lab becomes sRGB; 8 and 16 bits and float32 stay, and so do the values of RGB and grey pixels and their ICC profile.
    The EXIF orientation is applied and reset. Whatever was converted or left out stands in ``notices``.

    Args:
        path: file to read.
        max_pixels: larger images are refused before they are decoded; default 500 million, or the environment variable
            ``DRCT_MAX_PIXELS``.

    Raises:
        ImageError: the file is missing, no image of a supported kind, damaged, cut off or too large; the message names file and
            cause.
    """
    path = Path(path)
    with _opened(path) as file:
        picture = _picture(path, _open_image(path, file, max_pixels))
    picture.path = path
    return picture


def read_bytes(data: bytes, name: str, max_pixels: int | None = None) -> Picture:
    """Read an image file that lies in memory, as :func:`read` does; ``name`` stands for it in messages."""
    return _picture(name, _open_image(name, io.BytesIO(data), max_pixels))


def read_size(path: str | os.PathLike[str], max_pixels: int | None = None) -> tuple[int, int]:
    """Height and width of an image as :func:`read` would return it (upright), from its header alone.

    Raises:
        ImageError: as :func:`read`, except for damage behind the header.
    """
    path = Path(path)
    with _opened(path) as file:
        image = _open_image(path, file, max_pixels).image
        turned = _field(image, "orientation", 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


def _opened(path: Path) -> BinaryIO:
    try:
        # Looked at before it is opened: opening a pipe would wait for ever.
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{path}: is a folder, not an image file")
        if not stat.S_ISREG(mode):
            raise ImageError(f"{path}: is not a regular file")
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from None


def _open_image(path: Path | str, file: BinaryIO, max_pixels: int | None) -> _Header:
    enter(path)
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(HEAD_BYTES)
        name, what = sniff(head[:64])
        is_raw, exif_data = tiff_exif.inspect(file) if name == "tiff" else (False, None)
        png_frames = _png_frames(file) if name == "png" else 0
        file.seek(0)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise ImageError(f"{path}: the file is empty")
    if is_raw:
        name, what = None, "a camera raw file or another TIFF that begins with a preview"
    if name is None:
        raise ImageError(f"{path}: {what}; {_readable()} are read")
    loader = FORMATS[name].loader
    if not has_operation(loader):
        raise ImageError(f"{path}: the installed libvips cannot read {name}")
    for width, height in _claims(name, head):
        _check_claim(path, name, size, width, height, max_pixels)
    try:
        # From the open file and not from the name: names may hold bytes or brackets that libvips would read in its own way.
        if isinstance(file, io.BytesIO):
            source = pyvips.Source.new_from_memory(file.getvalue())
        else:
            source = pyvips.Source.new_from_descriptor(file.fileno())
        image = getattr(pyvips.Image, loader)(source, access="sequential", fail_on="error")
    except pyvips.Error as error:
        raise ImageError(f"{path}: {cause(error)}") from None
    _check_claim(path, name, size, image.width, image.height, max_pixels)
    frames = max(1, png_frames, int(_field(image, "n-pages", 1)))
    return _Header(name, image, exif_data or _field(image, "exif-data", None), frames)


def _claims(name: str, head: bytes) -> Iterator[tuple[int, int]]:
    """Widths and heights in the first bytes of a file whose decoder would complain on stderr about impossible ones."""
    if name == "avif":  # image spatial extents (ISO/IEC 23008-12, 6.5.3)
        for match in re.finditer(rb"ispe\0\0\0\0(.{4})(.{4})", head, re.DOTALL):
            yield int.from_bytes(match[1], "big"), int.from_bytes(match[2], "big")


def _png_frames(file: BinaryIO) -> int:
    """Frames that an animated PNG announces before its pixels begin, which libvips does not tell; 0 in a plain one."""
    file.seek(8)
    while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
        length = int.from_bytes(head[:4], "big")
        if head[4:] == b"acTL":
            return int.from_bytes(file.read(4), "big")
        file.seek(length + 4, os.SEEK_CUR)
    return 0


def _check_claim(path: Path | str, name: str, size: int, width: int, height: int, max_pixels: int | None) -> None:
    limit = _limit(max_pixels)
    if width * height * _LEAST_BYTES_PER_PIXEL.get(name, 0) > size:
        raise ImageError(f"{path}: the header claims {width} x {height} pixels, but the file has only {size} bytes")
    if width * height > limit or max(width, height) > MAX_SIDE:
        raise ImageError(f"{path}: {width} x {height} pixels are more than the limit of {limit} (DRCT_MAX_PIXELS raises it)")


def _limit(max_pixels: int | None) -> int:
    if max_pixels is not None:
        return max_pixels
    text = os.environ.get("DRCT_MAX_PIXELS", "")
    if not text:
        return MAX_PIXELS
    try:
        return int(text)
    except ValueError:
        raise ImageError(f"DRCT_MAX_PIXELS={text!r} is not a whole number") from None


def _readable() -> str:
    names = [f.name.upper() for f in FORMATS.values() if has_operation(f.loader)]
    return ", ".join(names[:-1]) + " and " + names[-1]


def _field(image: pyvips.Image, name: str, default: Any) -> Any:
    return image.get(name) if image.get_typeof(name) else default


def _picture(path: Path | str, header: _Header) -> Picture:
    try:
        return _decoded(path, header)
    except pyvips.Error as error:
        raise ImageError(f"{path}: {cause(error)}") from None
    except MemoryError:
        image = header.image
        raise ImageError(f"{path}: not enough memory for {image.width} x {image.height} pixels") from None


def _decoded(path: Path | str, header: _Header) -> Picture:
    name, image, exif_data, frames = header
    notices: list[str] = []
    if frames > 1:
        kind = "page" if name == "tiff" else "frame"
        notices.append(f"only the first of {frames} {kind}s is used")
    turn = int(_field(image, "orientation", 1))
    exif_data = _upright_exif(exif_data, notices)
    # 1 pixel per millimetre is how libvips says that the file gave none.
    resolution = None if (image.xres, image.yres) == (1.0, 1.0) else (float(image.xres), float(image.yres))
    xmp = _field(image, "xmp-data", None)
    xmp = exif.corrected_xmp(xmp) if xmp else None

    image = _to_rgb_or_grey(path, image, notices)
    icc = _fitting_profile(_field(image, "icc-profile-data", None), image, notices)
    samples = _samples(image)
    if turn in (5, 6, 7, 8) and resolution:
        resolution = resolution[::-1]
    samples = _turned(samples, turn)
    colours = 1 if samples.shape[2] < 3 else 3
    pixels = np.ascontiguousarray(samples[:, :, :colours])
    alpha = np.ascontiguousarray(samples[:, :, colours]) if samples.shape[2] > colours else None
    if pixels.dtype == np.float32:
        _check_floats(path, pixels, alpha, notices)
    return Picture(pixels, alpha, icc, exif_data, xmp, resolution, name, frames, notices=notices)


def _upright_exif(data: bytes | None, notices: list[str]) -> bytes | None:
    if not data:
        return None
    try:
        return exif.corrected(data)
    except ValueError:
        notices.append("damaged EXIF data left out")
        return None


def _to_rgb_or_grey(path: Path | str, image: pyvips.Image, notices: list[str]) -> pyvips.Image:
    """Bring the colour space to RGB or grey with at most one band of alpha, keeping the depth."""
    space = image.interpretation
    if image.format not in _TYPES and space not in ("lab", "labs", "labq"):
        raise ImageError(f"{path}: samples of type {image.format} are not supported: convert it to 8 or 16 bits or float32")
    if space == "cmyk":
        own = _field(image, "icc-profile-data", None)
        own = own if own and own[16:20] == b"CMYK" else None
        notices.append(
            "CMYK converted to sRGB through " + ("its profile" if own else "a standard profile (it has none of its own)")
        )
        depth = 16 if image.format == "ushort" else 8
        image = image.icc_transform("srgb", embedded=own is not None, input_profile="cmyk", intent="relative", depth=depth)
    elif space in ("lab", "labs", "labq", "lch", "xyz", "yxy", "cmc"):
        notices.append(f"{space.upper().rstrip('SQ')} converted to sRGB")
        image = image.colourspace("rgb16" if space == "labs" else "srgb")
        if image.get_typeof("icc-profile-data"):
            image = image.copy()
            image.remove("icc-profile-data")
    colours = 1 if image.bands < 3 else 3
    if image.bands > colours + 1:
        notices.append(f"{image.bands - colours - 1} extra channels left out")
        image = image.extract_band(0, n=colours + 1)
    return image


def _fitting_profile(icc: bytes | None, image: pyvips.Image, notices: list[str]) -> bytes | None:
    """The profile, unless it is made for another number of channels than the picture has: PNG forbids that, others misread it."""
    if not icc:
        return None
    if icc[16:20] != (b"GRAY" if image.bands < 3 else b"RGB "):
        notices.append("colour profile left out: it does not fit the kind of picture")
        return None
    return icc


def _samples(image: pyvips.Image) -> np.ndarray:
    dtype = _TYPES[image.format]
    data = image.write_to_memory()
    return np.frombuffer(data, dtype=dtype).reshape(image.height, image.width, image.bands)


def _turned(samples: np.ndarray, turn: int) -> np.ndarray:
    """Apply an EXIF orientation: 2 and 4 mirror, 3 turns by 180 degrees, 5 to 8 swap the sides first."""
    if turn in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if turn in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    if turn in (3, 4, 7, 8):
        samples = samples[::-1]
    return samples


def _check_floats(path: Path | str, pixels: np.ndarray, alpha: np.ndarray | None, notices: list[str]) -> None:
    low, high = float(pixels.min()), float(pixels.max())
    extremes = (low, high, 0.0 if alpha is None else alpha.min(), 0.0 if alpha is None else alpha.max())
    if not np.isfinite(extremes).all():  # minimum and maximum let NaN through
        raise ImageError(f"{path}: the pixels hold NaN or infinite values")
    if low < 0 or high > 1:
        notices.append(f"float values from {low:.6g} to {high:.6g}, beyond 0..1")

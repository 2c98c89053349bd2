"""Writing image files: whole or not at all, the same pixels always as the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from drct.errors import ImageError, OptionError, did_you_mean
from drct.imaging import exif, tiff_exif
from drct.imaging._vips import cause, enter, has_operation, pyvips
from drct.imaging.formats import ALIASES, FORMATS, Format, format_of
from drct.imaging.picture import Picture

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

NAME_BYTES = 255  # longest file name of common file systems
SCREEN_RESOLUTION = (72 / 25.4, 72 / 25.4)
STALE_SECONDS = 24 * 3600  # where the file system has no locks, a temporary file untouched for so long is taken for left behind
_LONGEST_SIDE = {"jpeg": 65500, "webp": 16383}


def write(
    path: str | os.PathLike[str],
    picture: Picture | np.ndarray,
    format: str | None = None,
    *,
    quality: int | None = None,
    lossless: bool = False,
    compression: int = 6,
) -> list[str]:
    """Write an image file in one step: it appears complete, or not at all.

    The bytes depend on picture and options only. Alpha, ICC profile, EXIF, XMP and resolution go along where the format holds
    them; EXIF loses its thumbnail and gets the new dimensions. What the format cannot hold is converted: 16 bits and floats
    (0..1) are rounded to the nearest level of the deepest type it has, transparency is laid on white in JPEG.

    Args:
        path: file to write; an existing one is replaced.
        picture: a :class:`Picture`, or pixels ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)``, of which uint8, uint16 and float32 are
            taken.
        format: ``png``, ``jpeg`` (``jpg``), ``webp`` or ``tiff``; default by the suffix of ``path``.
        quality: 1..100 for JPEG (default 95) and lossy WebP (default 90).
        lossless: WebP without loss.
        compression: deflate level 0..9 of PNG and TIFF.

    Returns:
        Notices: what was converted or left out, one short sentence each.

    Raises:
        OptionError: an unknown format or a value out of range.
        ImageError: the file cannot be written, or the picture does not fit the format; nothing is left behind.
    """
    path = Path(path)
    enter(path)
    target_format = _format(path, format)
    if quality is not None and not 1 <= quality <= 100:
        raise OptionError(f"quality must be 1 to 100, not {quality}")
    if not 0 <= compression <= 9:
        raise OptionError(f"compression must be 0 to 9, not {compression}")
    if isinstance(picture, np.ndarray):
        picture = Picture(picture)
    notices: list[str] = []
    image = _image(path, picture, target_format, notices)
    options = _save_options(path, target_format, image, quality, lossless, compression)
    metadata = _exif_for(picture, target_format, notices)
    if metadata and options.get("bigtiff"):
        notices.append("EXIF data left out: not written to files that need BigTIFF")
        metadata = None
    with _replacing(path) as part:
        try:
            _save(image, target_format, part, options, metadata)
        except pyvips.Error as error:
            raise ImageError(f"{path}: cannot be written: {cause(error)}") from None
    return notices


def _format(path: Path, format: str | None) -> Format:
    writable = [f.name for f in FORMATS.values() if f.saver and has_operation(f.saver)]
    name = format_of(path) if format is None else ALIASES.get(format.lower().lstrip("."), format.lower().lstrip("."))
    if name not in writable:
        what = f"the suffix {path.suffix!r}" if format is None else f"the format {format!r}"
        raise OptionError(
            f"{path}: {what} stands for none that is written: {', '.join(writable)}{did_you_mean(str(name), writable)}"
        )
    return FORMATS[name]


def _image(path: Path, picture: Picture, target: Format, notices: list[str]) -> pyvips.Image:
    """The libvips image to save: depth and alpha as the format holds them, metadata attached (but EXIF)."""
    pixels, alpha = picture.pixels, picture.alpha
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.size == 0:
        raise ImageError(f"{path}: pixels of shape {pixels.shape} are neither H x W x 3 nor grey")
    if pixels.dtype.name not in ("uint8", "uint16", "float32"):
        raise ImageError(f"{path}: pixels of type {pixels.dtype} are not supported: use uint8, uint16 or float32")
    if alpha is not None and (alpha.shape != pixels.shape[:2] or alpha.dtype != pixels.dtype):
        raise ImageError(f"{path}: alpha {alpha.shape} {alpha.dtype} does not fit pixels {pixels.shape} {pixels.dtype}")
    if alpha is not None and not target.alpha:
        if int(alpha.min()) < _PEAK[alpha.dtype.name]:
            pixels = on_white(pixels, alpha)
            notices.append(f"{target.name.upper()} holds no transparency: laid on white")
        alpha = None
    depth = pixels.dtype.name
    if depth not in target.depths:
        depth = target.depths[-1]
        notices.append(f"{pixels.dtype.name} rounded to {depth}: {target.name.upper()} holds no more")
        pixels = to_depth(pixels, depth)
        alpha = None if alpha is None else to_depth(alpha, depth)
    image = pyvips.Image.new_from_array(np.ascontiguousarray(pixels))
    if alpha is not None:
        image = image.bandjoin(pyvips.Image.new_from_array(np.ascontiguousarray(alpha)))
    image = image.copy(interpretation=_INTERPRETATION[picture.is_grey, depth])
    resolution = picture.resolution or SCREEN_RESOLUTION
    image = image.copy(xres=resolution[0], yres=resolution[1])
    if target.name == "tiff":
        image.set_type(pyvips.GValue.gstr_type, "resolution-unit", "in")
    xmp = exif.corrected_xmp(picture.xmp, picture.width, picture.height) if picture.xmp else None
    for name, data in (("icc-profile-data", _profile_for(picture, target, notices)), ("xmp-data", xmp)):
        if data:
            image.set_type(pyvips.GValue.blob_type, name, data)
    return image


_PEAK = {"uint8": 255, "uint16": 65535, "float32": 1}
_INTERPRETATION = {
    (True, "uint8"): "b-w",
    (True, "uint16"): "grey16",
    (True, "float32"): "b-w",
    (False, "uint8"): "srgb",
    (False, "uint16"): "rgb16",
    (False, "float32"): "scrgb",
}


def to_depth(values: np.ndarray, depth: str) -> np.ndarray:
    """Round uint8, uint16 or float32 (0..1) values to the nearest level of another of these types, clipped to its range."""
    if values.dtype.name == depth:
        return values
    if depth == "float32":
        return np.divide(values, _PEAK[values.dtype.name], dtype=np.float32)
    if values.dtype == np.uint8:
        return values.astype(np.uint16) * np.uint16(257)
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return np.floor(np.clip(values, 0, 1) * np.float32(_PEAK[depth]) + np.float32(0.5)).astype(depth)


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    peak = _PEAK[pixels.dtype.name]
    opacity = alpha[:, :, None].astype(np.float32) / peak
    mixed = pixels * opacity + peak * (1 - opacity)
    return mixed.astype(np.float32) if pixels.dtype == np.float32 else np.floor(mixed + 0.5).clip(0, peak).astype(pixels.dtype)


def _profile_for(picture: Picture, target: Format, notices: list[str]) -> bytes | None:
    if picture.icc and target.name == "webp" and picture.is_grey:
        notices.append("grey colour profile left out: WEBP stores grey as RGB")
        return None
    return picture.icc


def _exif_for(picture: Picture, target: Format, notices: list[str]) -> bytes | None:
    if not picture.exif:
        return None
    try:
        data = exif.corrected(picture.exif, picture.width, picture.height, picture.resolution)
    except ValueError:
        notices.append("damaged EXIF data left out")
        return None
    if target.name == "jpeg" and len(data) > 65533 - 6:
        notices.append("EXIF data left out: too long for JPEG")
        return None
    return data


def _save_options(
    path: Path, target: Format, image: pyvips.Image, quality: int | None, lossless: bool, compression: int
) -> dict[str, Any]:
    most = _LONGEST_SIDE.get(target.name)
    if most and max(image.width, image.height) > most:
        name = target.name.upper()
        raise ImageError(f"{path}: cannot be written: {image.width} x {image.height} pixels, {name} holds {most} a side")
    if target.name == "png":
        return {"compression": compression}
    if target.name == "jpeg":
        return {"Q": quality or 95, "optimize_coding": True}
    if target.name == "webp":
        return {"lossless": True, "exact": True} if lossless else {"Q": quality or 90, "smart_subsample": True}
    predictor = "float" if image.format == "float" else "horizontal"
    return {"compression": "deflate", "level": max(1, compression), "predictor": predictor, "bigtiff": _bytes(image) > 3 << 30}


def _bytes(image: pyvips.Image) -> int:
    return int(image.width * image.height * image.bands * {"uchar": 1, "ushort": 2, "float": 4}[image.format])


def _save(image: pyvips.Image, target: Format, part: io.FileIO, options: dict[str, Any], metadata: bytes | None) -> None:
    # EXIF is put in by this module: libvips would rebuild it, add tags of its own and break the offsets in maker notes.
    options = {**options, "keep": "icc|xmp"}
    if metadata is None or target.name == "tiff":
        getattr(image, target.saver)(pyvips.Target.new_to_descriptor(part.fileno()), **options)
        if metadata:
            tiff_exif.insert(part, metadata)
        return
    if target.name == "webp":
        part.write(_webp_with_exif(image.webpsave_buffer(**options), metadata, image))
        return
    if target.name == "png":
        chunk = b"eXIf" + metadata
        insert, position = struct.pack(">I", len(metadata)) + chunk + struct.pack(">I", zlib.crc32(chunk)), 33  # behind IHDR
    else:
        insert, position = b"\xff\xe1" + struct.pack(">H", len(metadata) + 8) + b"Exif\0\0" + metadata, 2  # behind the start marker
    _save_with_insert(image, target, part, options, insert, position)


def _save_with_insert(
    image: pyvips.Image, target: Format, part: io.FileIO, options: dict[str, Any], insert: bytes, position: int
) -> None:
    written = 0
    failure: OSError | None = None

    def on_write(chunk: Any) -> int:
        nonlocal written, failure
        data = bytes(chunk)
        cut = position - written
        try:
            part.write(data[:cut] + insert + data[cut:] if 0 <= cut < len(data) else data)
        except OSError as error:  # must not leave a callback of C
            failure = error
            return -1
        written += len(data)
        return len(data)

    custom = pyvips.TargetCustom()
    custom.on_write(on_write)
    try:
        getattr(image, target.saver)(custom, **options)
    except pyvips.Error:
        if failure is not None:
            raise failure from None
        raise


def _webp_with_exif(data: bytes, metadata: bytes, image: pyvips.Image) -> bytes:
    """Add an EXIF chunk (WebP container specification: extended format)."""
    chunks = [c for c in _webp_chunks(data) if c[0] != b"VP8X"]
    flags = 0x08
    for name, _ in chunks:
        transparent = (name == b"ALPH") or (name == b"VP8L" and image.bands in (2, 4))
        flags |= {b"ICCP": 0x20, b"XMP ": 0x04}.get(name, 0) | (0x10 if transparent else 0)
    canvas = struct.pack("<I", image.width - 1)[:3] + struct.pack("<I", image.height - 1)[:3]
    xmp = [c for c in chunks if c[0] == b"XMP "]
    ordered = [(b"VP8X", bytes([flags, 0, 0, 0]) + canvas), *(c for c in chunks if c not in xmp), (b"EXIF", metadata), *xmp]
    body = b"".join(name + struct.pack("<I", len(p)) + p + b"\0" * (len(p) % 2) for name, p in ordered)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(data):
        length = struct.unpack_from("<I", data, at + 4)[0]
        yield data[at : at + 4], data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def part_path(path: str | os.PathLike[str]) -> Path:
    """The temporary name ``.NAME.part`` beside ``path``, which no folder walk takes for an image; a long NAME becomes a hash."""
    path = Path(path)
    name = f".{path.name}.part"
    if len(os.fsencode(name)) > NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        name = f".{digest}{path.suffix[:16]}.part"
    return path.with_name(name)


def remove_stale_parts(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove temporary files that killed runs left in a folder; those that a live process is writing (it holds a lock) stay.

    Only names that :func:`part_path` gives to image files are touched.

    Returns:
        The removed files, sorted.
    """
    removed = []
    try:
        candidates = sorted(
            p for p in Path(folder).iterdir() if p.name.startswith(".") and p.suffix == ".part" and format_of(p.stem)
        )
    except OSError:
        return []  # a folder that is not there, or not to be read, holds nothing to remove
    for part in candidates:
        try:
            with part.open("r+b") as file:
                lock = _lock(file, part)
                if lock == "held" or (lock == "none" and time.time() - part.stat().st_mtime > STALE_SECONDS):
                    part.unlink()
                    removed.append(part)
        except OSError:
            continue  # gone meanwhile, or not ours to remove
    return removed


def _lock(file: IO[bytes] | io.FileIO, part: Path) -> Literal["held", "busy", "gone", "none"]:
    """Try to take the lock of a temporary file, which the system drops when its process ends, however it ends.

    Returns:
        ``held``; ``busy`` when another process has it; ``gone`` when the file lost its name between opening and locking; ``none``
        when there are no locks on this system.
    """
    if fcntl is None:
        return "none"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "busy"
    except OSError:
        return "none"
    try:
        return "held" if os.path.samestat(os.fstat(file.fileno()), part.stat()) else "gone"
    except FileNotFoundError:
        return "gone"


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[_Part]:
    """A temporary file open for writing that takes the name ``path`` when the block ends well, and vanishes when it does not."""
    part = part_path(path)
    if os.path.isdir(path):  # unlike Path.is_dir false, and no error, for impossible names
        raise ImageError(f"{path}: cannot be written: it is a folder")
    with _locked(path, part) as file:
        try:
            file.truncate(0)
            yield file
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows renames no open file
            os.replace(part, path)
        except BaseException as error:
            if fcntl is None:
                file.close()
            with contextlib.suppress(OSError):
                part.unlink()
            if isinstance(error, OSError):
                raise ImageError(f"{path}: cannot be written: {error.strerror or error}") from None
            raise
    _sync_folder(path.parent)


class _Part(io.FileIO):
    """A file whose ``write`` writes all or fails; that of FileIO stops half way, without a word, when the disk gets full."""

    def write(self, data: Any) -> int:
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += super().write(view[done:]) or 0
        return done


def _locked(path: Path, part: Path) -> _Part:
    while True:
        try:
            # Neither emptied before the lock is held, nor in append mode, where TIFF could not go back to fill in its directory.
            file = _Part(os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+")
        except (OSError, ValueError) as error:
            raise ImageError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
        lock = _lock(file, part)
        if lock in ("held", "none"):
            return file
        file.close()
        if lock == "busy":
            raise ImageError(f"{path}: cannot be written: another process is writing it")
        # Another process removed or finished the file of that name just then: the next one will be ours.


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the system can."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

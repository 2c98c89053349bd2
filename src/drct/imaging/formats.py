"""The file formats that the house reads and writes, told apart by their first bytes and not by their names.

What the installed libvips lacks (JPEG XL needs its library) is refused with a line that says so; HEIC has a reader of its own
(:mod:`.heic`), since libvips seldom comes with a decoder of HEVC.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: what ``Picture.source_format`` holds.
        suffixes: of its files, the usual one first.
        loader: libvips' operation that reads it, "" if the house does not read it.
        saver: libvips' operation that writes it, "" if the house does not write it.
        depths: sample types that it holds.
        alpha: whether it holds transparency.
        longest: side in pixels that it holds at most; 0 without a limit that matters.
        sequence: what several pictures in one file are: ``"page"``, ``"frame"``, or "" where the house writes only one.
        lossless: whether pixels come back as they were: ``"always"``, ``"optional"`` or ``"never"``.
        quality: default of its lossy kind, 1..100; 0 where there is none.
    """

    name: str
    suffixes: tuple[str, ...]
    loader: str
    saver: str = ""
    depths: tuple[str, ...] = ("uint8",)
    alpha: bool = True
    longest: int = 0
    sequence: Literal["", "page", "frame"] = ""
    lossless: Literal["always", "optional", "never"] = "always"
    quality: int = 0

    @property
    def title(self) -> str:
        """The name as people write it."""
        return {"webp": "WebP", "jxl": "JPEG XL", "dzi": "DeepZoom"}.get(self.name, self.name.upper())


_DEEP = ("uint8", "uint16", "float32")

# Qualities: round numbers whose loss is hard to see at 100 %, chosen by eye, not by a measurement.
FORMATS = {
    f.name: f
    for f in (
        Format("png", (".png",), "pngload_source", "pngsave_target", _DEEP[:2]),
        Format(
            *("jpeg", (".jpg", ".jpeg", ".jpe", ".jfif"), "jpegload_source", "jpegsave_target"),
            alpha=False,
            longest=65500,
            lossless="never",
            quality=95,
        ),
        Format(
            *("webp", (".webp",), "webpload_source", "webpsave_target"),
            longest=16383,
            sequence="frame",
            lossless="optional",
            quality=90,
        ),
        Format("tiff", (".tif", ".tiff"), "tiffload_source", "tiffsave_target", _DEEP, sequence="page"),
        Format("gif", (".gif",), "gifload_source", "gifsave_target", longest=65535, sequence="frame", lossless="never"),
        Format(
            *("avif", (".avif",), "heifload_source", "heifsave_target", _DEEP[:2]),
            longest=16384,
            lossless="optional",
            quality=85,
        ),
        Format("heic", (".heic", ".heif", ".hif"), "heifload_source"),
        # It holds floats too, but libvips writes them as linear light, which they are not here, and grey ones as bytes.
        Format("jxl", (".jxl",), "jxlload_source", "jxlsave_target", _DEEP[:2], lossless="optional", quality=90),
        Format("dzi", (".dzi",), "", "dzsave", lossless="never", quality=90),
    )
}
ALIASES = {"jpg": "jpeg", "tif": "tiff", "deepzoom": "dzi"}

# Kinds that people do hand over and that are not read; naming them makes a better error than "unknown".
_OTHER_KINDS = (
    (0, b"BM", "a BMP image"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"v/1\x01", "an OpenEXR image"),
)
_VIDEO_BRANDS = {
    b"isom",
    b"iso2",
    b"iso4",
    b"iso5",
    b"iso6",
    b"mp41",
    b"mp42",
    b"avc1",
    b"qt  ",
    b"M4V ",
    b"MSNV",
    b"3gp4",
    b"3gp5",
}
VIDEO_SUFFIXES = {"an MP4 or QuickTime video": ".mp4", "a Matroska or WebM video": ".mkv", "an AVI video": ".avi"}
_HEIC_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis"}


def sniff(head: bytes) -> tuple[str | None, str]:
    """Tell a format by the first bytes of a file (64 are enough).

    Returns:
        ``(name, "")`` with a key of :data:`FORMATS`, or ``(None, what)`` with words such as ``"a PDF document"`` or
        ``"not an image file of a known kind"``.
    """
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png", ""
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg", ""
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp", ""
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return ("tiff", "") if head[8:10] != b"CR" else (None, "a camera raw file")
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif", ""
    if head.startswith((b"\xff\x0a", b"\0\0\0\x0cJXL ")):
        return "jxl", ""
    if head[4:8] == b"ftyp":
        brands = {head[8:12]} | {head[i : i + 4] for i in range(16, min(len(head), int.from_bytes(head[:4], "big")), 4)}
        if brands & {b"avif", b"avis"}:
            return "avif", ""
        if brands & _HEIC_BRANDS:
            return "heic", ""
        return None, "an MP4 or QuickTime video" if brands & _VIDEO_BRANDS else "a media file"
    for offset, magic, what in _OTHER_KINDS:
        if head[offset:].startswith(magic):
            return None, what
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        return None, "an AVI video"
    return None, "not an image file of a known kind"


def format_of(path: str | os.PathLike[str]) -> str | None:
    """The format that a file name's suffix stands for, in any case of letters; None if it stands for none."""
    suffix = Path(path).suffix.lower()
    return next((f.name for f in FORMATS.values() if suffix in f.suffixes), None)


def supported_suffixes(writable: bool = False) -> tuple[str, ...]:
    """Lower-case suffixes, with their dot, of all formats that are read (or, with ``writable``, written)."""
    return tuple(s for f in FORMATS.values() if (f.saver if writable else f.loader) for s in f.suffixes)


def is_image_file(path: str | os.PathLike[str]) -> bool:
    """Whether a folder walk should take this file: its name has the suffix of an image format and it is no hidden or temporary
    file.

    Only the name is looked at; :func:`drct.imaging.read` judges the content.
    """
    return Path(path).suffix.lower() in supported_suffixes() and not Path(path).name.startswith(".")

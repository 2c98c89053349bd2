"""The file formats that the house reads and writes, told apart by their first bytes and not by their names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        name: what ``Picture.source_format`` holds.
        suffixes: of its files, the usual one first.
        loader: libvips' operation that reads it.
        saver: libvips' operation that writes it, "" if the house does not write it.
        depths: sample types that it holds.
        alpha: whether it holds transparency.
    """

    name: str
    suffixes: tuple[str, ...]
    loader: str
    saver: str = ""
    depths: tuple[str, ...] = ("uint8",)
    alpha: bool = True


FORMATS = {
    f.name: f
    for f in (
        Format("png", (".png",), "pngload_source", "pngsave_target", ("uint8", "uint16")),
        Format("jpeg", (".jpg", ".jpeg", ".jpe", ".jfif"), "jpegload_source", "jpegsave_target", alpha=False),
        Format("webp", (".webp",), "webpload_source", "webpsave_target"),
        Format("tiff", (".tif", ".tiff"), "tiffload_source", "tiffsave_target", ("uint8", "uint16", "float32")),
        Format("gif", (".gif",), "gifload_source"),
        Format("avif", (".avif",), "heifload_source"),
    )
}
ALIASES = {"jpg": "jpeg", "tif": "tiff"}

# Kinds that people do hand over and that are not read; naming them makes a better error than "unknown".
_OTHER_KINDS = (
    (0, b"BM", "a BMP image"),
    (0, b"8BPS", "a Photoshop document"),
    (0, b"%PDF", "a PDF document"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
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
    if head[4:8] == b"ftyp":
        brands = {head[8:12]} | {head[i : i + 4] for i in range(16, min(len(head), int.from_bytes(head[:4], "big")), 4)}
        if brands & {b"avif", b"avis"}:
            return "avif", ""
        if brands & _HEIC_BRANDS:
            return None, "a HEIC image"
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
    return tuple(s for f in FORMATS.values() if f.saver or not writable for s in f.suffixes)


def is_image_file(path: str | os.PathLike[str]) -> bool:
    """Whether a folder walk should take this file: its name has the suffix of an image format and it is no hidden or temporary
    file.

    Only the name is looked at; :func:`drct.imaging.read` judges the content.
    """
    return format_of(path) is not None and not Path(path).name.startswith(".")

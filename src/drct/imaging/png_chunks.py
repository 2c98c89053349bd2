"""What libvips leaves out of PNG files: whether one is an animation, how its numbers are meant as colours where no ICC profile says
it, and the text that it carries.

Portable Network Graphics, third edition, sections 11.3.2 (colours; cICP counts before iCCP, that before sRGB, that before gAMA and
cHRM), 11.3.3 (text) and 11.3.4.3 (eXIf).
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

BEHIND_HEADER = 33  # where chunks can be put in
RESOLUTION = b"pHYs"
_LENGTHS = {b"cICP": 4, b"mDCV": 24, b"cLLI": 8, b"gAMA": 4, b"cHRM": 32}
_SRGB = {b"cICP": bytes((1, 13, 0, 1)), b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)}
_SRGB_GAMMA = range(45000, 46000)  # 1 / 2.2 and thereabouts, which every viewer takes for sRGB
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_XMP = b"XML:com.adobe.xmp"  # keyword of the text that is XMP, which libvips keeps
_RAW_PROFILE = b"Raw profile type "  # how keywords begin of EXIF and the like, packed as text by old programs
_MOST_TEXT = 1 << 20  # bytes of all text
_MOST_METADATA = 1 << 24  # bytes of EXIF or XMP data
_MOST_CHUNKS = 1 << 20
_KEYWORDS_TOLD = 5


class Inspection(NamedTuple):
    """What a PNG carries.

    Attributes:
        frames: of an animated PNG; 0 in a plain one.
        colours: chunks by which the colours are others than those of sRGB and of the ICC profile; may be empty.
        texts: chunks of text; may be empty.
        notices: what is left out of the text.
        resolved: it has a resolution in pixels per metre.
        exif, xmp: what stands behind the pixels, where libvips does not look; None without.
    """

    frames: int = 0
    colours: bytes = b""
    texts: bytes = b""
    notices: tuple[str, ...] = ()
    resolved: bool = False
    exif: bytes | None = None
    xmp: bytes | None = None


def inspect(file: BinaryIO) -> Inspection:
    """Look at the chunks before the pixels, and at those of text and metadata behind them too."""
    frames = 0
    found: dict[bytes, bytes] = {}
    texts = bytearray()
    notices: dict[str, None] = {}
    before_pixels, resolved = True, False
    exif = xmp = None
    at = 8
    for _ in range(_MOST_CHUNKS):
        file.seek(at)
        head = file.read(8)
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or name == b"IEND":
            break
        before_pixels = before_pixels and name != b"IDAT"
        if not before_pixels and name == b"eXIf" and exif is None:
            exif, notice = _exif(file, length)
            if notice:
                notices[notice] = None
        elif not before_pixels and name == b"iTXt" and xmp is None and (found_xmp := _xmp(file, length)) is not None:
            xmp, notice = found_xmp
            if notice:
                notices[notice] = None
        elif name in _TEXTS:
            file.seek(at + 8)
            kept, notice = _text(file, name, length, _MOST_TEXT - len(texts))
            texts += kept
            if notice:
                notices[notice] = None
        elif before_pixels and name == b"acTL":
            frames = int.from_bytes(file.read(4), "big")
        elif before_pixels and name == RESOLUTION and length == 9:
            across, down, unit = struct.unpack(">IIB", file.read(9).ljust(9, b"\0"))
            resolved = unit == 1 and bool(across and down)
        elif before_pixels and name in (b"iCCP", b"sRGB"):
            found[name] = b""
        elif before_pixels and length == _LENGTHS.get(name):
            found[name] = file.read(length)
        at += 12 + length
    return Inspection(frames, _colours(found), bytes(texts), tuple(notices), resolved, exif, xmp)


def _exif(file: BinaryIO, length: int) -> tuple[bytes | None, str]:
    """EXIF data, or a notice why there is none."""
    data = file.read(min(length, _MOST_METADATA))
    return (data, "") if _is_whole(file, b"eXIf", data, length) else (None, "damaged EXIF data left out")


def _xmp(file: BinaryIO, length: int) -> tuple[bytes | None, str] | None:
    """XMP data of a chunk of text, or a notice why it is left out; None where the text is another one (section 11.3.3.4)."""
    beginning = file.read(min(length, len(_XMP) + 3))
    if not beginning.startswith(_XMP + b"\0"):
        return None
    data = beginning + file.read(max(0, min(length, _MOST_METADATA) - len(beginning)))
    compressed, _, text = data[len(_XMP) + 1 : len(_XMP) + 2], *data[len(_XMP) + 3 :].partition(b"\0")[1:]
    text = text.partition(b"\0")[2]  # behind the language and the keyword in that language
    try:
        if compressed == b"\1":
            unpack = zlib.decompressobj()
            text = unpack.decompress(text, _MOST_METADATA)
            if not unpack.eof:
                raise ValueError("longer, or cut off")
        if not _is_whole(file, b"iTXt", data, length):
            raise ValueError("of another checksum")
    except (ValueError, zlib.error):
        return None, "damaged XMP data left out"
    return text or None, ""


def _is_whole(file: BinaryIO, name: bytes, data: bytes, length: int) -> bool:
    """Whether what was read of a chunk is all of it and undamaged; the file stands at its checksum."""
    return len(data) == length and chunk(name, data)[-4:] == file.read(4)


def _text(file: BinaryIO, name: bytes, length: int, room: int) -> tuple[bytes, str]:
    """A chunk of text to be kept, or a notice why it is not; neither of both for XMP."""
    data = file.read(min(length, _MOST_TEXT))
    keyword = data.partition(b"\0")[0]
    if keyword == _XMP:
        return b"", ""
    if keyword.startswith(_RAW_PROFILE):
        return b"", "metadata packed as text (raw profile) of the PNG left out"
    if length > room:
        return b"", "text of the PNG left out: more than 1 MB"
    if not _is_whole(file, name, data, length):
        return b"", "damaged text of the PNG left out"
    return chunk(name, data), ""


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def dressed(insert: bytes, resolved: bool, beginning: bytes) -> bytes | None:
    """The beginning of a PNG file with more chunks behind its header, and without a resolution unless ``resolved``; None while the
    pixels have not begun."""
    kept = [beginning[:BEHIND_HEADER], insert]
    at = BEHIND_HEADER
    while at + 8 <= len(beginning):
        end = at + 12 + int.from_bytes(beginning[at : at + 4], "big")
        name = beginning[at + 4 : at + 8]
        if name == b"IDAT":
            return b"".join(kept) + beginning[at:]
        if resolved or name != RESOLUTION:
            kept.append(beginning[at:end])
        at = end
    return None


def names(chunks: bytes) -> list[str]:
    """Names of chunks that stand in a row."""
    return [name.decode("ascii") for name, _ in _parts(chunks)]


def keywords(chunks: bytes) -> str:
    """Keywords of chunks of text, the first of them where there are many."""
    found = list(dict.fromkeys(_printable(data.partition(b"\0")[0]) for _, data in _parts(chunks)))
    return ", ".join(found[:_KEYWORDS_TOLD]) + (", ..." if len(found) > _KEYWORDS_TOLD else "")


def _printable(keyword: bytes) -> str:
    return "".join(letter for letter in keyword[:79].decode("latin-1") if letter.isprintable())


def _parts(chunks: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of chunks that stand in a row."""
    source = io.BytesIO(chunks)
    while len(head := source.read(8)) == 8:
        yield head[4:], source.read(int.from_bytes(head[:4], "big"))
        source.seek(4, os.SEEK_CUR)


def _colours(found: dict[bytes, bytes]) -> bytes:
    kept: tuple[bytes, ...] = ()
    if b"cICP" in found and found[b"cICP"] != _SRGB[b"cICP"]:
        kept = (b"cICP", b"mDCV", b"cLLI")
    elif b"gAMA" in found and not {b"cICP", b"iCCP", b"sRGB"} & found.keys():
        gamma = int.from_bytes(found[b"gAMA"], "big")
        plain = gamma in _SRGB_GAMMA and found.get(b"cHRM", _SRGB[b"cHRM"]) == _SRGB[b"cHRM"]
        kept = () if plain or not 0 < gamma < 1 << 31 else (b"gAMA", b"cHRM")
    return b"".join(chunk(name, found[name]) for name in kept if name in found)

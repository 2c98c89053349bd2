"""What libvips leaves out of AVIF and HEIC files: colours that numbers tell instead of an ICC profile, and what stands in the file
beside its picture.

ISO/IEC 14496-12, sections 4.2 (boxes) and 8.7.3 (sizes of samples); ISO/IEC 23008-12, section 9.3 (properties of items);
ITU-T H.273 (the numbers of colours, which PNG's cICP repeats).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from drct.imaging import png_chunks

GAIN_MAP = "the gain map (HDR) is left out"

_SEQUENCES = {b"avis", b"msf1", b"hevc", b"hevx"}
# What H.273 does not call unspecified (2) or reserved
_PRIMARIES = {1, *range(4, 13), 22}
_TRANSFERS = {1, *range(4, 19)}
_USUAL = {1, 6, 13, 14, 15}  # transfers that every viewer takes for sRGB's, with its primaries (1)


class Inspection(NamedTuple):
    """What the first bytes of a file tell.

    Attributes:
        frames: of an animation; 0 in a still picture, and where the file does not say it so early.
        colours: PNG's chunk of the colours, if they are others than those of sRGB; else empty.
        notices: what is left out.
    """

    frames: int = 0
    colours: bytes = b""
    notices: tuple[str, ...] = ()


def inspect(head: bytes) -> Inspection:
    """Look at the first bytes of a file; boxes that are damaged or go on behind them tell what they can."""
    declared = _inner(head, b"ftyp")
    major, brands = declared[:4], {declared[i : i + 4] for i in (0, *range(8, len(declared), 4))}
    frames = _samples(head) if brands & _SEQUENCES else 0
    notices = []
    if major in _SEQUENCES and not frames:
        notices.append("only the first frame of an animation is used")
    if b"tmap" in brands:
        notices.append(GAIN_MAP)
    return Inspection(frames, _colours(head), tuple(notices))


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of boxes that stand in a row; the last one ends where the data ends."""
    at = 0
    while at + 8 <= len(data):
        size, name, begin = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, begin = int.from_bytes(data[at + 8 : at + 16], "big"), at + 16
        end = at + size if size else len(data)
        if end < begin:
            return
        yield name, data[begin:end]
        at = end


def _inner(data: bytes, *path: bytes) -> bytes:
    """Content of the first box of each name within that of the one before; empty if there is none."""
    for name in path:
        data = next((content for found, content in _boxes(data) if found == name), b"")
    return data


def _samples(head: bytes) -> int:
    table = _inner(head, b"moov", b"trak", b"mdia", b"minf", b"stbl")
    sizes = _inner(table, b"stsz") or _inner(table, b"stz2")
    return int.from_bytes(sizes[8:12], "big") if len(sizes) >= 12 else 0


def _colours(head: bytes) -> bytes:
    meta = _inner(head, b"meta")[4:]
    properties = list(_boxes(_inner(meta, b"iprp", b"ipco")))
    primary = _inner(meta, b"pitm")
    item = int.from_bytes(primary[4:6] if primary[:1] == b"\0" else primary[4:8], "big")
    for index in _associated(_inner(meta, b"iprp"), item):
        name, content = properties[index - 1] if 1 <= index <= len(properties) else (b"", b"")
        if name == b"colr" and content[:4] == b"nclx" and len(content) >= 8:
            primaries, transfer = struct.unpack_from(">HH", content, 4)
            usual = primaries == 1 and transfer in _USUAL
            if primaries in _PRIMARIES and transfer in _TRANSFERS and not usual:
                # decoded to RGB of the full range
                return png_chunks.chunk(b"cICP", bytes((primaries, transfer, 0, 1)))
    return b""


def _associated(data: bytes, item: int) -> Iterator[int]:
    """Numbers of the properties of an item, counted from 1."""
    for name, content in _boxes(data):
        if name != b"ipma" or len(content) < 8:
            continue
        number = 4 if content[0] else 2  # bytes
        width = 2 if content[3] & 1 else 1
        at = 8
        while at + number < len(content):
            owner, count = int.from_bytes(content[at : at + number], "big"), content[at + number]
            at += number + 1
            if owner == item:
                for i in range(at, at + count * width, width):
                    # the first bit says whether the property is essential
                    yield int.from_bytes(content[i : i + width], "big") & ((1 << 8 * width - 1) - 1)
            at += count * width

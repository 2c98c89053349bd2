"""What libvips leaves out of JPEG files: comments, and pictures that stand behind the first one.

ITU-T T.81, annex B (segments); CIPA DC-007 (the multi-picture format); ISO 21496-1 (gain maps).
"""

from __future__ import annotations

import struct
from typing import BinaryIO, NamedTuple

from drct.imaging.exif import Exif

COMMENT, _APP0, _APP2, _SCAN, _END = 0xFE, 0xE0, 0xE2, 0xDA, 0xD9
_START = b"\xff\xd8"
_PICTURES = 0xB002  # tag of the list of pictures
_PREVIEW, _GAIN_MAP = 0x01, 0x05  # upper bytes of their kinds
_GAIN_MAP_MARK = b"urn:iso:std:iso:ts:21496:-1\0"
_MOST_SEGMENTS = 4096
_MOST_COMMENT = 1 << 20  # bytes of all comments
# Comments in which a program tells how it encoded, which no longer holds
_OF_ENCODERS = (b"CREATOR: gd-jpeg", b"Lavc")


class Inspection(NamedTuple):
    """What stands before the pixels.

    Attributes:
        comments: without those of encoders.
        pictures: how many stand behind the first one; previews of it do not count.
        gain_map: whether one of them is a gain map, by which screens that can do so show more light.
        notices: what is left out of the comments.
        resolved: its JFIF header has a resolution in pixels per inch or centimetre.
    """

    comments: tuple[bytes, ...] = ()
    pictures: int = 0
    gain_map: bool = False
    notices: tuple[str, ...] = ()
    resolved: bool = False


def inspect(file: BinaryIO) -> Inspection:
    """Look at the segments before the pixels."""
    comments: list[bytes] = []
    pictures, gain_map, resolved = 0, False, False
    notices: dict[str, None] = {}
    at = 2
    for _ in range(_MOST_SEGMENTS):
        file.seek(at)
        head = file.read(4)
        marker, length = head[1:2], int.from_bytes(head[2:], "big")
        if len(head) < 4 or head[0] != 0xFF or head[1] in (_SCAN, _END):
            break
        if marker == b"\xff":  # filling
            at += 1
            continue
        if length < 2:
            break
        if head[1] == COMMENT:
            text = file.read(length - 2)
            if sum(map(len, comments)) + len(text) > _MOST_COMMENT:
                notices["comments of the JPEG left out: more than 1 MB"] = None
            elif text and not text.startswith(_OF_ENCODERS):
                comments.append(text)
        elif head[1] == _APP0:
            data = file.read(12)
            resolved = resolved or (data[:5] == b"JFIF\0" and data[7:8] in (b"\1", b"\2") and any(data[8:10]) and any(data[10:12]))
        elif head[1] == _APP2:
            data = file.read(length - 2)
            gain_map = gain_map or data.startswith(_GAIN_MAP_MARK)
            if data.startswith(b"MPF\0"):
                kinds = _kinds(file, data[4:], at + 8)
                pictures = sum(kind != _PREVIEW for kind in kinds)
                gain_map = gain_map or _GAIN_MAP in kinds
        at += 2 + length
    return Inspection(tuple(comments), pictures, gain_map, tuple(notices), resolved)


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def dressed(segments: bytes, beginning: bytes) -> bytes | None:
    """The beginning of a JPEG file with more segments behind its start; None of less than that."""
    return beginning[:2] + segments + beginning[2:] if len(beginning) >= 2 else None


def _kinds(file: BinaryIO, index: bytes, base: int) -> list[int]:
    """Upper bytes of the kinds of the pictures behind the first one, as far as they are there.

    Args:
        index: of the pictures, built as EXIF data is.
        base: where it stands in the file.
    """
    try:
        directory = Exif(index)
    except ValueError:
        return []
    entry = next((entry for entry in directory.entries(directory.first) if entry.tag == _PICTURES), None)
    if entry is None:
        return []
    begin, found = directory.integer(entry), []
    for at in range(begin + 16, min(begin + entry.length, len(index)) - 15, 16):
        kind, _, offset = struct.unpack_from(directory.order + "III", index, at)
        file.seek(base + offset)
        if file.read(2) == _START:  # programs that edit a JPEG leave lists of what is gone
            found.append(kind >> 16 & 0xFF)
    return found

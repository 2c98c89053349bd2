"""IPTC captions (IIM 4.2), which JPEG keeps in a Photoshop resource and TIFF as they are."""

from __future__ import annotations

import re
import struct

_PHOTOSHOP, _RESOURCE = b"Photoshop 3.0\0", b"8BIM"
_IPTC = 0x0404  # number of the resource


def records(data: bytes | None) -> bytes | None:
    """The records of what libvips calls IPTC data, with or without the resource around them; None if they tell nothing."""
    if data and data.startswith(_PHOTOSHOP):
        data = _resource(data)
    # 2:00, the version of the records, is all that some programs write
    return data if data and re.search(rb"\x1c\x02[^\0]", data) else None


def for_jpeg(data: bytes) -> bytes:
    """Records as JPEG's APP13 holds them."""
    return _PHOTOSHOP + _RESOURCE + struct.pack(">HHI", _IPTC, 0, len(data)) + data + bytes(len(data) % 2)


def _resource(data: bytes) -> bytes | None:
    at = len(_PHOTOSHOP)
    while at + 12 <= len(data) and data[at : at + 4] == _RESOURCE:
        number = int.from_bytes(data[at + 4 : at + 6], "big")
        at += 6 + (data[at + 6] + 2) // 2 * 2  # a name with its length before it, in an even number of bytes
        length = int.from_bytes(data[at : at + 4], "big")
        at += 4
        if number == _IPTC:
            return data[at : at + length]
        at += length + length % 2
    return None

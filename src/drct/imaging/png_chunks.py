"""What libvips leaves out of PNG files: whether one is an animation, and how its numbers are meant as colours where no ICC profile
says it.

Portable Network Graphics, third edition, sections 11.3.2 (colours; cICP counts before iCCP, that before sRGB, that before gAMA and
cHRM) and 11.3.4.3 (eXIf).
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import BinaryIO, NamedTuple

BEHIND_HEADER = 33  # where chunks can be put in
_LENGTHS = {b"cICP": 4, b"mDCV": 24, b"cLLI": 8, b"gAMA": 4, b"cHRM": 32}
_SRGB = {b"cICP": bytes((1, 13, 0, 1)), b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)}
_SRGB_GAMMA = range(45000, 46000)  # 1 / 2.2 and thereabouts, which every viewer takes for sRGB


class Inspection(NamedTuple):
    """What stands before the pixels.

    Attributes:
        frames: of an animated PNG; 0 in a plain one.
        colours: chunks by which the colours are others than those of sRGB and of the ICC profile; may be empty.
    """

    frames: int
    colours: bytes


def inspect(file: BinaryIO) -> Inspection:
    """Look at the chunks before the pixels."""
    file.seek(8)
    frames = 0
    found: dict[bytes, bytes] = {}
    while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if name == b"acTL":
            frames = int.from_bytes(file.read(4), "big")
            length -= 4
        elif name in (b"iCCP", b"sRGB"):
            found[name] = b""
        elif length == _LENGTHS.get(name):
            found[name] = file.read(length)
            length = 0
        file.seek(length + 4, os.SEEK_CUR)
    return Inspection(frames, _colours(found))


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def names(chunks: bytes) -> list[str]:
    """Names of chunks that stand in a row."""
    found, source = [], io.BytesIO(chunks)
    while len(head := source.read(8)) == 8:
        found.append(head[4:].decode("ascii"))
        source.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
    return found


def _colours(found: dict[bytes, bytes]) -> bytes:
    kept: tuple[bytes, ...] = ()
    if b"cICP" in found and found[b"cICP"] != _SRGB[b"cICP"]:
        kept = (b"cICP", b"mDCV", b"cLLI")
    elif b"gAMA" in found and not {b"cICP", b"iCCP", b"sRGB"} & found.keys():
        gamma = int.from_bytes(found[b"gAMA"], "big")
        plain = gamma in _SRGB_GAMMA and found.get(b"cHRM", _SRGB[b"cHRM"]) == _SRGB[b"cHRM"]
        kept = () if plain or not 0 < gamma < 1 << 31 else (b"gAMA", b"cHRM")
    return b"".join(chunk(name, found[name]) for name in kept if name in found)

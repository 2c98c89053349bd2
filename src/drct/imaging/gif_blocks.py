"""The blocks of a GIF file, since decoders take what is left of one that was cut off for a shorter animation."""

from __future__ import annotations

from typing import BinaryIO

EXTENSION, PICTURE, TRAILER = b"\x21", b"\x2c", b"\x3b"


def is_cut_off(file: BinaryIO) -> bool:
    """Whether a GIF ends within a block. That the trailer alone is missing, as some programs left it out, is no fault."""
    file.seek(0)
    header = file.read(13)  # signature and logical screen
    if len(header) < 13 or not _skipped(file, _palette(header[10])):
        return True
    while True:
        kind = file.read(1)
        if kind in (b"", TRAILER):
            return False
        if kind == EXTENSION:
            whole = _skipped(file, 1)
        elif kind == PICTURE:
            described = file.read(9)
            whole = len(described) == 9 and _skipped(file, _palette(described[8]) + 1)  # and the width of its codes
        else:  # no GIF's; what it is worth is left to the decoder
            return False
        if not (whole and _parts_skipped(file)):
            return True


def _palette(flags: int) -> int:
    """Bytes of the colour table that a block's flags announce."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _skipped(file: BinaryIO, count: int) -> bool:
    """Go on by so many bytes; whether there were so many."""
    return len(file.read(count)) == count


def _parts_skipped(file: BinaryIO) -> bool:
    """Go on behind a block's parts, of which each says its length and the last one is empty; whether all were there."""
    while size := file.read(1):
        if size == b"\0":
            return True
        if not _skipped(file, size[0]):
            return False
    return False

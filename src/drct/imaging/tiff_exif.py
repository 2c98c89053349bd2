"""EXIF in TIFF files, which libvips neither reads nor writes: there it is no block of bytes but directories of the file itself.

TIFF 6.0, section 2 (directories), and EXIF 2.32, section 4.6.3 (the pointers to the Exif and GPS directories).
"""

from __future__ import annotations

import io
import struct
from typing import IO, NamedTuple

EXIF_POINTER, GPS_POINTER, INTEROPERABILITY_POINTER = 0x8769, 0x8825, 0xA005
NEW_SUBFILE_TYPE, DNG_VERSION = 0x00FE, 0xC612
# What a TIFF's main directory says about the photo: description, make, model, resolution, software, date, artist, copyright.
DESCRIPTIVE = (0x010E, 0x010F, 0x0110, 0x011A, 0x011B, 0x0128, 0x0131, 0x0132, 0x013B, 0x8298)
LONGEST = 1 << 20  # bytes of one value; a longer one is damage
_SIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_WORD = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4}  # what byte order applies to


class Value(NamedTuple):
    kind: int
    length: int
    data: bytes  # little-endian


def inspect(file: IO[bytes] | io.FileIO) -> tuple[bool, bytes | None]:
    """What a TIFF file is, beside what libvips reads of it.

    Returns:
        Whether it is a camera's raw file, whose first image is only a preview (DNG, or a first image that calls itself reduced),
        and its EXIF data, beginning with a TIFF header; None when it has no Exif or GPS directory. A BigTIFF gives (False, None).
    """
    main, order = _main_directory(file)
    reduced = main.get(NEW_SUBFILE_TYPE)
    is_raw = DNG_VERSION in main or (reduced is not None and bool(reduced.data[0] & 1))
    return is_raw, _extract(file, main, order)


def _extract(file: IO[bytes] | io.FileIO, main: dict[int, Value], order: str) -> bytes | None:
    parts = {tag: _pointed(file, main, tag, order) for tag in (EXIF_POINTER, GPS_POINTER)}
    parts = {tag: directory for tag, directory in parts.items() if directory}
    if not parts:
        return None
    out = bytearray(b"II*\0\0\0\0\0")
    kept = {tag: value for tag, value in main.items() if tag in DESCRIPTIVE}
    for tag, directory in parts.items():
        kept[tag] = Value(4, 1, struct.pack("<I", _append(out, directory, "<")))
    struct.pack_into("<I", out, 4, _append(out, kept, "<"))
    return bytes(out)


def insert(file: IO[bytes] | io.FileIO, exif: bytes) -> None:
    """Put EXIF data into a classic TIFF file of one page, open for reading and writing: a new main directory goes to its end.

    Raises:
        ValueError: the file is a BigTIFF, or one of the two is damaged.
    """
    source = io.BytesIO(exif)
    main, order = _main_directory(source)
    target, target_order = _main_directory(file)
    if not target:
        raise ValueError("no classic TIFF file")
    end = file.seek(0, io.SEEK_END)
    out = bytearray(end % 2)
    added = {tag: value for tag, value in main.items() if tag in DESCRIPTIVE and tag not in target}
    for tag in (EXIF_POINTER, GPS_POINTER):
        directory = _pointed(source, main, tag, order)
        if directory:
            added[tag] = Value(4, 1, struct.pack("<I", _append(out, directory, target_order, end)))
    start = _append(out, {**target, **added}, target_order, end)
    file.write(out)
    file.seek(4)
    file.write(struct.pack(target_order + "I", start))


def _main_directory(file: IO[bytes] | io.FileIO) -> tuple[dict[int, Value], str]:
    file.seek(0)
    head = file.read(8)
    if len(head) < 8 or head[:4] not in (b"II*\0", b"MM\0*"):
        return {}, "<"
    order = "<" if head[:2] == b"II" else ">"
    return _directory(file, struct.unpack(order + "I", head[4:])[0], order), order


def _pointed(file: IO[bytes] | io.FileIO, main: dict[int, Value], tag: int, order: str) -> dict[int, Value]:
    pointer = main.get(tag)
    if pointer is None or len(pointer.data) != 4:
        return {}
    directory = _directory(file, struct.unpack("<I", pointer.data)[0], order)
    directory.pop(INTEROPERABILITY_POINTER, None)  # points to a place in the old file
    return directory


def _directory(file: IO[bytes] | io.FileIO, start: int, order: str) -> dict[int, Value]:
    """Readable entries of a directory; damaged ones are left out."""
    file.seek(start)
    head = file.read(2)
    if start < 8 or len(head) < 2:
        return {}
    raw = file.read(12 * struct.unpack(order + "H", head)[0])
    values = {}
    for at in range(0, len(raw) - 11, 12):
        tag, kind, length = struct.unpack_from(order + "HHI", raw, at)
        size = _SIZE.get(kind, 0) * length
        if not 0 < size <= LONGEST:
            continue
        if size <= 4:
            data = raw[at + 8 : at + 8 + size]
        else:
            file.seek(struct.unpack_from(order + "I", raw, at + 8)[0])
            data = file.read(size)
        if len(data) == size:
            values[tag] = Value(kind, length, _swapped(data, kind) if order == ">" else data)
    return values


def _append(out: bytearray, directory: dict[int, Value], order: str, base: int = 0) -> int:
    """Append a directory with its values to ``out``, which begins at offset ``base`` of its file; return the directory's offset."""
    entries = []
    for tag, value in sorted(directory.items()):
        data = value.data if order == "<" else _swapped(value.data, value.kind)
        if len(data) > 4:
            field = struct.pack(order + "I", base + len(out))
            out += data + b"\0" * (len(data) % 2)
        else:
            field = data.ljust(4, b"\0")
        entries.append(struct.pack(order + "HHI", tag, value.kind, value.length) + field)
    start = base + len(out)
    out += struct.pack(order + "H", len(entries)) + b"".join(entries) + bytes(4)
    return start


def _swapped(data: bytes, kind: int) -> bytes:
    word = _WORD.get(kind, 1)
    return data if word == 1 else b"".join(data[i : i + word][::-1] for i in range(0, len(data), word))

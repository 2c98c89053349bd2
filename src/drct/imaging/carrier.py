"""Pixels that are made strip by strip, as an image that libvips reads from top to bottom.

libvips takes no rows from Python, but it reads files from anything that can be read. So the rows travel as an uncompressed BigTIFF
that exists nowhere: its directory is made up in advance, and its strips are what has just been computed. Little more than one strip
is in memory, and an encoder works on one strip while the network computes the next.
"""

from __future__ import annotations

import struct
import threading

import numpy as np

from drct.imaging._vips import pyvips

STRIP_BYTES = 1 << 20  # of the TIFF
_CODES = {3: "H", 4: "I", 16: "Q"}  # SHORT, LONG, LONG8


class Carrier:
    """A queue of rows whose other end is a libvips image.

    One thread puts all rows, another one uses :meth:`image`.

    Args:
        height, width, bands, depth: of the image; ``depth`` is a numpy type.
    """

    def __init__(self, height: int, width: int, bands: int, depth: str) -> None:
        self._dtype = np.dtype(depth)
        self._row_bytes = width * bands * self._dtype.itemsize
        self._head = self._header(height, width, bands)
        self._size = len(self._head) + height * self._row_bytes
        # as the reading thread sees it: where it reads, and the strip that it has, beginning at a position of the file
        self._position = 0
        self._strip_at = len(self._head)
        self._strip = memoryview(b"")
        self._mail: memoryview | None = None
        self._closed = False
        self._changed = threading.Condition()

    def _header(self, height: int, width: int, bands: int) -> bytes:
        rows = max(1, min(height, STRIP_BYTES // self._row_bytes))
        strips = -(-height // rows)
        lengths = [rows * self._row_bytes] * (strips - 1) + [(height - rows * (strips - 1)) * self._row_bytes]
        tags: dict[int, tuple[int, list[int]]] = {
            256: (4, [width]),
            257: (4, [height]),
            258: (3, [8 * self._dtype.itemsize] * bands),
            259: (3, [1]),  # no compression
            262: (3, [2 if bands > 2 else 1]),  # RGB, or grey with black as 0
            273: (16, [0] * strips),
            277: (3, [bands]),
            278: (4, [rows]),
            279: (16, lengths),
            339: (3, [3 if self._dtype.kind == "f" else 1] * bands),
        }
        if bands in (2, 4):
            tags[338] = (3, [2])  # alpha, not premultiplied
        base = len(_directory(tags))
        tags[273] = (16, [base + i * rows * self._row_bytes for i in range(strips)])
        return _directory(tags)

    def put(self, rows: np.ndarray) -> bool:
        """Hand over the next rows, ``(h, W, bands)``, and wait until they are taken. False when nobody reads any more."""
        with self._changed:
            if self._closed:
                return False
            self._mail = np.ascontiguousarray(rows, self._dtype).data.cast("B")
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._mail is None or self._closed)
            return self._mail is None  # whoever took the last rows may have finished with them and closed already

    def close(self) -> None:
        """No more rows come, or none are wanted: from either side."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def image(self) -> pyvips.Image:
        """The image; it can be read once, from top to bottom."""
        # kept, because libvips holds no reference to what it calls back
        self._source = source = pyvips.SourceCustom()
        source.on_read(self._read)
        source.on_seek(self._seek)
        image = pyvips.Image.tiffload_source(source, access="sequential", fail_on="error", unlimited=True)
        # a plain copy carries what the made-up file said about itself
        plain = image.copy()
        for name in set(plain.get_fields()) - _CORE:
            plain.remove(name)
        return plain

    def _read(self, size: int) -> bytes:
        if self._position < len(self._head):
            data = self._head[self._position : self._position + size]
        elif self._position >= self._size:
            return b""
        else:
            while self._position >= self._strip_at + len(self._strip):
                self._strip, done = memoryview(b""), len(self._strip)
                self._strip_at += done
                strip = self._next()
                if strip is None:
                    return b""  # which libvips reports as a file that is cut off
                self._strip = strip
            begin = self._position - self._strip_at
            data = bytes(self._strip[begin : begin + size])
        self._position += len(data)
        return data

    def _next(self) -> memoryview | None:
        with self._changed:
            self._changed.wait_for(lambda: self._mail is not None or self._closed)
            strip, self._mail = self._mail, None
            self._changed.notify_all()
            return strip

    def _seek(self, offset: int, whence: int) -> int:
        self._position = offset + (0, self._position, self._size)[whence]
        return self._position


_CORE = {"width", "height", "bands", "format", "coding", "interpretation", "xoffset", "yoffset", "xres", "yres", "filename"}


def _directory(tags: dict[int, tuple[int, list[int]]]) -> bytes:
    """Head of a BigTIFF file: its directory with all values, ending where the pixels begin."""
    values_at = 16 + 8 + 20 * len(tags) + 8
    entries, values = b"", b""
    for tag, (kind, numbers) in sorted(tags.items()):
        data = struct.pack(f"<{len(numbers)}{_CODES[kind]}", *numbers)
        field = data
        if len(data) > 8:
            field = struct.pack("<Q", values_at + len(values))
            values += data + bytes(-len(data) % 8)
        entries += struct.pack("<HHQ", tag, kind, len(numbers)) + field.ljust(8, b"\0")
    return struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(tags)) + entries + bytes(8) + values

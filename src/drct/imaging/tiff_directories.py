"""What libvips leaves out of TIFF files: EXIF data, which there is no block of bytes but directories of the file itself; IPTC
captions, of which it writes a quarter; georeferencing and private tags; which of its pictures are pages; and pages of different
sizes.

TIFF 6.0, section 2 (directories); the BigTIFF design (offsets and counts of 64 bits); EXIF 2.32, section 4.6.3 (the pointers to the
Exif, GPS and interoperability directories); OGC GeoTIFF 1.1, section 7 and annex B (raster space, tie points, transformation).
"""

from __future__ import annotations

import io
import shutil
import struct
from collections.abc import Iterator, Set
from typing import IO, NamedTuple

EXIF_POINTER, GPS_POINTER, INTEROPERABILITY_POINTER = 0x8769, 0x8825, 0xA005
NEW_SUBFILE_TYPE, DNG_VERSION = 0x00FE, 0xC612
REDUCED, MASK = 1, 4  # bits of the subfile type
STRIP_OFFSETS, TILE_OFFSETS = 0x0111, 0x0144
IPTC = 0x83BB
PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, GEO_KEYS = 0x830E, 0x8482, 0x85D8, 0x87AF
# Georeferencing that cannot be scaled: of Intergraph (33918 to 33920), and rational polynomials (50844).
FIXED = frozenset((0x847E, 0x847F, 0x8480, 0xC69C))
GEOREFERENCE = FIXED | {PIXEL_SCALE, TIE_POINTS, TRANSFORMATION, GEO_KEYS, GEO_KEYS + 1, GEO_KEYS + 2}
RASTER_TYPE, PIXEL_IS_POINT = 1025, 2  # key and value by which (0, 0) is the middle of the first pixel and not its corner
# What the main directory says about its own file and not about the photo: how pixels, colours and smaller copies are stored; places
# in the file; what libvips or this module writes by itself.
STRUCTURAL = frozenset(
    (
        *(0x00FE, 0x00FF, 0x0100, 0x0101, 0x0102, 0x0103, 0x0106, 0x0107, 0x0108, 0x0109, 0x010A, 0x0111, 0x0112, 0x0115, 0x0116),
        *(0x012C, 0x8214, 0x8215, 0xC5F2, 0xC5F3),  # colours, Pixar's sides of the whole image, LERC
        *(0x0117, 0x0118, 0x0119, 0x011C, 0x0120, 0x0121, 0x0122, 0x0123, 0x0124, 0x0125, 0x0129, 0x012D, 0x013D, 0x013E, 0x013F),
        *range(0x0140, 0x014B),  # colour map, tiles, fax, SubIFDs
        *(0x014C, 0x014D, 0x014E, 0x0150, *range(0x0152, 0x0160)),  # inks, samples, clip paths
        *range(0x0190, 0x01B6),  # fax profiles
        *range(0x0200, 0x020A),  # JPEG, thumbnails
        *(0x0211, 0x0212, 0x0213, 0x0214, 0x022F, 0x02BC, 0x501B),  # YCbCr, XMP, a thumbnail of Windows
        *range(0x80E3, 0x80E7),  # of Silicon Graphics: matteing, type and depth
        *(0x828D, 0x828E, 0x8290, IPTC, *range(0x835C, 0x8360)),  # raw sensor, Kodak, MetaMorph
        *(0x8568, 0x8649, 0x866C, 0x8769, 0x8773, 0x8825, 0x935C, 0xA005),  # captions, Photoshop, LSM, Exif, ICC, GPS, layers
        *(0xC44F, 0xC660, 0xFE00),  # annotations, layers, Kodak
        *(set(range(0xC612, 0xC7B0)) - FIXED),  # DNG, and among them ImageJ
        *range(0xFF8C, 0xFFB3),  # places in files of Hamamatsu
    )
)
RESOLUTION = (0x011A, 0x011B, 0x0128)
# Description, make, model, resolution, software, date, artist, copyright: what EXIF data hold whatever its length.
DESCRIPTIVE = (0x010E, 0x010F, 0x0110, *RESOLUTION, 0x0131, 0x0132, 0x013B, 0x8298)
SHORT_ENOUGH, ALL_SHORT = 1 << 12, 1 << 14  # bytes of one of the other tags in EXIF data, of which JPEG holds 64 KiB, and of all
UNIT = RESOLUTION[2]
EXTRA_SAMPLES = 0x0152
COMPRESSION, PHOTOMETRIC, SUBSAMPLING = 0x0103, 0x0106, 0x0212
YCBCR, JPEG_COMPRESSIONS = 6, (6, 7)
# kinds of colours that libvips would take for RGB
FOREIGN_COLOURS = {
    YCBCR: "subsampled YCbCr without JPEG",
    9: "ICC Lab",
    10: "ITU Lab",
    32803: "raw sensor data",
    34892: "raw sensor data",
}
DESCRIPTION = 0x010E
LAYOUT = (
    b"ImageJ=",
    b"<?xml",
    b"<OME",
    b'{"shape"',
)  # how descriptions begin that tell where a program's pixels lie, not what they show
LONGEST = 1 << 20  # bytes of one value; a longer one is damage
LARGEST = 1 << 24  # bytes of all values of a directory; hostile ones point to the same long value many times
MOST_PAGES = 65536
# Tags from 0x8000 on that belong to EXIF data, or that cameras and Windows put there; others from there on are private.
_EXIF = ((0x8298, 0x829E), (0x8822, 0x8834), (0x9000, 0xA480), (0xC4A5, 0xC4A6), (0xEA1C, 0xEA1E))
_NO_EXIF_KINDS = (13, 16, 17, 18)  # offsets of directories, and numbers of 64 bits, which exist in BigTIFF only
_SIZE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WORD = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # what byte order applies to

File = IO[bytes] | io.FileIO


class Value(NamedTuple):
    kind: int
    length: int
    data: bytes  # little-endian


Directory = dict[int, Value]


class Layout(NamedTuple):
    """How a file writes its numbers."""

    order: str
    big: bool

    @property
    def number(self) -> str:
        """Code of the number of entries."""
        return self.order + ("Q" if self.big else "H")

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.big else "I")

    @property
    def entry(self) -> str:
        return self.order + ("HHQ" if self.big else "HHI")

    @property
    def inline(self) -> int:
        """Bytes of a value that fit into an entry."""
        return 8 if self.big else 4

    @property
    def first(self) -> int:
        """Where the header keeps the offset of the first directory."""
        return 8 if self.big else 4


CLASSIC = Layout("<", False)


class Inspection(NamedTuple):
    """What a TIFF file is, beside what libvips reads of it.

    Attributes:
        is_raw: a camera's raw file, whose first picture is only a preview (DNG, or a first one that calls itself reduced).
        exif: EXIF data of the page, beginning with a TIFF header; None without an Exif or GPS directory and descriptive tags.
        pages: the pictures that are pages of their own, as libvips counts; smaller copies and masks are not.
        lies: a directory claims values longer than the file, for which the decoder would ask for memory before it finds out.
        iptc: records of IPTC captions of the page.
        resolved: the page has a resolution in pixels per inch or centimetre.
        extra: what its channels beyond the colours are, 1 and 2 alpha, 0 anything else; None where the file does not say.
        ycbcr: it has YCbCr for each pixel, of the whole range, which libvips takes for RGB.
        foreign: what other kind of colours it has, if libvips would take them for RGB.
        tags: georeferencing and private tags of the page, as the directory of a TIFF.
        lost: what of them is left out because it is damaged or too long, as a notice calls it.
    """

    is_raw: bool = False
    exif: bytes | None = None
    pages: tuple[int, ...] = ()
    lies: bool = False
    iptc: bytes | None = None
    resolved: bool = False
    extra: tuple[int, ...] | None = None
    ycbcr: bool = False
    foreign: str | None = None
    tags: bytes | None = None
    lost: str | None = None


def inspect(file: File, page: int = 0) -> Inspection:
    """Look at a file, classic or BigTIFF; what is no TIFF gives nothing."""
    layout = _layout(file)
    if layout is None:
        return Inspection()
    first = _directory(file, _number(file, layout.first, layout.offset), layout)
    pages = []
    found: Directory = {}
    stated: set[int] = set()
    lies = False
    size = file.seek(0, io.SEEK_END)
    for i, at in enumerate(_chain(file, layout)):
        entries = _entries(file, at, layout)
        lies = lies or any(_SIZE.get(kind, 1) * length > size for _, kind, length, _ in entries)
        kinds = [entry for entry in entries if entry[0] == NEW_SUBFILE_TYPE]
        if not _bits(_values(file, kinds, layout), NEW_SUBFILE_TYPE) & (REDUCED | MASK):
            pages.append(i)
            if len(pages) == page + 1:
                found, stated = _directory(file, at, layout), {tag for tag, *_ in entries}
    is_raw = DNG_VERSION in first or bool(_bits(first, NEW_SUBFILE_TYPE) & REDUCED)
    captions = found.get(IPTC)
    iptc = None if captions is None else captions.data
    if captions is not None and layout.order == ">":
        iptc = _swapped(captions.data, captions.kind)  # bytes, whatever numbers they are called
    resolved = all(tag in found for tag in RESOLUTION[:2]) and (UNIT not in found or _bits(found, UNIT) in (2, 3))
    said = found.get(EXTRA_SAMPLES)
    extra = None if said is None or said.kind != 3 else struct.unpack(f"<{said.length}H", said.data)
    colours = _bits(found, PHOTOMETRIC)
    by_decoder = colours == YCBCR and _bits(found, COMPRESSION) in JPEG_COMPRESSIONS  # it makes RGB of them
    ycbcr = colours == YCBCR and not by_decoder and _bits(found, SUBSAMPLING) == 0x1_0001  # 1 across and down; without, it is 2
    foreign = None if by_decoder or ycbcr else FOREIGN_COLOURS.get(colours)
    kept = {tag: value for tag, value in found.items() if tag not in STRUCTURAL and value.kind not in _NO_EXIF_KINDS}
    main, private = _divided(kept)
    lost = {tag for tag in stated - kept.keys() - STRUCTURAL if not _is_exif(tag)}
    if lost & GEOREFERENCE:  # a part of it says nothing
        private = {tag: value for tag, value in private.items() if tag not in GEOREFERENCE}
    exif, tags = _extract(file, found, main, layout), _alone(private)
    named_lost = _named(lost) if lost else None
    return Inspection(is_raw, exif, tuple(pages), lies, iptc, resolved, extra, ycbcr, foreign, tags, named_lost)


def _divided(directory: Directory) -> tuple[Directory, Directory]:
    """What goes into EXIF data, and what goes from TIFF to TIFF only: private tags, and what would leave other data no room."""
    main, private = {}, {}
    room = ALL_SHORT
    for tag, value in directory.items():
        size = 0 if tag in DESCRIPTIVE else len(value.data)
        if _is_exif(tag) and size <= min(SHORT_ENOUGH, room):
            main[tag] = value
            room -= size
        else:
            private[tag] = value
    return main, private


def named(tags: bytes) -> str:
    """What georeferencing and private tags are called in a notice."""
    return _named(_main(tags).keys())


def _named(tags: Set[int]) -> str:
    private = [str(tag) for tag in sorted(tags - GEOREFERENCE)]
    numbers = ", ".join(private[:5]) + (", ..." if len(private) > 5 else "")
    parts = ["georeferencing"] * bool(tags & GEOREFERENCE) + [f"private tags of the TIFF ({numbers})"] * bool(private)
    return " and ".join(parts)


def without_georeference(tags: bytes) -> tuple[bytes | None, bool]:
    """Private tags alone, and whether there was georeferencing."""
    directory = _main(tags)
    private = {tag: value for tag, value in directory.items() if tag not in GEOREFERENCE}
    return _alone(private), len(private) < len(directory)


def enlarged(tags: bytes, factors: tuple[float, float]) -> tuple[bytes | None, bool]:
    """Georeferencing of a picture that became larger by ``factors`` across and down, with all private tags; and whether that was
    possible: else they come without it."""
    directory = _main(tags)
    numbers = {tag: _doubles(directory[tag]) for tag in (PIXEL_SCALE, TIE_POINTS, TRANSFORMATION) if tag in directory}
    lengths = {PIXEL_SCALE: 3, TIE_POINTS: 6, TRANSFORMATION: 16}
    fits = all(
        values and len(values) % lengths[tag] == 0 and (tag == TIE_POINTS or len(values) == lengths[tag])
        for tag, values in numbers.items()
    )
    if not fits or directory.keys() & FIXED:
        return without_georeference(tags)[0], False
    # Corners of pixels are multiplied; where middles are counted, they lie half a pixel from the corners before and after it.
    half = 0.5 if _counts_middles(directory) else 0.0
    for tag, values in numbers.items():
        for axis, factor in enumerate(factors):
            if tag == PIXEL_SCALE:
                values[axis] /= factor
            elif tag == TIE_POINTS:
                values[axis::6] = [(value + half) * factor - half for value in values[axis::6]]
            else:
                for row in range(0, 12, 4):
                    values[row + 3] += values[row + axis] * (half / factor - half)
                    values[row + axis] /= factor
        directory[tag] = Value(12, len(values), struct.pack(f"<{len(values)}d", *values))
    return _alone(directory), True


def _counts_middles(directory: Directory) -> bool:
    keys = directory.get(GEO_KEYS)
    if keys is None or keys.kind != 3:
        return False
    shorts = struct.unpack(f"<{keys.length}H", keys.data)
    entries = zip(*(iter(shorts[4:]),) * 4, strict=False)  # key, tag that holds the value or 0, length, value
    return any((key, place, value) == (RASTER_TYPE, 0, PIXEL_IS_POINT) for key, place, _, value in entries)


def _doubles(value: Value) -> list[float]:
    code = {11: "f", 12: "d"}.get(value.kind)  # GeoTIFF has doubles only, but readers take both
    return list(struct.unpack(f"<{value.length}{code}", value.data)) if code else []


def insert(file: File, exif: bytes | None, iptc: bytes | None = None, tags: bytes | None = None) -> None:
    """Put EXIF data, captions, georeferencing and private tags into a TIFF file of one page, open for reading and writing: a new
    main directory goes to its end.

    Raises:
        ValueError: the file is no TIFF.
    """
    source = io.BytesIO(exif or b"II*\0" + bytes(6))  # without data, an empty directory
    layout, from_layout = _layout(file), _layout(source)
    if layout is None or from_layout is None:
        raise ValueError("no TIFF file")
    start = _number(file, layout.first, layout.offset)
    target = _directory(file, start, layout, longest=1 << 32)
    if not target:
        raise ValueError("no TIFF file")
    following = _following(file, start, layout)
    main = _directory(source, _number(source, from_layout.first, from_layout.offset), from_layout)
    end = file.seek(0, io.SEEK_END)
    out = bytearray(end % 2)
    left = STRUCTURAL | GEOREFERENCE
    added = {tag: value for tag, value in main.items() if tag not in left and value.kind not in _NO_EXIF_KINDS}
    added |= _main(tags) if tags else {}
    added = {tag: value for tag, value in added.items() if tag not in target}
    for tag in (EXIF_POINTER, GPS_POINTER):
        pointer = _copied(source, main, tag, from_layout, out, layout, end)
        if pointer:
            added[tag] = pointer
    if iptc:
        added[IPTC] = Value(7, len(iptc), iptc)
    at = _append(out, {**target, **added}, layout, end, following)
    file.write(out)
    _patch(file, layout.first, layout.offset, at)


def forget_resolution(file: File) -> None:
    """Have the main directory of a file, open for reading and writing, say that its resolution has no unit; libvips always writes
    one."""
    layout = _layout(file)
    if layout is None:
        return
    start = _number(file, layout.first, layout.offset)
    size = struct.calcsize(layout.entry) + layout.inline
    for i, (tag, kind, length, _) in enumerate(_entries(file, start, layout)):
        if (tag, kind, length) == (UNIT, 3, 1):
            _patch(file, start + struct.calcsize(layout.number) + (i + 1) * size - layout.inline, layout.order + "H", 1)


class Pages:
    """A TIFF file that is put together from files of one page each, which may differ in everything but their layout."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._layout: Layout | None = None
        self._link = 0  # where the offset of the next directory belongs

    def add(self, page: File) -> None:
        """Append a file of one page.

        Raises:
            ValueError: it is no TIFF, or of another layout than the first one.
        """
        layout = _layout(page)
        if layout is None or self._layout not in (None, layout):
            raise ValueError("pages of different layouts")
        start = _number(page, layout.first, layout.offset)
        base = self._file.seek(0, io.SEEK_END)
        self._file.write(bytes(-base % 16))
        base += -base % 16
        page.seek(0)
        shutil.copyfileobj(page, self._file, 1 << 20)
        if self._layout is None:
            self._layout = layout
            self._link = _link(page, start, layout)
            return
        directory = _directory(page, start, layout, longest=1 << 32)
        out = bytearray()
        end = self._file.seek(0, io.SEEK_END)
        for tag in (STRIP_OFFSETS, TILE_OFFSETS):
            if tag in directory:
                directory[tag] = _moved(directory[tag], base)
        for tag in (EXIF_POINTER, GPS_POINTER):
            pointer = _copied(page, directory, tag, layout, out, layout, end)
            if pointer:
                directory[tag] = pointer
        at = _append(out, directory, layout, end)
        self._file.write(out)
        _patch(self._file, self._link, layout.offset, at)
        self._link = end + len(out) - struct.calcsize(layout.offset)


def _layout(file: File) -> Layout | None:
    file.seek(0)
    head = file.read(8)
    if len(head) < 8 or head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return None
    return Layout("<" if head[:2] == b"II" else ">", b"+" in head[:4])


def _chain(file: File, layout: Layout) -> Iterator[int]:
    """Offsets of all directories that follow each other; a loop or a broken link ends them."""
    at = _number(file, layout.first, layout.offset)
    seen: set[int] = set()
    while at >= 8 and at not in seen and len(seen) < MOST_PAGES and _number(file, at, layout.number):
        seen.add(at)
        yield at
        at = _following(file, at, layout)


def _is_exif(tag: int) -> bool:
    return tag < 0x8000 or any(first <= tag < last for first, last in _EXIF)


def _extract(file: File, found: Directory, main: Directory, layout: Layout) -> bytes | None:
    """EXIF data of what the directory ``found`` points to, and of the values ``main`` from it."""
    out = bytearray(8)
    kept = dict(main)
    if DESCRIPTION in kept and kept[DESCRIPTION].data.startswith(LAYOUT):
        del kept[DESCRIPTION]
    for tag in (EXIF_POINTER, GPS_POINTER):
        pointer = _copied(file, found, tag, layout, out, CLASSIC)
        if pointer:
            kept[tag] = pointer
    return _alone(kept, out) if kept.keys() - set(RESOLUTION) else None


def _alone(directory: Directory, out: bytearray | None = None) -> bytes | None:
    """A directory as a TIFF of its own, behind what it points to; None of an empty one."""
    if not directory:
        return None
    out = bytearray(8) if out is None else out
    out[:8] = struct.pack("<4sI", b"II*\0", _append(out, directory, CLASSIC))
    return bytes(out)


def _main(data: bytes) -> Directory:
    """What :func:`_alone` wrote."""
    file = io.BytesIO(data)
    return _directory(file, _number(file, CLASSIC.first, CLASSIC.offset), CLASSIC)


def _copied(file: File, main: Directory, tag: int, layout: Layout, out: bytearray, to: Layout, base: int = 0) -> Value | None:
    """Append the directory that ``main`` points to by a tag, with the one for interoperability that it points to, to ``out``, which
    begins at offset ``base`` of its file; return a new pointer, None if there is nothing."""
    directory = _pointed(file, main, tag, layout)
    further = _pointed(file, directory, INTEROPERABILITY_POINTER, layout) if tag == EXIF_POINTER else {}
    copy = {key: value for key, value in directory.items() if key != INTEROPERABILITY_POINTER and value.kind not in _NO_EXIF_KINDS}
    further = {key: value for key, value in further.items() if value.kind not in _NO_EXIF_KINDS}
    if further:
        copy[INTEROPERABILITY_POINTER] = _pointer(_append(out, further, to, base), to)
    return _pointer(_append(out, copy, to, base), to) if copy else None


def _pointed(file: File, main: Directory, tag: int, layout: Layout) -> Directory:
    pointer = main.get(tag)
    if pointer is None or len(pointer.data) not in (4, 8):
        return {}
    return _directory(file, int.from_bytes(pointer.data, "little"), layout)


def _pointer(offset: int, layout: Layout) -> Value:
    # LONG8 and not IFD8, which some readers (Pillow) do not know
    return Value(16, 1, struct.pack("<Q", offset)) if layout.big else Value(4, 1, struct.pack("<I", offset))


def _moved(offsets: Value, base: int) -> Value:
    code = {3: "H", 4: "I", 16: "Q"}[offsets.kind]
    values = [value + base for value in struct.unpack(f"<{offsets.length}{code}", offsets.data)]
    kind, code = (16, "Q") if offsets.kind == 16 else (4, "I")
    return Value(kind, offsets.length, struct.pack(f"<{len(values)}{code}", *values))


def _bits(directory: Directory, tag: int) -> int:
    value = directory.get(tag)
    return 0 if value is None else int.from_bytes(value.data[:4], "little")


def _number(file: File, at: int, code: str) -> int:
    """A number in the file; 0 where the file ends before it, or begins after it."""
    size = struct.calcsize(code)
    if at < 0 or at >= 1 << 63:
        return 0
    file.seek(at)
    data = file.read(size)
    return int(struct.unpack(code, data)[0]) if len(data) == size else 0


def _link(file: File, start: int, layout: Layout) -> int:
    """Where the directory at ``start`` keeps the offset of the next one."""
    entries = _number(file, start, layout.number)
    return start + struct.calcsize(layout.number) + entries * (struct.calcsize(layout.entry) + layout.inline)


def _following(file: File, start: int, layout: Layout) -> int:
    return _number(file, _link(file, start, layout), layout.offset)


def _patch(file: File, at: int, code: str, value: int) -> None:
    file.seek(at)
    file.write(struct.pack(code, value))


def _directory(file: File, start: int, layout: Layout, longest: int = LONGEST) -> Directory:
    """Readable entries of a directory; damaged ones are left out."""
    return _values(file, _entries(file, start, layout), layout, longest)


def _values(file: File, entries: list[tuple[int, int, int, bytes]], layout: Layout, longest: int = LONGEST) -> Directory:
    values = {}
    room = max(longest, LARGEST)
    for tag, kind, length, field in entries:
        bytes_ = _SIZE.get(kind, 0) * length
        if not 0 < bytes_ <= min(longest, room):
            continue
        room -= bytes_
        if bytes_ <= layout.inline:
            data = field[:bytes_]
        else:
            offset = struct.unpack(layout.offset, field)[0]
            if offset >= 1 << 63:
                continue
            file.seek(offset)
            data = file.read(bytes_)
        if len(data) == bytes_:
            values[tag] = Value(kind, length, _swapped(data, kind) if layout.order == ">" else data)
    return values


def _entries(file: File, start: int, layout: Layout) -> list[tuple[int, int, int, bytes]]:
    """Tag, kind, length and the bytes that are the value or its offset, of all entries of a directory."""
    if not 8 <= start < 1 << 63:
        return []
    entries = min(_number(file, start, layout.number), 0xFFFF)
    size = struct.calcsize(layout.entry) + layout.inline
    file.seek(start + struct.calcsize(layout.number))
    raw = file.read(size * entries)
    found = []
    for at in range(0, len(raw) - size + 1, size):
        tag, kind, length = struct.unpack_from(layout.entry, raw, at)
        found.append((tag, kind, length, raw[at + size - layout.inline : at + size]))
    return found


def _append(out: bytearray, directory: Directory, layout: Layout, base: int = 0, following: int = 0) -> int:
    """Append a directory with its values to ``out``, which begins at offset ``base`` of its file; return the directory's offset."""
    entries = []
    for tag, value in sorted(directory.items()):
        data = value.data if layout.order == "<" else _swapped(value.data, value.kind)
        if len(data) > layout.inline:
            field = struct.pack(layout.offset, base + len(out))
            out += data + b"\0" * (len(data) % 2)
        else:
            field = data.ljust(layout.inline, b"\0")
        entries.append(struct.pack(layout.entry, tag, value.kind, value.length) + field)
    start = base + len(out)
    out += struct.pack(layout.number, len(entries)) + b"".join(entries) + struct.pack(layout.offset, following)
    return start


def _swapped(data: bytes, kind: int) -> bytes:
    word = _WORD.get(kind, 1)
    out = bytearray(len(data))
    for i in range(word):
        out[i::word] = data[word - 1 - i :: word]
    return bytes(out)

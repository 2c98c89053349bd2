"""EXIF data and XMP packets: the few tags that would lie after a picture was turned or resized are corrected in place, all else
stays byte for byte.

Corrections in place, and not a parse and a rebuild, because maker notes of cameras hold offsets that no one may move. The
structure is that of TIFF 6.0 (section 2) with the tags of EXIF 2.32 (CIPA DC-008). Of XMP, the tags of EXIF, of panoramas (Google's
Photo Sphere, GPano) and of regions with faces (Metadata Working Group, mwg-rs, and Microsoft, MP) tell of pixels.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

IMAGE_WIDTH, IMAGE_LENGTH, ORIENTATION = 0x0100, 0x0101, 0x0112
X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
THUMBNAIL_OFFSET, THUMBNAIL_LENGTH = 0x0201, 0x0202
EXIF_IFD, PIXEL_X, PIXEL_Y = 0x8769, 0xA002, 0xA003
FOCAL_PLANE_X, FOCAL_PLANE_Y, SUBJECT_AREA, SUBJECT_LOCATION = 0xA20E, 0xA20F, 0x9214, 0xA214
SHORT, LONG, RATIONAL = 3, 4, 5

_REGIONS = (rb"mwg-rs:Regions", rb"MP:RegionInfo")
_PANORAMA_SIDES = {  # names of GPano, and whether they count across
    rb"FullPanoWidthPixels": True,
    rb"FullPanoHeightPixels": False,
    rb"CroppedAreaImageWidthPixels": True,
    rb"CroppedAreaImageHeightPixels": False,
    rb"CroppedAreaLeftPixels": True,
    rb"CroppedAreaTopPixels": False,
    rb"LargestValidInteriorRectLeft": True,
    rb"LargestValidInteriorRectTop": False,
    rb"LargestValidInteriorRectWidth": True,
    rb"LargestValidInteriorRectHeight": False,
}


class Moved(NamedTuple):
    """How the pixels of a picture came to lie elsewhere: first turned, then enlarged.

    Attributes:
        width, height: before.
        turn: the EXIF orientation that was applied.
        factors: across and down, after the turn.
    """

    width: int
    height: int
    turn: int = 1
    factors: tuple[float, float] = (1.0, 1.0)

    @property
    def by_quarter(self) -> bool:
        return self.turn in (5, 6, 7, 8)

    def area(self, values: Sequence[int]) -> list[int]:
        """An area by its middle: a point, a circle (x, y, diameter) or a rectangle (x, y, width, height)."""
        x, y = values[0] + 0.5, values[1] + 0.5
        sides = [float(side) for side in values[2:]]
        width, height = self.width, self.height
        if self.by_quarter:
            x, y, width, height, sides = y, x, height, width, sides[::-1]
        if self.turn in (2, 3, 6, 7):
            x = width - x
        if self.turn in (3, 4, 7, 8):
            y = height - y
        across, down = self.factors
        factors = [math.sqrt(across * down)] if len(sides) == 1 else [across, down]
        middle = [max(0, math.floor(x * across)), max(0, math.floor(y * down))]
        return middle + [round(side * factor) for side, factor in zip(sides, factors, strict=False)]


class Entry(NamedTuple):
    tag: int
    kind: int
    length: int
    at: int  # position of the entry's twelve bytes


class Exif:
    """A mutable view of EXIF bytes that never reads or writes outside them."""

    def __init__(self, data: bytes) -> None:
        if data.startswith(b"Exif\0\0"):
            data = data[6:]
        if data[:4] not in (b"II*\0", b"MM\0*") or len(data) < 14:
            raise ValueError("not EXIF data")
        self.data = bytearray(data)
        self.order = "<" if data[:2] == b"II" else ">"
        self.first = self._read("I", 4)
        if self.first + 6 > len(data):
            raise ValueError("EXIF data without a directory")

    def _read(self, code: str, at: int) -> int:
        size = struct.calcsize(code)
        if at < 0 or at + size > len(self.data):
            return 0
        return int(struct.unpack_from(self.order + code, self.data, at)[0])

    def entries(self, directory: int) -> Iterator[Entry]:
        """Entries of the directory at an offset; a directory that leaves the data ends where the data ends."""
        if not 8 <= directory <= len(self.data) - 6:
            return
        for i in range(self._read("H", directory)):
            at = directory + 2 + 12 * i
            if at + 12 > len(self.data):
                return
            yield Entry(self._read("H", at), self._read("H", at + 2), self._read("I", at + 4), at)

    def following(self) -> tuple[int, int]:
        """Where the offset of the second directory stands, and that offset; 0 without one."""
        at = self.first + 2 + 12 * self._read("H", self.first)
        return at, self._read("I", at)

    def integer(self, entry: Entry) -> int:
        """Value of an entry that holds one SHORT or LONG."""
        return self._read("H" if entry.kind == SHORT else "I", entry.at + 8)

    def rational(self, entry: Entry) -> float:
        """Value of an entry that holds one RATIONAL; 0 of one that is damaged."""
        at = self._read("I", entry.at + 8)
        denominator = self._read("I", at + 4)
        return self._read("I", at) / denominator if entry.kind == RATIONAL and denominator else 0.0

    def set_integer(self, entry: Entry, value: int) -> None:
        if entry.length != 1 or entry.kind not in (SHORT, LONG):
            return
        if entry.kind == SHORT and value > 0xFFFF:
            struct.pack_into(self.order + "H", self.data, entry.at + 2, LONG)
        if entry.kind == SHORT and value <= 0xFFFF:
            struct.pack_into(self.order + "HH", self.data, entry.at + 8, value, 0)
        else:
            struct.pack_into(self.order + "I", self.data, entry.at + 8, value)

    def set_rational(self, entry: Entry, value: float) -> None:
        at = self._read("I", entry.at + 8)
        if entry.kind == RATIONAL and entry.length == 1 and 8 <= at <= len(self.data) - 8:
            denominator = 1 if value >= 0xFFFF else 10000
            struct.pack_into(self.order + "II", self.data, at, min(round(value * denominator), 0xFFFFFFFF), denominator)

    def place(self, entry: Entry) -> tuple[int, str]:
        """Where the SHORTs or LONGs of an entry stand, and the code to unpack them."""
        code = f"{entry.length}{'H' if entry.kind == SHORT else 'I'}"
        return (entry.at + 8 if struct.calcsize("=" + code) <= 4 else self._read("I", entry.at + 8)), self.order + code

    def move_area(self, directory: int, entry: Entry, moved: Moved) -> None:
        """Move the middle and sides of an area; one that grows beyond its type is taken out."""
        if entry.kind not in (SHORT, LONG) or not 2 <= entry.length <= 4:
            return
        at, code = self.place(entry)
        if not 8 <= at <= len(self.data) - struct.calcsize(code):
            return
        values = moved.area(struct.unpack_from(code, self.data, at))
        if max(values) > (0xFFFF if entry.kind == SHORT else 0xFFFFFFFF):
            self.remove(directory, entry.tag)
        else:
            struct.pack_into(code, self.data, at, *values)

    def remove(self, directory: int, tag: int) -> None:
        """Take an entry out of a directory; those behind it and the link to the next directory move up."""
        entries = list(self.entries(directory))
        end = directory + 2 + 12 * len(entries) + 4
        at = next((entry.at for entry in entries if entry.tag == tag), None)
        if at is None or len(entries) != self._read("H", directory) or end > len(self.data):
            return
        self.data[at:end] = self.data[at + 12 : end] + bytes(12)
        struct.pack_into(self.order + "H", self.data, directory, len(entries) - 1)

    def move_focal_plane(self, directory: int, moved: Moved) -> None:
        """Pixels per length on the sensor, which has a number for each direction."""
        found = {entry.tag: entry for entry in self.entries(directory) if entry.tag in (FOCAL_PLANE_X, FOCAL_PLANE_Y)}
        if len(found) == 2:
            sides = [self.rational(found[FOCAL_PLANE_X]), self.rational(found[FOCAL_PLANE_Y])]
            for entry, side, factor in zip(
                (found[FOCAL_PLANE_X], found[FOCAL_PLANE_Y]), sides[::-1] if moved.by_quarter else sides, moved.factors, strict=True
            ):
                if side:
                    self.set_rational(entry, side * factor)

    def drop_thumbnail(self) -> None:
        """Unlink the second directory and erase the small picture that it points to."""
        link, second = self.following()
        if not second or link + 4 > len(self.data):
            return
        found = {e.tag: self.integer(e) for e in self.entries(second)}
        struct.pack_into("4x", self.data, link)
        begin, length = found.get(THUMBNAIL_OFFSET, 0), found.get(THUMBNAIL_LENGTH, 0)
        end = begin + length
        if begin < 8 or length < 1 or end > len(self.data):
            return
        if end >= len(self.data) - 2:  # the usual place; some writers pad to an even length
            del self.data[begin:]
        else:
            self.data[begin:end] = bytes(length)


def orientation(data: bytes) -> int:
    """Orientation 1..8 that EXIF data gives, 1 when it says nothing valid."""
    exif = Exif(data)
    for entry in exif.entries(exif.first):
        if entry.tag == ORIENTATION and 1 <= exif.integer(entry) <= 8:
            return exif.integer(entry)
    return 1


def resolution(data: bytes) -> tuple[float, float] | None:
    """Pixels per millimetre across and down that EXIF data gives; None when it says nothing valid.

    Raises:
        ValueError: when it is no EXIF data.
    """
    exif = Exif(data)
    found = {entry.tag: entry for entry in exif.entries(exif.first)}
    if X_RESOLUTION not in found or Y_RESOLUTION not in found:
        return None
    unit = exif.integer(found[RESOLUTION_UNIT]) if RESOLUTION_UNIT in found else 2
    across, down = exif.rational(found[X_RESOLUTION]), exif.rational(found[Y_RESOLUTION])
    length = {2: 25.4, 3: 10.0}.get(unit)
    return None if length is None or not (across and down) else (across / length, down / length)


def of_resolution(resolution: tuple[float, float]) -> bytes:
    """EXIF data that tells pixels per millimetre across and down and nothing else, for formats with no other place for it."""
    values_at = 8 + 2 + 3 * 12 + 4
    directory = struct.pack("<H", 3)
    for i, tag in enumerate((X_RESOLUTION, Y_RESOLUTION)):
        directory += struct.pack("<HHII", tag, RATIONAL, 1, values_at + 8 * i)
    directory += struct.pack("<HHIHH", RESOLUTION_UNIT, SHORT, 1, 2, 0) + bytes(4)
    exif = Exif(b"II*\0" + struct.pack("<I", 8) + directory + bytes(16))
    for entry, side in zip(list(exif.entries(8)), resolution, strict=False):
        exif.set_rational(entry, side * 25.4)
    return bytes(exif.data)


def with_resolution(data: bytes, resolution: tuple[float, float]) -> bytes:
    """EXIF data that tells pixels per millimetre across and down, though it did not: a new first directory goes to its end, so that
    all else stays where it is.

    Raises:
        ValueError: when it is no EXIF data.
    """
    exif, added = Exif(data), Exif(of_resolution(resolution))
    order = exif.order
    entries = {e.tag: bytes(exif.data[e.at : e.at + 12]) for e in exif.entries(exif.first)}
    following = exif.following()[1]
    exif.data += bytes(len(exif.data) % 2)
    first = len(exif.data)
    values_at = first + 2 + 12 * len(entries.keys() | {X_RESOLUTION, Y_RESOLUTION, RESOLUTION_UNIT}) + 4
    values = b""
    for entry in added.entries(added.first):
        if entry.tag == RESOLUTION_UNIT:
            entries[entry.tag] = struct.pack(order + "HHIHH", entry.tag, SHORT, 1, 2, 0)
        else:
            entries[entry.tag] = struct.pack(order + "HHII", entry.tag, RATIONAL, 1, values_at + len(values))
            at = added.integer(entry)
            values += struct.pack(order + "II", *struct.unpack_from("<II", added.data, at))
    exif.data += struct.pack(order + "H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries))
    exif.data += struct.pack(order + "I", following) + values
    struct.pack_into(order + "I", exif.data, 4, first)
    return bytes(exif.data)


def corrected(
    data: bytes,
    width: int | None = None,
    height: int | None = None,
    resolution: tuple[float, float] | None = None,
    moved: Moved | None = None,
) -> bytes:
    """EXIF data that tells the truth about pixels that stand upright.

    Args:
        data: with or without the ``Exif`` prefix.
        width, height: new values for the dimension tags that are there.
        resolution: pixels per millimetre, new value for the resolution tags that are there.
        moved: by what positions and lengths in pixels change.

    Returns:
        The data without prefix, orientation 1; with ``width`` and ``height`` also without a thumbnail, which shows the old picture.

    Raises:
        ValueError: when it is no EXIF data.
    """
    exif = Exif(data)
    if width is not None and height is not None:
        exif.drop_thumbnail()
    integers = {ORIENTATION: 1, RESOLUTION_UNIT: 2 if resolution else None, IMAGE_WIDTH: width, IMAGE_LENGTH: height}
    integers |= {PIXEL_X: width, PIXEL_Y: height}
    rationals = {X_RESOLUTION: resolution[0] * 25.4, Y_RESOLUTION: resolution[1] * 25.4} if resolution else {}
    pointer = [exif.integer(e) for e in exif.entries(exif.first) if e.tag == EXIF_IFD][:1]
    for directory in dict.fromkeys([exif.first, *pointer]):  # each once: what moves must not move twice
        for entry in list(exif.entries(directory)):
            value = integers.get(entry.tag)
            if value is not None:
                exif.set_integer(entry, value)
            elif entry.tag in rationals:
                exif.set_rational(entry, rationals[entry.tag])
        if moved is not None:
            exif.move_focal_plane(directory, moved)
            for tag in (SUBJECT_AREA, SUBJECT_LOCATION):
                area = next((e for e in exif.entries(directory) if e.tag == tag), None)
                if area is not None:
                    exif.move_area(directory, area, moved)
    return bytes(exif.data)


def corrected_xmp(
    data: bytes,
    width: int | None = None,
    height: int | None = None,
    resolution: tuple[float, float] | None = None,
    moved: Moved | None = None,
) -> bytes:
    """The same corrections in an XMP packet, which repeats some EXIF tags as attributes or elements of its XML."""
    values: dict[bytes, int | str | None] = {b"tiff:Orientation": 1, b"tiff:ImageWidth": width, b"exif:PixelXDimension": width}
    values |= {b"tiff:ImageLength": height, b"exif:PixelYDimension": height}
    if resolution is not None:
        across, down = (f"{round(side * 25.4 * 10000)}/10000" for side in resolution)
        values |= {b"tiff:XResolution": across, b"tiff:YResolution": down, b"tiff:ResolutionUnit": 2}
    for name, value in values.items():
        if value is not None:
            data = re.sub(rb"(\b" + name + rb"\s*(?:=\s*[\"']|>)\s*)\d+(?:/\d+)?", rb"\g<1>" + str(value).encode(), data)
    return data if moved is None else _moved_xmp(data, moved)


def _moved_xmp(data: bytes, moved: Moved) -> bytes:
    across, down = moved.factors

    def multiplied(name: bytes, factor: float, packet: bytes) -> bytes:
        value = rb"(\b" + name + rb"\s*(?:=\s*[\"']|>)\s*)(\d{1,9})(?!\d)"
        return re.sub(value, lambda match: match[1] + b"%d" % round(int(match[2]) * factor), packet)

    for name, is_across in _PANORAMA_SIDES.items():
        data = multiplied(rb"GPano:" + name, across if is_across else down, data)
    data = _elements(
        data,
        rb"mwg-rs:AppliedToDimensions",
        lambda element: multiplied(rb"stDim:h", down, multiplied(rb"stDim:w", across, element)),
        end=rb"/>|</mwg-rs:AppliedToDimensions\s*>",
    )
    if moved.by_quarter:
        data = re.sub(
            rb"(\bexif:FocalPlane)([XY])(?=Resolution\b)", lambda match: match[1] + (b"Y" if match[2] == b"X" else b"X"), data
        )

    def resolved(match: re.Match[bytes]) -> bytes:
        factor, below = (across if match[2] == b"X" else down), int(match[4] or 1)
        return match[1] + (b"%d/10000" % round(int(match[3]) * factor / below * 10000) if below else match[0][len(match[1]) :])

    value = rb"(\bexif:FocalPlane([XY])Resolution\s*(?:=\s*[\"']|>)\s*)(\d{1,10})(?:/(\d{1,10}))?(?![\d./])"
    data = re.sub(value, resolved, data)

    def area(element: bytes) -> bytes:
        values = [int(value) for value in re.findall(rb">\s*(\d{1,9})\s*</rdf:li>", element)]
        if not 2 <= len(values) <= 4:
            return element
        new = iter(moved.area(values))
        return re.sub(rb"(>\s*)\d{1,9}(?=\s*</rdf:li>)", lambda number: number[1] + b"%d" % next(new), element)

    return _elements(_elements(data, rb"exif:SubjectArea", area), rb"exif:SubjectLocation", area)


def _elements(data: bytes, name: bytes, edit: Callable[[bytes], bytes], end: bytes | None = None) -> bytes:
    """A packet whose elements of a name are edited. One regular expression for begin and end would take time that grows with the
    square of the length where no end comes."""
    begins, ends = re.compile(rb"<" + name + rb"\b"), re.compile(end or rb"</" + name + rb"\s*>")
    parts, at = [], 0
    while (first := begins.search(data, at)) and (last := ends.search(data, first.end())):
        parts += [data[at : first.start()], edit(data[first.start() : last.end()])]
        at = last.end()
    return b"".join(parts) + data[at:]


def without_regions(data: bytes) -> tuple[bytes, list[str]]:
    """An XMP packet without what tells how a panorama lies on its sphere and where faces are, which holds for the picture as it was
    stored only; and notices of what that was."""
    notices = []
    panorama = rb"""\sGPano:\w+\s*=\s*(?:"[^"]*"|'[^']*')|<GPano:(\w+)\b[^<>]*(?:/>|(?<!/)>[^<]*</GPano:\1>)"""
    rest = re.sub(panorama, b"", data)
    if rest != data:
        notices.append("XMP data of the panorama left out: the picture is turned")
    data = rest
    for name in _REGIONS:
        data = _elements(data, name, lambda element: b"")
    if data != rest:
        notices.append("regions with faces left out: the picture is turned")
    return data, notices

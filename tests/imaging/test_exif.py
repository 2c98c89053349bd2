"""Corrections of EXIF data and XMP packets."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import exif_with, smooth
from PIL import Image

from drct.imaging import Picture, exif, read, tiff_directories, write


def big_endian() -> bytes:
    """Orientation 6 and ImageWidth 70 as SHORT, PixelXDimension 80 as LONG."""
    main = struct.pack(">H", 3) + struct.pack(">HHIHH", 0x0100, 3, 1, 70, 0) + struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    main += struct.pack(">HHII", 0x8769, 4, 1, 8 + 2 + 36 + 4) + bytes(4)
    return b"MM\0*\0\0\0\x08" + main + struct.pack(">H", 1) + struct.pack(">HHII", 0xA002, 4, 1, 80) + bytes(4)


def test_orientation_of_both_byte_orders() -> None:
    assert exif.orientation(exif_with(orientation=6)) == 6
    assert exif.orientation(big_endian()) == 6
    assert exif.orientation(b"Exif\0\0" + big_endian()) == 6
    assert exif.orientation(exif.corrected(big_endian())) == 1
    assert exif.orientation(exif_with(orientation=99)) == 1


def with_resolution(unit: int | None, across: float = 300, down: float = 150) -> bytes:
    tags = Image.Exif()
    tags[0x011A], tags[0x011B] = across, down
    if unit is not None:
        tags[0x0128] = unit
    return tags.tobytes().removeprefix(b"Exif\0\0")


def test_resolutions_in_inches_and_centimetres() -> None:
    inches = pytest.approx((300 / 25.4, 150 / 25.4))
    assert exif.resolution(with_resolution(2)) == inches
    assert exif.resolution(with_resolution(None)) == inches
    assert exif.resolution(with_resolution(3)) == pytest.approx((30, 15))
    assert exif.resolution(with_resolution(1)) is None  # of no known length
    assert exif.resolution(with_resolution(2, across=0)) is None
    assert exif.resolution(big_endian()) is None
    assert exif.resolution(with_resolution(2)[:-20]) is None  # points beyond the data


def test_a_resolution_alone() -> None:
    data = exif.of_resolution((300 / 25.4, 150 / 25.4))
    assert exif.resolution(data) == pytest.approx((300 / 25.4, 150 / 25.4), rel=1e-5)
    tags = Image.Exif()
    tags.load(b"Exif\0\0" + data)
    assert dict(tags) == {0x011A: 300, 0x011B: 150, 0x0128: 2}


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_resolution_beside_other_tags(order: str) -> None:
    tags = Image.Exif()
    tags.endian = order
    tags[0x010F], tags[0x0112], tags[0x9003] = "Maker and more", 1, "2026:12:01 10:00:00"
    tags.get_ifd(0x8825)[1] = "N"
    data = tags.tobytes()[6:]
    assert exif.resolution(data) is None
    told = exif.with_resolution(data, (11.811, 5.9055))
    assert exif.resolution(told) == pytest.approx((11.811, 5.9055), rel=1e-4)
    assert told[8 : len(data)] == data[8:]  # offsets in it stay true
    again = Image.Exif()
    again.load(told)
    assert (again[0x010F], again[0x9003], again.get_ifd(0x8825)[1]) == ("Maker and more", "2026:12:01 10:00:00", "N")
    assert again[0x0128] == 2
    assert exif.resolution(exif.with_resolution(told, (1.0, 1.0))) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("suffix", ["webp", "avif", "png", "jpg", "tif"])
def test_resolutions_stay_where_exif_tells_none(tmp_path: Path, suffix: str) -> None:
    tags = Image.Exif()
    tags[0x010F] = "Maker"
    picture = Picture(smooth(16, 24, 3), exif=tags.tobytes()[6:], resolution=(11.811, 11.811))
    assert write(tmp_path / f"a.{suffix}", picture) == []
    assert read(tmp_path / f"a.{suffix}").resolution == pytest.approx((11.811, 11.811), rel=1e-3)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert image.getexif()[0x010F] == "Maker"


def test_of_a_file_that_lies_on_its_side(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x0112], tags[0x011A], tags[0x011B], tags[0x0128] = 6, 300.0, 150.0, 2
    Image.new("RGB", (40, 30)).save(tmp_path / "a.webp", exif=tags)
    assert read(tmp_path / "a.webp").resolution == pytest.approx((150 / 25.4, 300 / 25.4))


def test_only_the_named_bytes_change() -> None:
    before, after = big_endian(), exif.corrected(big_endian(), 280, 320)
    assert len(before) == len(after)
    assert struct.unpack_from(">HH", after, 18) == (280, 0)
    assert struct.unpack_from(">H", after, 30) == (1,)
    assert struct.unpack_from(">I", after, len(after) - 8) == (280,)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 5


def test_sides_beyond_16_bits_become_longs() -> None:
    loaded = Image.Exif()
    loaded.load(exif.corrected(big_endian(), 70000, 80000))
    assert loaded[0x0100] == 70000
    assert loaded.get_ifd(0x8769)[0xA002] == 70000


def test_corrections_are_idempotent() -> None:
    once = exif.corrected(exif_with(orientation=8), 50, 60, (3.0, 4.0))
    assert exif.corrected(once, 50, 60, (3.0, 4.0)) == once


def test_resolutions_of_both_directions() -> None:
    loaded = Image.Exif()
    loaded.load(exif.corrected(exif_with(), 40, 30, (10.0, 20.0)))
    assert (loaded[0x011A], loaded[0x011B], loaded[0x0128]) == (254, 508, 2)


@pytest.mark.parametrize("data", [b"", b"Exif\0\0", b"II*\0", b"II*\0\xff\xff\xff\xff" + bytes(20), b"JPEG" + bytes(30)])
def test_what_is_no_exif(data: bytes) -> None:
    with pytest.raises(ValueError):
        exif.corrected(data)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_exif_never_breaks_anything(data: st.DataObject) -> None:
    blob = bytearray(data.draw(st.sampled_from([exif_with(), big_endian()])))
    for _ in range(data.draw(st.integers(1, 12))):
        blob[data.draw(st.integers(8, len(blob) - 1))] = data.draw(st.integers(0, 255))
    blob = blob[: data.draw(st.integers(14, len(blob)))]
    try:
        result = exif.corrected(bytes(blob), 10, 10, (1.0, 1.0))
    except ValueError:
        return
    assert len(result) <= len(blob)
    tiff_directories.inspect(io.BytesIO(blob))


def test_tiff_directories_there_and_back() -> None:
    for blob in (exif_with(), big_endian()):
        buffer = io.BytesIO()
        Image.new("L", (9, 9)).save(buffer, "TIFF")
        tiff_directories.insert(buffer, blob)
        raw, found, pages, *_ = tiff_directories.inspect(buffer)
        assert not raw
        assert pages == (0,)
        assert found is not None
        mine, other = Image.Exif(), Image.Exif()
        mine.load(found)
        other.load(blob)
        assert dict(mine.get_ifd(0x8769)) == dict(other.get_ifd(0x8769))
        assert mine.get(0x010F) == other.get(0x010F)
        with Image.open(buffer) as image:
            assert dict(image.getexif().get_ifd(0x8769)) == dict(other.get_ifd(0x8769))
            image.load()


def test_what_is_no_tiff_takes_no_exif() -> None:
    with pytest.raises(ValueError):
        tiff_directories.insert(io.BytesIO(b"II+\0" + bytes(30)), exif_with())


def test_xmp() -> None:
    packet = b"<a tiff:Orientation='6' exif:PixelXDimension = \"123\"><tiff:ImageLength>45</tiff:ImageLength><b>6</b></a>"
    assert exif.corrected_xmp(packet) == packet.replace(b"'6'", b"'1'")
    wanted = b"<a tiff:Orientation='1' exif:PixelXDimension = \"640\"><tiff:ImageLength>480</tiff:ImageLength><b>6</b></a>"
    assert exif.corrected_xmp(packet, 640, 480) == wanted

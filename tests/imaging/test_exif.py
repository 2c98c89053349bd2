"""Corrections of EXIF data and XMP packets."""

from __future__ import annotations

import dataclasses
import io
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import exif_with, smooth
from PIL import Image, TiffImagePlugin
from PIL.TiffImagePlugin import IFDRational

from drct.imaging import Picture, exif, read, tiff_directories, write, write_pages


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
    blob = bytearray(data.draw(st.sampled_from([exif_with(), big_endian(), pixel_tags((10, 20, 6, 4))])))
    for _ in range(data.draw(st.integers(1, 12))):
        blob[data.draw(st.integers(8, len(blob) - 1))] = data.draw(st.integers(0, 255))
    blob = blob[: data.draw(st.integers(14, len(blob)))]
    try:
        result = exif.corrected(bytes(blob), 10, 10, (1.0, 1.0), exif.Moved(40, 30, 6, (4.0, 3.0)))
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


# ---- what counts pixels


def pixel_tags(area: tuple[int, ...], order: str = "<") -> bytes:
    tags = Image.Exif()
    tags.endian = order
    details = tags.get_ifd(0x8769)
    details[0x9214], details[0xA214], details[0xA20E], details[0xA20F] = area, (10, 20), IFDRational(400), IFDRational(300)
    return tags.tobytes().removeprefix(b"Exif\0\0")


def told(data: bytes) -> dict[int, object]:
    tags = Image.Exif()
    tags.load(data)
    return {tag: value for tag, value in tags.get_ifd(0x8769).items() if tag in (0x9214, 0xA214, 0xA20E, 0xA20F)}


@pytest.mark.parametrize("order", ["<", ">"])
def test_positions_grow_with_the_picture(order: str) -> None:
    moved = exif.Moved(40, 30, factors=(4.0, 3.0))
    found = told(exif.corrected(pixel_tags((10, 20, 6, 4), order), 160, 90, moved=moved))
    assert found == {0x9214: (42, 61, 24, 12), 0xA214: (42, 61), 0xA20E: 1600, 0xA20F: 900}
    data = pixel_tags((10, 20, 8), order)
    assert told(exif.corrected(data, moved=exif.Moved(40, 30, factors=(4.0, 4.0))))[0x9214] == (42, 82, 32)
    beyond = told(exif.corrected(data, moved=exif.Moved(40, 30, factors=(1e4, 1e4))))
    assert beyond.keys() == {0xA20E, 0xA20F}  # not what 16 bits do not hold


@pytest.mark.parametrize("turn", range(1, 9))
def test_positions_turn_with_the_picture(tmp_path: Path, turn: int) -> None:
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[20, 10] = 255
    tags = Image.Exif()
    tags.load(pixel_tags((10, 20, 6, 4)))
    tags[0x0112] = turn
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=tags)
    picture = read(tmp_path / "a.png")
    assert picture.exif is not None
    found = told(picture.exif)
    y, x = (int(side) for side in np.unravel_index(picture.pixels[:, :, 0].argmax(), picture.pixels.shape[:2]))
    quarter = turn > 4
    assert found[0xA214] == (x, y)
    assert found[0x9214] == (x, y, *((4, 6) if quarter else (6, 4)))
    assert (found[0xA20E], found[0xA20F]) == ((300, 400) if quarter else (400, 300))


PACKET = (
    b'<x:xmpmeta><rdf:RDF><rdf:Description GPano:FullPanoWidthPixels="4000" GPano:ProjectionType="equirectangular"'
    b' exif:FocalPlaneXResolution="400/1" exif:FocalPlaneYResolution="600/2">'
    b"<GPano:CroppedAreaTopPixels>20</GPano:CroppedAreaTopPixels>"
    b"<mwg-rs:Regions rdf:parseType='Resource'><mwg-rs:AppliedToDimensions stDim:w='40' stDim:h='30' stDim:unit='pixel'/>"
    b"<rdf:li mwg-rs:Name='A'><mwg-rs:Area stArea:x='0.5' stArea:w='0.1'/></rdf:li></mwg-rs:Regions>"
    b"<exif:SubjectArea><rdf:Seq><rdf:li>10</rdf:li><rdf:li>20</rdf:li></rdf:Seq></exif:SubjectArea>"
    b"</rdf:Description></rdf:RDF></x:xmpmeta>"
)


def test_what_counts_pixels_in_xmp_grows_with_the_picture() -> None:
    wanted = PACKET
    for old, new in (
        (b"4000", b"16000"),
        (b">20</GPano", b">60</GPano"),
        (b"400/1", b"16000000/10000"),
        (b"600/2", b"9000000/10000"),
        (b"Dim:w='40' stDim:h='30'", b"Dim:w='160' stDim:h='90'"),
        (b">10</rdf", b">42</rdf"),
        (b">20</rdf", b">61</rdf"),
    ):
        wanted = wanted.replace(old, new)
    assert exif.corrected_xmp(PACKET, moved=exif.Moved(40, 30, factors=(4.0, 3.0))) == wanted


@pytest.mark.parametrize("turn", [1, 6])
def test_panoramas_and_faces_of_turned_pictures_are_left_out(tmp_path: Path, turn: int) -> None:
    tags = Image.Exif()
    tags[0x0112] = turn
    Image.fromarray(smooth(30, 40, 3)).save(tmp_path / "a.jpg", exif=tags, xmp=PACKET)
    picture = read(tmp_path / "a.jpg")
    assert picture.xmp is not None
    lost = ["XMP data of the panorama left out: the picture is turned", "regions with faces left out: the picture is turned"]
    assert picture.notices == (lost if turn == 6 else [])
    assert (b"GPano" in picture.xmp, b"mwg-rs" in picture.xmp) == ((False, False) if turn == 6 else (True, True))
    assert (b'exif:FocalPlaneYResolution="4000000/10000"' in picture.xmp) == (turn == 6)
    large = dataclasses.replace(picture, pixels=picture.pixels.repeat(2, 0).repeat(2, 1))
    write(tmp_path / "b.jpg", large)
    again = read(tmp_path / "b.jpg").xmp
    assert again is not None
    assert (b'"8000"' in again, b"stDim:w='80'" in again) == ((False, False) if turn == 6 else (True, True))


# ---- tags of TIFF files


def geo_tiff(path: Path, point: bool, order: str = "<", **more: object) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II" if order == "<" else b"MM")
    for tag, kind, value in (
        (0x830E, 12, (10.0, 20.0, 0.0)),
        (0x8482, 12, (2.0, 3.0, 0.0, 500000.0, 5300000.0, 0.0) * int(str(more.get("points", 1)))),
        (0x85D8, 12, (10.0, 1.0, 0.0, 100.0, 2.0, -20.0, 0.0, 200.0, *(0.0,) * 7, 1.0)),
        (0x87AF, 3, (1, 1, 0, 2, 1024, 0, 1, 1, 1025, 0, 1, 2 if point else 1)),
        (0x87B0, 12, (0.5,)),
        (0x87B1, 2, "WGS 84|"),
        (0xA480, 2, "<GDALMetadata/>"),
        (0xA481, 2, "-9999"),
    ):
        tags[tag], tags.tagtype[tag] = value, kind
    if "turn" in more:
        tags[0x0112] = more["turn"]
    if more.get("rational"):
        tags[0xC69C], tags.tagtype[0xC69C] = (1.0,) * 92, 12
    with Image.open(path) if path.exists() else Image.fromarray(smooth(30, 40, 3)) as image:
        image.save(path, tiffinfo=tags)


def place_of(tags: dict[int, tuple[float, ...]], corner: tuple[float, float], point: bool) -> np.ndarray:
    """Where a corner of a pixel lies in the world: by tie point and scale, and by the transformation."""
    column, row = (side - 0.5 * point for side in corner)
    tie, scale, matrix = tags[0x8482], tags[0x830E], np.reshape(tags[0x85D8], (4, 4))
    by_tie = tie[3] + (column - tie[0]) * scale[0], tie[4] - (row - tie[1]) * scale[1]
    return np.array([*by_tie, *(matrix @ [column, row, 0, 1])[:2]])


@pytest.mark.parametrize("point", [False, True])
@pytest.mark.parametrize("pyramid", [False, True])
def test_a_map_lies_where_it_lay(tmp_path: Path, point: bool, pyramid: bool) -> None:
    geo_tiff(tmp_path / "a.tif", point)
    picture = read(tmp_path / "a.tif")
    large = dataclasses.replace(picture, pixels=np.zeros((90, 160, 3), np.uint8))
    assert write(tmp_path / "b.tif", large, pyramid=pyramid) == []
    with Image.open(tmp_path / "a.tif") as before, Image.open(tmp_path / "b.tif") as after:
        old, new = dict(before.tag_v2), dict(after.tag_v2)
    for tag in (0x87AF, 0x87B0, 0x87B1, 0xA480, 0xA481):
        assert new[tag] == old[tag]
    for x, y in ((0, 0), (40, 30), (7, 11)):
        np.testing.assert_allclose(place_of(new, (4 * x, 3 * y), point), place_of(old, (x, y), point), rtol=1e-12)
    for name, options in (("c.jpg", {}), ("c.tif", {"strip": True})):
        lost = "georeferencing and private tags of the TIFF (42112, 42113) left out: JPEG does not hold them"
        assert write(tmp_path / name, large, **options) == ([] if options else [lost])
        assert b"GDAL" not in (tmp_path / name).read_bytes()


def test_maps_that_do_not_grow(tmp_path: Path) -> None:
    geo_tiff(tmp_path / "a.tif", False, turn=6)
    picture = read(tmp_path / "a.tif")
    assert picture.notices == ["georeferencing left out: the picture is turned"]
    write(tmp_path / "b.tif", picture)
    geo_tiff(tmp_path / "c.tif", False, rational=True)
    picture = read(tmp_path / "c.tif")
    assert write(tmp_path / "d.tif", picture) == []  # of the same size
    larger = dataclasses.replace(picture, pixels=np.zeros((60, 80, 3), np.uint8))
    notice = "georeferencing left out: it is damaged, or of a kind that does not grow with the picture"
    assert write(tmp_path / "e.tif", larger) == [notice]
    for name, kept in (("b.tif", False), ("d.tif", True), ("e.tif", False)):
        with Image.open(tmp_path / name) as image:
            assert (0x8482 in image.tag_v2, 0xC69C in image.tag_v2) == (kept, kept and name == "d.tif")
            assert image.tag_v2[0xA481] == "-9999"


@pytest.mark.parametrize(
    "filling", [b" ", b"<GPano:a ", b"<mwg-rs:Regions ", b"<exif:SubjectArea ", b"<mwg-rs:AppliedToDimensions "]
)
def test_long_packets_take_no_time_that_grows_with_their_square(filling: bytes) -> None:
    """By the square, this one would take minutes."""
    packet = b"<x:xmpmeta>" + filling * ((1 << 20) // len(filling)) + b"</x:xmpmeta>"
    assert exif.without_regions(packet) == (packet, [])
    assert exif.corrected_xmp(packet, moved=exif.Moved(4, 4, 6, (2.0, 2.0))) == packet


def test_a_pointer_back_to_the_main_directory_moves_nothing_twice() -> None:
    area = struct.pack("<HHI2H", exif.SUBJECT_LOCATION, 3, 2, 10, 10)
    back = struct.pack("<HHII", exif.EXIF_IFD, 4, 1, 8)
    data = b"II*\0" + struct.pack("<IH", 8, 2) + back + area + bytes(4)
    moved = exif.corrected(data, moved=exif.Moved(20, 20, factors=(4.0, 4.0)))
    assert struct.unpack_from("<2H", moved, 30) == (42, 42)


def test_a_long_tag_takes_no_other_along(tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[0x010F], tags[0x7000] = "A maker", "x" * 100_000
    Image.fromarray(smooth(9, 9, 3)).save(tmp_path / "a.tif", tiffinfo=tags)
    picture = read(tmp_path / "a.tif")
    assert write(tmp_path / "a.jpg", picture) == ["private tags of the TIFF (28672) left out: JPEG does not hold them"]
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.getexif()[0x010F] == "A maker"
    write(tmp_path / "b.tif", picture)
    with Image.open(tmp_path / "b.tif") as image:
        assert image.tag_v2[0x7000] == "x" * 100_000


def test_georeferencing_of_which_a_part_cannot_be_read_is_left_out_whole(tmp_path: Path) -> None:
    geo_tiff(tmp_path / "a.tif", False, points=30_000)
    picture = read(tmp_path / "a.tif")
    assert picture.notices == ["georeferencing left out: damaged or too long"]
    write(tmp_path / "b.tif", picture)
    with Image.open(tmp_path / "b.tif") as image:
        assert not {0x830E, 0x8482, 0x87AF} & set(image.tag_v2)


@pytest.mark.parametrize("order", ["<", ">"])
def test_all_that_is_said_of_a_photo_goes_into_tiff_and_back(tmp_path: Path, order: str) -> None:
    tags = Image.Exif()
    tags.endian = order
    said = {0x010D: "A document", 0x013C: "A host", 0x4746: 4, 0x4749: 75, 0x9C9B: "A title\0".encode("utf-16le")}
    for tag, value in said.items():
        tags[tag] = value
    tags[0x0111], tags[0x0117] = 8, 1 << 20  # strips that are not of the new file
    details = tags.get_ifd(0x8769)
    details[0x829A] = 0.005
    details[0xA005] = {1: "R03", 2: b"0100"}
    picture = Picture(smooth(9, 9, 3), exif=tags.tobytes().removeprefix(b"Exif\0\0"))
    assert write(tmp_path / "a.tif", picture) == []
    write(tmp_path / "b.tif", read(tmp_path / "a.tif"), pyramid=True)  # a BigTIFF
    write_pages(tmp_path / "c.tif", dataclasses.replace(picture.info, frames=2), [picture, read(tmp_path / "b.tif")])
    for name, page in (("a.tif", 0), ("b.tif", 0), ("c.tif", 0), ("c.tif", 1)):
        found = read(tmp_path / name, page=page)
        np.testing.assert_array_equal(found.pixels, picture.pixels)
        write(tmp_path / "d.jpg", found)
        for path in (tmp_path / name, tmp_path / "d.jpg"):
            with Image.open(path) as image:
                if path.suffix == ".tif":
                    image.seek(page)
                loaded = image.getexif()
                assert {tag: loaded.get(tag) for tag in said} == said
                assert loaded.get_ifd(0xA005)[1] == "R03"

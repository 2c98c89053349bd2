"""Writing: what goes in comes out of every format that can hold it, as the same bytes every time, whole or not at all."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pictures import PEAK, exif_with, smooth
from PIL import Image, IptcImagePlugin, TiffImagePlugin

import drct.imaging.replacing as replacing
from drct.errors import Error, ImageError, OptionError
from drct.imaging import (
    FORMATS,
    Picture,
    part_path,
    png_chunks,
    read,
    read_info,
    remove_stale_parts,
    replacing_text,
    to_depth,
    write,
    write_strips,
)
from drct.imaging._vips import has_operation

SUFFIXES = {"png": "png", "jpeg": "jpg", "webp": "webp", "tiff": "tif", "avif": "avif"}
if has_operation("jxlsave_target"):  # the wheel of libvips has no JPEG XL
    SUFFIXES["jxl"] = "jxl"
CASES = list(itertools.product(SUFFIXES, ["uint8", "uint16", "float32"], [False, True], [False, True]))


def picture_of(dtype: str, grey: bool, alpha: bool) -> Picture:
    pixels = smooth(30, 40, 1 if grey else 3, dtype)
    return Picture(pixels, smooth(30, 40, 1, dtype, seed=5)[:, :, 0] if alpha else None)


@pytest.mark.parametrize(("name", "dtype", "grey", "alpha"), CASES)
def test_every_format_depth_and_kind(tmp_path: Path, name: str, dtype: str, grey: bool, alpha: bool) -> None:
    picture = picture_of(dtype, grey, alpha)
    path = tmp_path / f"a.{SUFFIXES[name]}"
    notices = write(path, picture, **({"lossless": True} if name in ("webp", "avif", "jxl") else {"quality": 100}))
    again = read(path)
    assert again.source_format == name

    kept = dtype in FORMATS[name].depths
    depth = dtype if kept else FORMATS[name].depths[-1]
    assert again.pixels.dtype == depth
    assert any("rounded" in n for n in notices) == (not kept or (name, depth) == ("avif", "uint16"))
    assert (again.alpha is not None) == (alpha and name != "jpeg")
    assert any("laid on white" in n for n in notices) == (alpha and name == "jpeg")

    # WebP and AVIF have no grey: the three channels are equal
    assert again.is_grey == (grey and name not in ("webp", "avif"))
    wanted = picture.pixels
    if alpha and name == "jpeg":
        opacity = picture.alpha[:, :, None] / PEAK[dtype]  # type: ignore[index]
        wanted = (wanted / PEAK[dtype] * opacity + 1 - opacity).astype(np.float32)
    wanted = to_depth(wanted, depth)
    difference = np.abs(again.pixels.astype(float) - wanted).max()
    twelve_bits = 16 if (name, depth) == ("avif", "uint16") else 0
    assert difference <= (8 if name == "jpeg" else twelve_bits)
    if again.alpha is not None:
        wanted = to_depth(picture.alpha, depth)  # type: ignore[arg-type]
        assert np.abs(again.alpha.astype(float) - wanted).max() <= twelve_bits


@pytest.mark.parametrize("name", [name for name in SUFFIXES if name != "jxl"])  # whose library rebuilds what it is given
@pytest.mark.parametrize("alpha", [False, True])
def test_metadata_survives(tmp_path: Path, photo: Picture, name: str, alpha: bool) -> None:
    photo.alpha = smooth(30, 40, 1)[:, :, 0] if alpha else None
    path = tmp_path / f"a.{SUFFIXES[name]}"
    write(path, photo)
    again = read(path)
    assert again.icc == photo.icc
    assert again.xmp is not None
    assert b'PixelXDimension="40"' in again.xmp
    assert b'Orientation="1"' in again.xmp
    assert again.resolution == pytest.approx(photo.resolution, rel=1e-3)
    with Image.open(path) as image:
        exif = image.getexif()
        details = exif.get_ifd(0x8769)
        assert image.info["icc_profile"] == photo.icc
        if name == "avif":
            image.load()  # another decoder takes it
    assert exif[0x010F] == "A camera's maker"
    assert exif.get(0x0112, 1) == 1
    assert (details[0xA002], details[0xA003]) == (40, 30)
    assert details[0x927C] == b"maker note \x00\x01\x02"
    assert float(details[0x829A]) == 0.005
    assert float(exif[0x011A]) == pytest.approx(11.811 * 25.4, rel=1e-3)
    assert exif[0x0128] == 2


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("lossless", [False, True])
def test_a_webp_with_exif_says_whether_it_has_alpha(tmp_path: Path, lossless: bool, alpha: bool) -> None:
    picture = dataclasses.replace(picture_of("uint8", grey=False, alpha=alpha), exif=exif_with())
    write(tmp_path / "a.webp", picture, lossless=lossless)
    data = (tmp_path / "a.webp").read_bytes()
    assert data[12:16] == b"VP8X"
    assert data[20] & 0x18 == (0x18 if alpha else 0x08)  # 0x10 says alpha, 0x08 EXIF


def test_a_lossless_webp_keeps_the_colours_of_what_cannot_be_seen(tmp_path: Path) -> None:
    picture = picture_of("uint8", grey=False, alpha=True)
    assert picture.alpha is not None
    picture.alpha[:, :20] = 0
    write(tmp_path / "a.webp", picture, lossless=True)
    np.testing.assert_array_equal(read(tmp_path / "a.webp").pixels, picture.pixels)


def test_exif_bytes_beside_the_corrections_are_untouched(tmp_path: Path, photo: Picture) -> None:
    photo.resolution = None
    assert photo.exif is not None
    for suffix in ("png", "jpg", "webp", "avif"):
        write(tmp_path / f"a.{suffix}", photo)
        again = read(tmp_path / f"a.{suffix}").exif
        assert again is not None
        assert again[: len(photo.exif)] == photo.exif
        # in AVIF what libvips had put there stands behind it, where nothing points to
        assert suffix == "avif" or len(again) == len(photo.exif)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif"])
@pytest.mark.parametrize("dpi", [(300, 300), (1200, 600)])
@pytest.mark.parametrize("with_exif", [False, True])
def test_the_resolution_needs_no_exif(tmp_path: Path, suffix: str, dpi: tuple[int, int], with_exif: bool) -> None:
    picture = picture_of("uint8", grey=False, alpha=False)
    picture.resolution = dpi[0] / 25.4, dpi[1] / 25.4
    if with_exif:
        picture.exif = exif_with()
    path = tmp_path / f"a.{suffix}"
    write(path, picture)
    assert read(path).resolution == pytest.approx(picture.resolution, rel=1e-3)
    with Image.open(path) as image:
        found = image.info.get("dpi") or [float(image.getexif()[tag]) for tag in (0x011A, 0x011B)]
        assert found == pytest.approx(dpi, rel=1e-3)
        image.load()


def test_the_header_of_a_jpeg(tmp_path: Path) -> None:
    headers = {}
    for resolution in (None, (300 / 25.4, 300 / 25.4), (6000.0, 6000.0), (1e5, 1e5)):
        write(tmp_path / "a.jpg", dataclasses.replace(picture_of("uint8", grey=True, alpha=False), resolution=resolution))
        headers[resolution] = (tmp_path / "a.jpg").read_bytes()[:20]
    assert {header[:13] for header in headers.values()} == {b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1"}
    found = [struct.unpack(">BHHBB", header[13:]) for header in headers.values()]
    assert found == [(0, 1, 1, 0, 0), (1, 300, 300, 0, 0), (2, 60000, 60000, 0, 0), (0, 1, 1, 0, 0)]


@pytest.mark.parametrize("resolution", [(1326249.451299, 0.0), (16e6, 16e6), (-1.0, 3.0), (float("nan"), float("inf"))])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif", "gif"])
def test_resolutions_that_no_file_holds_are_left_out(
    tmp_path: Path, photo: Picture, suffix: str, resolution: tuple[float, float], capfd: pytest.CaptureFixture[str]
) -> None:
    photo.resolution = resolution
    write(tmp_path / f"a.{suffix}", photo)
    again = read(tmp_path / f"a.{suffix}")
    assert again.resolution is None or again.resolution == pytest.approx((72 / 25.4, 72 / 25.4), rel=1e-3)  # of the EXIF data
    assert capfd.readouterr().err == ""  # libvips' library of objects complains there


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif", "gif"])
def test_what_is_not_there_is_not_invented(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"a.{suffix}", smooth(30, 40, 3))
    again = read(tmp_path / f"a.{suffix}")
    assert (again.alpha, again.icc, again.exif, again.xmp, again.frames, again.notices) == (None, None, None, None, 1, [])
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert "dpi" not in image.info or suffix == "tif"  # of which Pillow does not ask for the unit
        image.load()
    assert read_info(tmp_path / f"a.{suffix}").resolution is None


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif"])
def test_stripped_files_keep_the_colours_only(tmp_path: Path, photo: Picture, suffix: str) -> None:
    write(tmp_path / f"a.{suffix}", photo, strip=True)
    again = read(tmp_path / f"a.{suffix}")
    assert (again.exif, again.xmp, again.icc) == (None, None, photo.icc)
    assert again.resolution is None
    assert b"maker" not in (tmp_path / f"a.{suffix}").read_bytes()


def test_gif_says_what_it_loses(tmp_path: Path, photo: Picture) -> None:
    photo.alpha = smooth(30, 40, 1)[:, :, 0]
    notices = write(tmp_path / "a.gif", photo)
    assert notices == [
        "EXIF data left out: GIF holds none",
        "XMP data left out: GIF holds none",
        "colours converted to sRGB: GIF holds no colour profile",
        "GIF holds no half transparency: it is either visible or not",
    ]
    again = read(tmp_path / "a.gif")
    assert again.source_format == "gif"
    assert np.abs(again.pixels.astype(int) - photo.pixels)[again.alpha == 255].mean() < 6 if again.alpha is not None else True


def test_better_quality_is_larger_and_nearer(tmp_path: Path) -> None:
    pixels = smooth(120, 160, 3)
    for suffix in ("jpg", "webp", "avif"):
        errors, sizes = [], []
        for quality in (20, 90):
            write(tmp_path / f"a.{suffix}", pixels, quality=quality)
            sizes.append((tmp_path / f"a.{suffix}").stat().st_size)
            errors.append(float(np.abs(read(tmp_path / f"a.{suffix}").pixels.astype(int) - pixels).mean()))
        assert sizes[0] < sizes[1]
        assert errors[0] > errors[1]


def test_exif_in_a_big_tiff(tmp_path: Path, photo: Picture) -> None:
    write(tmp_path / "a.tif", photo, pyramid=True)
    again = read(tmp_path / "a.tif")
    assert again.exif is not None
    assert b"maker note" in again.exif
    with Image.open(tmp_path / "a.tif") as image:
        assert image.getexif().get_ifd(0x8769)[0x927C] == b"maker note \x00\x01\x02"


def test_grey_profiles(tmp_path: Path, grey_profile: bytes) -> None:
    picture = Picture(smooth(30, 40, 1), icc=grey_profile)
    for suffix in ("png", "jpg", "tif"):
        assert write(tmp_path / f"a.{suffix}", picture) == []
        assert read(tmp_path / f"a.{suffix}").icc == grey_profile
    assert "grey colour profile left out" in write(tmp_path / "a.webp", picture)[0]


def test_a_thumbnail_of_the_old_picture_is_removed(tmp_path: Path, shared: Path) -> None:
    picture = read(shared / "data/odd/wolf_gray.jpg")
    assert picture.exif is not None
    assert b"\xff\xd8\xff" in picture.exif
    picture.pixels = np.kron(picture.pixels, np.ones((2, 2, 1), np.uint8))
    write(tmp_path / "a.jpg", picture)
    exif = read(tmp_path / "a.jpg").exif
    assert exif is not None
    assert b"\xff\xd8\xff" not in exif
    with Image.open(tmp_path / "a.jpg") as image:
        details = image.getexif().get_ifd(0x8769)
        assert (details[0xA002], details[0xA003]) == (472, 472)
        assert not image.getexif().get_ifd(1)  # the thumbnail's directory


def test_exif_that_is_too_long_for_jpeg(tmp_path: Path) -> None:
    picture = Picture(smooth(9, 9, 3), exif=exif_with() + bytes(70000))
    assert write(tmp_path / "a.jpg", picture) == ["EXIF data left out: too long for JPEG"]
    assert write(tmp_path / "a.png", picture) == []


@pytest.mark.parametrize(("length", "kept"), [(60000, True), (60001, False)])
def test_xmp_that_is_too_long_for_jpeg(tmp_path: Path, length: int, kept: bool) -> None:
    packet = b"<x:xmpmeta>" + b"a" * (length - 11)
    notices = write(tmp_path / "a.jpg", Picture(smooth(9, 9, 3), xmp=packet))
    assert read(tmp_path / "a.jpg").xmp == (packet if kept else None)
    assert notices == ([] if kept else ["XMP data left out: too long for JPEG"])


CAPTIONS = b"\x1c\x02\x00\x00\x02\x00\x00\x1c\x02\x78\x00\x0bThe caption\x1c\x02\x74\x00\x04(c)X"


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
@pytest.mark.parametrize("exif", [None, exif_with()])
def test_captions_survive(tmp_path: Path, suffix: str, exif: bytes | None) -> None:
    picture = Picture(smooth(9, 9, 3), exif=exif, iptc=CAPTIONS)
    assert write(tmp_path / f"a.{suffix}", picture) == []
    again = read(tmp_path / f"a.{suffix}")
    assert again.iptc == CAPTIONS
    assert (again.exif is None) == (exif is None)
    with Image.open(tmp_path / f"a.{suffix}") as image:
        assert IptcImagePlugin.getiptcinfo(image)[2, 120] == b"The caption"
    assert write(tmp_path / f"b.{suffix}", again, strip=True) == []
    assert b"The caption" not in (tmp_path / f"b.{suffix}").read_bytes()
    for other in ("png", "webp"):
        title = FORMATS[other].title
        assert write(tmp_path / f"a.{other}", again) == [f"IPTC captions left out: {title} holds none"]


def test_captions_of_a_tiff_of_another_byte_order(tmp_path: Path) -> None:
    """As older programs wrote them: bytes that are called numbers of 32 bits."""
    captions = CAPTIONS + bytes(-len(CAPTIONS) % 4)
    entries = [(256, 4, 1, 1), (257, 4, 1, 1), (258, 3, 1, 8 << 16), (262, 3, 1, 1 << 16), (273, 4, 1, 8), (278, 4, 1, 1)]
    entries += [(279, 4, 1, 1), (0x83BB, 4, len(captions) // 4, 10)]
    directory = struct.pack(">H", len(entries)) + b"".join(struct.pack(">HHII", *entry) for entry in entries) + bytes(4)
    (tmp_path / "a.tif").write_bytes(b"MM\0*" + struct.pack(">I", 10 + len(captions)) + b"\x80\0" + captions + directory)
    assert read(tmp_path / "a.tif").iptc == captions


def test_photoshop_data_without_captions_is_no_loss(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", Picture(smooth(9, 9, 3), iptc=CAPTIONS[:7]))
    assert read(tmp_path / "a.jpg").iptc is None


def png_with(path: Path, *chunks: tuple[bytes, bytes]) -> None:
    write(path, smooth(9, 9, 3))
    data = path.read_bytes()
    path.write_bytes(data[:33] + b"".join(png_chunks.chunk(*c) for c in chunks) + data[33:])


GAMMA = (b"gAMA", struct.pack(">I", 100000))


@pytest.mark.parametrize(
    ("chunks", "kept"),
    [
        ([(b"cICP", bytes((9, 16, 0, 1))), (b"cLLI", bytes(8)), GAMMA], [b"cICP", b"cLLI"]),
        ([GAMMA, (b"cHRM", bytes(range(32)))], [b"gAMA", b"cHRM"]),
        ([(b"cICP", bytes((1, 13, 0, 1))), GAMMA], []),  # sRGB
        ([(b"gAMA", struct.pack(">I", 45455))], []),
        ([(b"sRGB", b"\0"), GAMMA], []),
    ],
)
def test_colours_of_a_png_without_a_profile(tmp_path: Path, chunks: list[tuple[bytes, bytes]], kept: list[bytes]) -> None:
    png_with(tmp_path / "a.png", *chunks)
    picture = read(tmp_path / "a.png")
    picture.exif = exif_with()
    assert write(tmp_path / "b.png", picture, strip=True) == []
    assert write(tmp_path / "c.png", picture) == []
    for name in ("b.png", "c.png"):
        data = (tmp_path / name).read_bytes()
        assert all(png_chunks.chunk(*c) in data[: data.index(b"IDAT")] for c in chunks if c[0] in kept)
        assert read(tmp_path / name).png_colours == picture.png_colours
        with Image.open(tmp_path / name) as image:
            assert np.array_equal(np.asarray(image), picture.pixels)
    names = ", ".join(name.decode() for name in kept)
    notice = f"colour space ({names}) left out: JPEG does not hold it, and the colours may look different"
    assert write(tmp_path / "a.jpg", picture) == ([notice] if kept else [])


def test_what_a_tiff_says_without_an_exif_directory(tmp_path: Path) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    said = {0x010E: "A description", 0x013B: "An artist", 0x8298: "A right", 0x0132: "2020:01:01 00:00:00"}
    tags.update(said)
    Image.fromarray(smooth(9, 9, 3)).save(tmp_path / "a.tif", tiffinfo=tags)
    for name in ("b.tif", "b.jpg", "b.png"):
        assert write(tmp_path / name, read(tmp_path / "a.tif")) == []
        with Image.open(tmp_path / name) as image:
            assert {tag: image.getexif().get(tag) for tag in said} == said
    write(tmp_path / "c.tif", read(tmp_path / "a.tif"), strip=True)
    assert b"An artist" not in (tmp_path / "c.tif").read_bytes()
    layout = TiffImagePlugin.ImageFileDirectory_v2()
    layout[0x010E] = "ImageJ=1.53\nimages=3"  # would be wrong for what was enlarged
    Image.fromarray(smooth(9, 9, 3)).save(tmp_path / "d.tif", tiffinfo=layout)
    assert read(tmp_path / "d.tif").exif is None


@pytest.mark.parametrize(("suffix", "share"), [("jpg", "50.0"), ("png", "50.0"), ("avif", "50.0"), ("tif", None)])
def test_floats_that_are_clipped_are_told(tmp_path: Path, suffix: str, share: str | None) -> None:
    values = np.full((20, 30, 3), 0.5, np.float32)
    values[:5], values[5:10], values[10:12] = 7, -0.5, 1 + 1e-6  # which is white to the nearest level
    notice = f"{share} % of the values lay beyond 0..1 and are clipped to it: TIFF keeps them"
    assert [n for n in write(tmp_path / f"a.{suffix}", values) if "clipped" in n] == ([notice] if share else [])
    notices: list[str] = []
    with write_strips(tmp_path / f"b.{suffix}", Picture(values).info, notices=notices) as writer:
        for row in range(0, 20, 4):
            writer.write(values[row : row + 4])
    assert [n for n in notices if "clipped" in n] == ([notice] if share else [])
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_what_cannot_be_seen_is_not_told(tmp_path: Path) -> None:
    values, alpha = np.full((20, 100, 3), 0.5, np.float32), np.ones((20, 100), np.float32)
    values[0], alpha[0] = 9, 0
    assert not [n for n in write(tmp_path / "a.png", Picture(values, alpha)) if "clipped" in n]
    values[1, 0] = 9
    assert "less than 0.1 % of the values" in write(tmp_path / "a.png", Picture(values, alpha))[-1]


# ---- the same bytes


@pytest.mark.parametrize(("name", "dtype", "grey", "alpha"), CASES)
def test_same_picture_same_bytes(tmp_path: Path, name: str, dtype: str, grey: bool, alpha: bool, srgb_profile: bytes) -> None:
    picture = dataclasses.replace(picture_of(dtype, grey, alpha), exif=exif_with(), icc=None if grey else srgb_profile)
    written = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / f"a.{SUFFIXES[name]}"
        write(path, picture)
        written.append(path.read_bytes())
    assert written[0] == written[1]


def test_bytes_do_not_depend_on_the_clock_or_on_threads(tmp_path: Path) -> None:
    program = """
import sys
from drct.imaging import read, write
for out in sys.argv[2:]:
    write(out, read(sys.argv[1]))
"""
    write(tmp_path / "in.png", smooth(700, 900, 3))
    suffixes = ("png", "jpg", "webp", "tif")
    for threads in ("1", "3"):
        outs = [tmp_path / f"{threads}.{suffix}" for suffix in suffixes]
        environment = {**os.environ, "VIPS_CONCURRENCY": threads, "SOURCE_DATE_EPOCH": threads + "0000"}
        subprocess.run([sys.executable, "-c", program, tmp_path / "in.png", *outs], check=True, timeout=300, env=environment)
    for suffix in suffixes:
        assert (tmp_path / f"1.{suffix}").read_bytes() == (tmp_path / f"3.{suffix}").read_bytes()


# ---- options and misuse


def test_formats_by_name_and_options(tmp_path: Path) -> None:
    pixels = smooth(60, 80, 3)
    for name, kind in (("jpg", "jpeg"), ("JPEG", "jpeg"), (".tif", "tiff"), ("PNG", "png")):
        write(tmp_path / "a.dat", pixels, format=name)
        assert read(tmp_path / "a.dat").source_format == kind
    sizes = []
    for quality in (30, 95):
        write(tmp_path / "a.jpg", pixels, quality=quality)
        sizes.append((tmp_path / "a.jpg").stat().st_size)
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("a.bmp", {}, "suffix '.bmp'"),
        ("a", {}, "suffix ''"),
        ("a.png", {"format": "pgn"}, "did you mean 'png'"),
        ("a.jpg", {"quality": 0}, "quality"),
        ("a.jpg", {"quality": 101}, "quality"),
        ("a.jpg", {"quality": True}, "quality must be a whole number, not True"),
        ("a.jpg", {"quality": "high"}, "quality must be a whole number, not 'high'"),
        ("a.png", {"compression": 10}, "compression"),
        ("a.png", {"compression": None}, "compression must be a whole number"),
        ("a.webp", {"lossless": "no"}, "lossless must be True or False, not 'no'"),
        ("a.jpg", {"lossless": True}, "no lossless mode"),
        ("a.webp", {"lossless": True, "quality": 90}, "do not go together"),
        ("a.png", {"pyramid": True}, "a pyramid is a TIFF"),
        ("a.heic", {}, "suffix '.heic'"),
    ],
)
def test_wrong_options(tmp_path: Path, name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        write(tmp_path / name, smooth(9, 9, 3), **options)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((4, 5, 3), np.int32),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((4, 5, 3, 1), np.uint8),
        Picture(np.zeros((4, 5, 3), np.uint8), np.zeros((4, 4), np.uint8)),
        Picture(np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), np.uint16)),
        np.full((4, 5, 3), np.nan, np.float32),
        Picture(np.zeros((4, 5, 3), np.float32), np.full((4, 5), np.inf, np.float32)),
    ],
)
def test_wrong_pictures(tmp_path: Path, picture: Picture | np.ndarray) -> None:
    with pytest.raises(ImageError):
        write(tmp_path / "a.png", picture)
    assert not list(tmp_path.iterdir())


def test_pictures_beyond_what_a_format_holds(tmp_path: Path) -> None:
    for suffix, side in (("webp", 16384), ("jpg", 65536)):
        with pytest.raises(ImageError, match=f"{side} x 1 pixels"):
            write(tmp_path / f"a.{suffix}", np.zeros((1, side), np.uint8))
    assert not list(tmp_path.iterdir())


def test_views_are_written_as_they_look(tmp_path: Path) -> None:
    pixels = smooth(30, 40, 3)
    for view in (pixels[::-1], pixels[:, ::2], pixels[:, :, ::-1], np.asfortranarray(pixels), pixels.transpose(1, 0, 2)):
        write(tmp_path / "a.png", view)
        np.testing.assert_array_equal(read(tmp_path / "a.png").pixels, view)


@pytest.mark.parametrize("kind", ["u2", "f4"])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_the_order_of_bytes_makes_no_difference(tmp_path: Path, kind: str, suffix: str) -> None:
    values = smooth(20, 30, 3, np.dtype(kind).name)
    for order in "<>":
        write(tmp_path / f"{'lb'[order == '>']}.{suffix}", values.astype(order + kind))
    assert (tmp_path / f"l.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_avif_rounds_to_the_nearest_of_its_levels(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64 * 64 * 3).astype(np.uint16).reshape(64, 64, 3)
    ramp[0, 0] = 65535
    write(tmp_path / "a.avif", ramp, lossless=True)
    found = read(tmp_path / "a.avif").pixels
    assert np.abs(found.astype(int) - ramp).max() <= 65535 / 4095 / 2 + 0.5
    write(tmp_path / "b.avif", found, lossless=True)
    np.testing.assert_array_equal(read(tmp_path / "b.avif").pixels, found)


def test_all_that_tells_the_resolution_is_corrected(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:XResolution="3000000/10000" tiff:ResolutionUnit="3">'
    picture = Picture(
        smooth(20, 30, 3), xmp=xmp + b"<tiff:YResolution>300/1</tiff:YResolution>", resolution=(1200 / 25.4, 600 / 25.4)
    )
    write(tmp_path / "a.jpg", picture)
    found = read(tmp_path / "a.jpg").xmp
    assert found is not None
    assert b'tiff:XResolution="12000000/10000" tiff:ResolutionUnit="2"' in found
    assert b"<tiff:YResolution>6000000/10000<" in found


@pytest.mark.parametrize("source", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("target", ["uint8", "uint16", "float32"])
def test_depths(source: str, target: str) -> None:
    peak = PEAK[source]
    values = np.linspace(-0.2, 1.3, 1001, dtype=np.float32) if source == "float32" else np.arange(peak + 1).astype(source)
    exact = values.astype(np.float64) / peak
    if target == source:
        wanted = values
    elif target == "float32":
        wanted = exact.astype(np.float32)
    else:
        wanted = np.floor(np.clip(exact, 0, 1) * PEAK[target] + 0.5).astype(target)
    result = to_depth(values, target)
    assert result.dtype == target
    # floats between two levels may fall to either side of a tie
    assert np.abs(result.astype(np.float64) - wanted).max() <= (1e-7 if target == "float32" else source == "float32")


# ---- whole or not at all


def test_part_names(tmp_path: Path) -> None:
    assert part_path(tmp_path / "a.png") == tmp_path / ".a.png.part"
    long = part_path(tmp_path / ("ä" * 125 + ".tif"))
    assert len(os.fsencode(long.name)) <= 255
    assert long.name.startswith(".")
    assert long.name.endswith(".tif.part")
    assert long != part_path(tmp_path / ("ä" * 124 + "b.tif"))


def test_an_existing_file_is_replaced_only_when_all_went_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write(path, smooth(9, 9, 3))
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(replacing.os, "fsync", full)
    with pytest.raises(ImageError, match=r"a\.png: cannot be written: No space left"):
        write(path, smooth(9, 9, 3, seed=1))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("exif", [None, exif_with()])
def test_a_full_disk_leaves_nothing(tmp_path: Path, suffix: str, exif: bytes | None) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (500, 600, 3), np.uint8)
    program = """
import resource, signal, sys, numpy as np
from drct.errors import ImageError
from drct.imaging import Picture, write
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writes beyond the limit then fail as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
exif = bytes.fromhex(sys.argv[3]) or None
try:
    write(sys.argv[1], Picture(np.load(sys.argv[2]), exif=exif))
except ImageError as error:
    print(error)
"""
    np.save(tmp_path / "noise.npy", noise)
    (tmp_path / "out").mkdir()
    arguments = [sys.executable, "-c", program, tmp_path / f"out/a.{suffix}", tmp_path / "noise.npy", (exif or b"").hex()]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=True)
    assert "cannot be written" in done.stdout
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert not list((tmp_path / "out").iterdir())


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder.png").mkdir()
    places = [tmp_path / "missing/a.png", tmp_path / "file/a.png", tmp_path / "folder.png", tmp_path / ("x" * 260 + ".png")]
    for path in [*places, Path("/proc/a.png"), tmp_path / "a\0.png"]:
        with pytest.raises(ImageError, match="cannot be written") as caught:
            write(path, smooth(9, 9, 3))
        assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png"]


def test_kill_in_the_middle_leaves_only_a_part_that_the_next_run_removes(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    program = """
import sys, numpy as np
from drct.imaging import write
noise = np.random.default_rng(0).integers(0, 256, (3000, 3000, 3), np.uint8)
print("ready", flush=True)
while True:
    write(sys.argv[1], noise, compression=9)
"""
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        deadline = time.monotonic() + 30
        while not (part_path(path).exists() and part_path(path).stat().st_size > 0) and time.monotonic() < deadline:
            time.sleep(0.01)
        # While it is alive its temporary file is safe, and nobody else may write under that name.
        assert remove_stale_parts(tmp_path) == []
        with pytest.raises(ImageError, match="another process"):
            write(path, smooth(9, 9, 3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert [p.name for p in tmp_path.iterdir()] == [".a.png.part"]
        assert remove_stale_parts(tmp_path) == [part_path(path)]
        assert not list(tmp_path.iterdir())


def test_a_stale_part_does_not_stand_in_the_way(tmp_path: Path) -> None:
    part_path(tmp_path / "a.tif").write_bytes(b"old" * 100_000)
    write(tmp_path / "a.tif", smooth(9, 9, 3))
    np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels, smooth(9, 9, 3))
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_only_our_own_parts_are_removed(tmp_path: Path) -> None:
    foreign = ["movie.mkv.part", ".movie.mkv.part", "a.png.part", ".part", "a.png", ".a.png"]
    for name in [*foreign, ".a.jpg.part", ".b.TIFF.part"]:
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in remove_stale_parts(tmp_path)] == [".a.jpg.part", ".b.TIFF.part"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(foreign)
    assert remove_stale_parts(tmp_path / "missing") == []


def test_without_locks_only_old_parts_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacing, "fcntl", None)
    for name in (".new.png.part", ".old.png.part"):
        (tmp_path / name).write_bytes(b"x")
    os.utime(tmp_path / ".old.png.part", (0, 0))
    assert [p.name for p in remove_stale_parts(tmp_path)] == [".old.png.part"]
    write(tmp_path / "new.png", smooth(9, 9, 3))
    assert [p.name for p in tmp_path.iterdir()] == ["new.png"]


@pytest.mark.skipif(os.name == "nt", reason="there are no such permissions")
@pytest.mark.parametrize(("before", "after"), [(0o600, 0o600), (0o640, 0o640), (0o444, 0o644)])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, before: int, after: int) -> None:
    """What was private stays private, also while it is written."""
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    path.chmod(before)
    seen = []
    with replacing.replacing(path) as part:
        seen.append(stat.S_IMODE(os.fstat(part.fileno()).st_mode))
        part.write(b"new")
    assert [*seen, stat.S_IMODE(path.stat().st_mode)] == [after, after]
    assert path.read_bytes() == b"new"


def test_permissions_are_those_of_any_new_file(tmp_path: Path) -> None:
    write(tmp_path / "a.png", smooth(9, 9, 3))
    (tmp_path / "plain").write_text("x")
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_writers_in_turn_never_show_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write(path, np.full((300, 300, 3), 0, np.uint8))
    program = """
import sys, numpy as np
from drct.errors import ImageError
from drct.imaging import write
for i in range(30):
    try:
        write(sys.argv[1], np.full((300, 300, 3), i, np.uint8))
    except ImageError as error:
        assert "another process" in str(error)
"""
    processes = [subprocess.Popen([sys.executable, "-c", program, path]) for _ in range(2)]
    while any(p.poll() is None for p in processes):
        pixels = read(path).pixels
        assert pixels.min() == pixels.max()
    assert [p.returncode for p in processes] == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_errors_are_of_the_house() -> None:
    assert issubclass(ImageError, Error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with a name")
def test_texts_go_through_pipes_and_links_and_do_not_take_their_names(tmp_path: Path) -> None:
    """As root, a rename would put a file in the place of /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read_from = pool.submit((tmp_path / "pipe").read_text)
        with replacing_text(tmp_path / "pipe") as file:
            file.write("through")
        assert read_from.result(10) == "through"
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "link").symlink_to("real.json")
    with replacing_text(tmp_path / "link") as file:
        file.write("{}")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real.json").read_text() == "{}"
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link", "real.json"}

"""Reading: every kind of file becomes the right pixels, every bad one a one-line error."""

from __future__ import annotations

import multiprocessing
import os
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import pyvips
from pictures import exif_with, smooth
from PIL import Image

from drct.errors import ImageError
from drct.imaging import Picture, is_image_file, read, read_info, read_pages, read_size, supported_suffixes, write
from drct.imaging.exif import orientation


def refused(path: Path, *words: str) -> str:
    """The message of the error that reading ends in: one line that names the file and says these words."""
    with pytest.raises(ImageError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message
    return message


# ---- odd but good files


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "alpha"),
    [
        ("00017_gray.png", (351, 500, 1), "uint8", False),
        ("alpha.webp", (128, 128, 3), "uint8", True),
        ("animated.gif", (128, 128, 3), "uint8", False),
        ("children-alpha.png", (350, 566, 3), "uint8", True),
        ("cmyk.jpg", (128, 128, 3), "uint8", False),
        ("exif_rotated.jpg", (128, 128, 3), "uint8", False),
        ("float_gray.tiff", (128, 128, 1), "float32", False),
        ("gray16.png", (128, 128, 1), "uint16", False),
        ("gray8.png", (128, 128, 1), "uint8", False),
        ("one_pixel.png", (1, 1, 3), "uint8", False),
        ("palette.png", (128, 128, 3), "uint8", False),
        ("palette_transparent.png", (128, 128, 3), "uint8", True),
        ("thin.png", (40, 3, 3), "uint8", False),
        ("tree_alpha_16bit.png", (256, 342, 3), "uint16", True),
        ("with_srgb_icc.png", (128, 128, 3), "uint8", False),
        ("wolf_gray.jpg", (236, 236, 1), "uint8", False),
    ],
)
def test_odd_files_are_read(shared: Path, name: str, shape: tuple[int, ...], dtype: str, alpha: bool) -> None:
    path = shared / "data/odd" / name
    picture = read(path)
    assert picture.pixels.shape == shape
    assert picture.pixels.dtype == dtype
    assert (picture.alpha is not None) == alpha
    assert read_size(path) == (picture.height, picture.width) == shape[:2]
    assert picture.is_grey == (shape[2] == 1)
    assert picture.path == path
    if picture.alpha is not None:
        assert picture.alpha.shape == shape[:2]
        assert picture.alpha.dtype == dtype


@pytest.mark.parametrize("name", ["children-alpha.png", "palette_transparent.png", "palette.png", "gray8.png", "alpha.webp"])
def test_odd_pixels_agree_with_another_reader(shared: Path, name: str) -> None:
    path = shared / "data/odd" / name
    picture = read(path)
    with Image.open(path) as image:
        other = np.asarray(image.convert("L" if picture.is_grey else "RGBA" if picture.alpha is not None else "RGB"))
    mine = picture.pixels if picture.alpha is None else np.dstack([picture.pixels, picture.alpha])
    np.testing.assert_array_equal(mine, other.reshape(mine.shape))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("broken_empty.png", "empty"),
        ("broken_text.png", "not an image file"),
        ("broken_truncated.jpg", "cut off or damaged"),
        ("broken_bomb.png", "60000 x 60000"),
        ("clip.mp4", "video"),
    ],
)
def test_odd_broken_files_are_refused(shared: Path, name: str, words: str) -> None:
    refused(shared / "data/odd" / name, words)


# ---- bombs and claims


def png_header(width: int, height: int, tail: bytes = b"") -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(tail)) + chunk(b"IEND", b"")


def test_a_claim_without_data_is_refused_fast_and_small(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(60000, 60000, b"\0" * 1000))
    program = f"""
import resource, time
from drct.errors import ImageError
from drct.imaging import read
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
try:
    read({str(path)!r})
except ImageError as error:
    print(time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=True).stdout
    seconds, kilobytes, message = output.split(maxsplit=2)
    assert float(seconds) < 5
    assert int(kilobytes) < 100_000
    assert "60000 x 60000" in message
    assert "bytes" in message


def test_the_pixel_limit_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write(path, np.zeros((20, 30), np.uint8))
    with pytest.raises(ImageError, match=r"more than the limit of 500.*DRCT_MAX_PIXELS"):
        read(path, max_pixels=500)
    with pytest.raises(ImageError, match="limit"):
        read_size(path, max_pixels=599)
    assert read(path, max_pixels=600).width == 30
    monkeypatch.setenv("DRCT_MAX_PIXELS", "500")
    refused(path, "DRCT_MAX_PIXELS")
    monkeypatch.setenv("DRCT_MAX_PIXELS", "many")
    with pytest.raises(ImageError, match="DRCT_MAX_PIXELS='many'"):
        read(path)


def test_flat_pictures_are_not_taken_for_bombs(tmp_path: Path) -> None:
    flat = np.full((3000, 3000, 3), 200, np.uint8)
    for name, options in (("a.png", {"compression": 9}), ("a.jpg", {"quality": 1}), ("a.webp", {"lossless": True}), ("a.tif", {})):
        write(tmp_path / name, flat, **options)
        assert read(tmp_path / name).pixels.shape == flat.shape
    black = pyvips.Image.black(4000, 4000)
    black.pngsave(str(tmp_path / "bit.png"), bitdepth=1, compression=9)
    black.jpegsave(str(tmp_path / "progressive.jpg"), Q=1, interlace=True, optimize_coding=True)
    for name in ("bit.png", "progressive.jpg"):
        assert read(tmp_path / name).pixels.shape == (4000, 4000, 1)


def test_impossible_sides_of_avif_are_refused_without_noise(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(pyvips.Image.new_from_array(smooth(40, 50, 3)).heifsave_buffer(compression="av1"))
    at = data.index(b"ispe")
    for width in (2**31 - 1, 200_000_000, 60_000):
        struct.pack_into(">I", data, at + 8, width)
        (tmp_path / "a.avif").write_bytes(data)
        refused(tmp_path / "a.avif", *(["limit"] if width > 10**8 else []))
    assert capfd.readouterr().err == ""


# ---- what is no image


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("table.csv", b"1,2,3\n4,5,6\n", "not an image"),
        ("table.png", b"1,2,3\n4,5,6\n", "not an image"),
        ("matrix.mat", b"MATLAB 5.0 MAT-file" + bytes(200), "not an image"),
        ("raw.raw", bytes(3000), "not an image"),
        ("a.v", b"\x08\xf2\xf6\xb6" + bytes(100), "not an image"),
        ("a.bmp", b"BM" + bytes(100), "BMP"),
        ("a.pdf", b"%PDF-1.7 ...", "PDF"),
        ("a.svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "SVG"),
        ("a.jpg", b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic", "HEIC"),
        ("a.jxl", b"\xff\x0a" + bytes(30), "JPEG XL"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "cut off or damaged"),
        ("b.tif", b"II*\0" + bytes(3), "decoded"),
        ("c.tif", b"II*\0\xff\xff\xff\xff", "damaged"),
        ("a.webp", b"RIFF\0\0\0\0WEBP", "damaged"),
        ("a.gif", b"GIF89a", "damaged"),
        ("raw.tif", b"II*\0\x10\0\0\0CR\2\0", "camera raw"),
        ("a.film", b"\0\0\0\x14ftypisom\0\0\0\0mp41", "drct upscale reads videos, which it knows by their names, such as a.mp4"),
        ("a.film", b"\x1aE\xdf\xa3" + bytes(30), "a Matroska or WebM video; only drct upscale reads videos"),
        ("a.film", b"RIFF\0\0\0\0AVI LIST", "such as a.avi"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    refused(path, words)


def test_missing_files_folders_and_pipes_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.png", "no such file")
    refused(tmp_path, "folder")
    refused(tmp_path / "a\0b.png")
    refused(tmp_path / ("x" * 300 + ".png"))
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "regular")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    refused(tmp_path / "loop.png")


def test_previews_of_raw_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for tag, kind, value in ((0x00FE, 4, 1), (0xC612, 1, 0x00000401)):
        Image.fromarray(smooth(20, 30, 3)).save(path)
        data = bytearray(path.read_bytes())
        at = struct.unpack_from("<I", data, 4)[0]
        entries = [bytes(data[at + 2 + 12 * i : at + 14 + 12 * i]) for i in range(struct.unpack_from("<H", data, at)[0])]
        entries = [e for e in entries if struct.unpack_from("<H", e)[0] != tag] + [struct.pack("<HHII", tag, kind, 1, value)]
        entries.sort(key=lambda e: struct.unpack_from("<H", e)[0])
        struct.pack_into("<I", data, 4, len(data))
        path.write_bytes(bytes(data) + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4))
        refused(path, "camera raw")


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "gif", "avif"])
@pytest.mark.parametrize("part", [0.2, 0.5, 0.9])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str, part: float) -> None:
    path = tmp_path / f"a.{suffix}"
    pyvips.Image.new_from_array(smooth(90, 120, 3)).write_to_file(str(path))
    assert read(path).width == 120
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    refused(path, "damaged")


# ---- kinds of pictures


@pytest.mark.parametrize("wrong", ["jpg", "webp", "txt", "tif"])
def test_content_counts_and_not_the_name(tmp_path: Path, wrong: str) -> None:
    pixels = smooth(9, 11, 3)
    write(tmp_path / "right.png", pixels)
    path = tmp_path / f"wrong.{wrong}"
    (tmp_path / "right.png").rename(path)
    picture = read(path)
    assert picture.source_format == "png"
    np.testing.assert_array_equal(picture.pixels, pixels)


@pytest.mark.parametrize("name", ["a[page=1].png", "späße ☃.png", "-dash.png", " space .png", "100%d.png", "x" * 251 + ".png"])
def test_odd_names(tmp_path: Path, name: str) -> None:
    pixels = smooth(9, 11, 3)
    write(tmp_path / name, pixels)
    np.testing.assert_array_equal(read(tmp_path / name).pixels, pixels)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.png"))
    pixels = smooth(9, 11, 3)
    write(path, pixels)
    np.testing.assert_array_equal(read(path).pixels, pixels)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_orientation_is_applied_and_reset(tmp_path: Path, turn: int, suffix: str) -> None:
    upright = smooth(24, 32, 3)
    stored = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[turn]  # the turn that leads back
    pixels = np.asarray(_turned_by_pillow(upright, stored))
    path = tmp_path / f"a.{suffix}"
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = turn, "maker"
    Image.fromarray(pixels).save(path, exif=exif, **options)
    picture = read(path)
    assert read_size(path) == (24, 32)
    assert np.abs(picture.pixels.astype(int) - upright).max() <= (12 if suffix == "jpg" else 0)
    write(tmp_path / "again.png", picture)
    with Image.open(tmp_path / "again.png") as again:
        assert again.getexif().get(0x0112, 1) == 1
    assert read(tmp_path / "again.png").pixels.shape == upright.shape


@pytest.mark.parametrize(("turn", "resolution"), [(1, (10, 20)), (3, (10, 20)), (5, (20, 10)), (6, (20, 10))])
def test_the_resolution_turns_with_the_picture(tmp_path: Path, turn: int, resolution: tuple[float, float]) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(smooth(24, 32, 3)).save(tmp_path / "a.jpg", exif=exif, dpi=(254, 508))
    assert read(tmp_path / "a.jpg").resolution == resolution


@pytest.mark.parametrize("turn", [3, 6])
def test_frames_are_turned(tmp_path: Path, turn: int) -> None:
    stored = [smooth(24, 32, 3, seed=i) for i in range(3)]
    frames = [Image.fromarray(pixels) for pixels in stored]
    exif = Image.Exif()
    exif[0x0112] = turn
    path = tmp_path / "a.webp"
    frames[0].save(path, save_all=True, append_images=frames[1:], exif=exif.tobytes(), lossless=True)
    info, pictures = read_info(path), list(read_pages(path))
    assert [(p.height, p.width) for p in pictures] == [(info.height, info.width)] * 3
    for picture, pixels in zip(pictures, stored, strict=True):
        np.testing.assert_array_equal(picture.pixels, np.asarray(_turned_by_pillow(pixels, turn)))
        assert picture.exif is not None
        assert orientation(picture.exif) == 1


def _turned_by_pillow(pixels: np.ndarray, turn: int) -> Image.Image:
    method = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    image = Image.fromarray(pixels)
    return image.transpose(method[turn]) if turn in method else image


@pytest.mark.parametrize("with_profile", [True, False])
@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_srgb(tmp_path: Path, with_profile: bool, suffix: str) -> None:
    # Colours that print well: they survive the way to CMYK and back.
    rgb = np.full((40, 60, 3), (180, 120, 90), np.uint8)
    rgb[:, 30:] = (110, 140, 150)
    image = pyvips.Image.new_from_array(rgb).icc_transform("cmyk", input_profile="srgb", intent="relative")
    path = tmp_path / f"a.{suffix}"
    image.write_to_file(str(path), keep="icc" if with_profile else "none", **({"Q": 98} if suffix == "jpg" else {}))
    picture = read(path)
    assert picture.pixels.shape == rgb.shape
    assert np.abs(picture.pixels.astype(int) - rgb).max() <= 6
    assert "CMYK" in picture.notices[0]
    assert ("its profile" in picture.notices[0]) == with_profile
    assert picture.icc is not None
    assert picture.icc[16:20] == b"RGB "


def test_cmyk_with_a_damaged_profile_says_so(tmp_path: Path) -> None:
    Image.new("CMYK", (30, 20)).save(tmp_path / "a.jpg", icc_profile=bytes(16) + b"CMYK" + bytes(300))
    assert read(tmp_path / "a.jpg").notices == ["CMYK converted to sRGB through a standard profile (its own is damaged)"]


@pytest.mark.parametrize(
    ("kinds", "alpha", "notices"),
    [
        ((0,), None, ["1 extra channel left out"]),  # near infrared, or a selection
        ((1,), 0, []),
        ((2,), 0, []),
        ((0, 2), 1, ["1 extra channel left out"]),
        ((2, 0), 0, ["1 extra channel left out"]),
        ((0, 0), None, ["2 extra channels left out"]),
    ],
)
@pytest.mark.parametrize("grey", [False, True])
def test_only_alpha_of_a_tiff_is_transparency(
    tmp_path: Path, kinds: tuple[int, ...], alpha: int | None, notices: list[str], grey: bool
) -> None:
    if grey and len(kinds) > 1:
        pytest.skip("three bands are colours to libvips")
    colours = smooth(20, 30, 1 if grey else 3)
    further = [np.full((20, 30, 1), 200, np.uint8), np.full((20, 30, 1), 0, np.uint8)][: len(kinds)]
    image = pyvips.Image.new_from_array(np.concatenate([colours, *further], 2))
    image.copy(interpretation="b-w" if grey else "srgb").tiffsave(str(tmp_path / "a.tif"))
    data = (tmp_path / "a.tif").read_bytes()
    at = data.index(struct.pack("<HHI", 0x0152, 3, len(kinds))) + 8
    values = struct.pack(f"<{len(kinds)}H", *kinds)
    (tmp_path / "a.tif").write_bytes(data[:at] + values + data[at + len(values) :])
    picture = read(tmp_path / "a.tif")
    assert picture.notices == notices
    assert picture.pixels.shape == colours.shape
    if kinds[0] != 1:  # which colours are multiplied by
        np.testing.assert_array_equal(picture.pixels, colours)
    assert (picture.alpha is None) == (alpha is None)
    if alpha is not None:
        np.testing.assert_array_equal(picture.alpha, further[alpha][:, :, 0])


@pytest.mark.parametrize("kind", [1, 4, 7, 99])
def test_kinds_of_channels_that_make_no_sense_are_none(tmp_path: Path, kind: int) -> None:
    """As where a file does not say: the fourth channel is alpha."""
    write(tmp_path / "a.tif", Picture(smooth(20, 30, 3), smooth(20, 30, 1)[:, :, 0]))
    data = (tmp_path / "a.tif").read_bytes()
    at = data.index(struct.pack("<HHI", 0x0152, 3, 1))
    (tmp_path / "a.tif").write_bytes(data[:at] + struct.pack("<HHI", 0x0152, kind, 1) + data[at + 8 :])
    try:
        picture = read(tmp_path / "a.tif")
    except ImageError:  # libvips, too, looks at it
        return
    assert picture.alpha is not None


def tiff(tmp_path: Path, photometric: int, extra: tuple[int, ...], *samples: int, dtype: str = "uint8", more: bytes = b"") -> Path:
    """A TIFF of 8 x 8 equal pixels; ``more`` are further entries, with tags beyond that of the extra samples."""
    pixels = np.tile(np.array(samples, dtype), (8, 8, 1)).tobytes()
    bits, count = 8 * np.dtype(dtype).itemsize, len(samples)
    shorts = {258: [bits] * count, 259: [1], 262: [photometric], 277: [count], 338: list(extra)}
    longs = {256: 8, 257: 8, 278: 8, 279: len(pixels)}
    number = len(shorts) + len(longs) + 1 + len(more) // 12 - (not extra)
    at = 8 + 2 + 12 * number + 4
    behind, entries = b"", {}
    for tag, values in shorts.items():
        data = struct.pack(f"<{len(values)}H", *values)
        if len(data) > 4:
            entries[tag] = struct.pack("<HHII", tag, 3, len(values), at + len(behind))
            behind += data
        elif values:
            entries[tag] = struct.pack("<HHI", tag, 3, len(values)) + data.ljust(4, b"\0")
    entries |= {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in longs.items()}
    entries[273] = struct.pack("<HHII", 273, 4, 1, at + len(behind))
    directory = struct.pack("<H", number) + b"".join(entries[tag] for tag in sorted(entries)) + more + bytes(4)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 8) + directory + behind + pixels)
    return tmp_path / "a.tif"


@pytest.mark.parametrize(
    ("extra", "samples", "colours", "alpha", "notices"),
    [
        ((0, 0, 2), (100, 50, 20, 128), [100, 50, 20], 128, []),
        ((0, 0), (100, 50, 20), [100, 50, 20], None, []),
        ((2, 0, 0), (100, 128, 20, 77), [100], 128, ["2 extra channels left out"]),
        ((0, 2), (100, 20, 128), [100], 128, ["1 extra channel left out"]),
        ((0, 0, 0, 2), (100, 50, 20, 9, 128), [100, 50, 20], 128, ["1 extra channel left out"]),
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_channels_of_a_tiff_that_counts_one_colour(
    tmp_path: Path,
    extra: tuple[int, ...],
    samples: tuple[int, ...],
    colours: list[int],
    alpha: int | None,
    notices: list[str],
    dtype: str,
) -> None:
    picture = read(tiff(tmp_path, 1, extra, *samples, dtype=dtype))
    assert picture.pixels[0, 0].tolist() == colours
    assert (None if picture.alpha is None else picture.alpha[0, 0]) == alpha
    assert picture.notices == notices
    assert picture.pixels.dtype == dtype


@pytest.mark.parametrize("alpha", [0, 100, 32768, 40000, 65535])
@pytest.mark.parametrize(("photometric", "colours"), [(5, (25600, 12800, 5120, 2560)), (8, (32768, 5000, 60000))])
def test_alpha_of_16_bits_beside_colours_that_are_converted(
    tmp_path: Path, photometric: int, colours: tuple[int, ...], alpha: int
) -> None:
    opaque = read(tiff(tmp_path, photometric, (), *colours, dtype="uint16"))
    picture = read(tiff(tmp_path, photometric, (2,), *colours, alpha, dtype="uint16"))
    assert picture.alpha is not None
    assert picture.alpha[0, 0] == alpha
    np.testing.assert_array_equal(picture.pixels, opaque.pixels)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_ycbcr_of_a_tiff_is_rgb(tmp_path: Path, compression: str | None) -> None:
    image = Image.fromarray(smooth(20, 30, 3), mode="YCbCr")
    image.save(tmp_path / "a.tif", compression=compression)
    picture = read(tmp_path / "a.tif")
    assert picture.notices == []
    assert np.abs(picture.pixels.astype(int) - np.asarray(image.convert("RGB")).astype(int)).max() <= 1
    not_subsampled = struct.pack("<HHIHH", 530, 3, 2, 1, 1)
    deep = read(tiff(tmp_path, 6, (), 30000, 32768 - 7000, 32768 + 5000, dtype="uint16", more=not_subsampled))
    wanted = [30000 + 1.402 * 5000, 30000 + 0.344136 * 7000 - 0.714136 * 5000, 30000 - 1.772 * 7000]
    assert deep.pixels[0, 0].tolist() == pytest.approx(wanted, abs=1)


@pytest.mark.parametrize(
    ("photometric", "more", "what"),
    [
        (6, b"", "subsampled YCbCr without JPEG"),
        (6, struct.pack("<HHIHH", 530, 3, 2, 2, 2), "subsampled YCbCr without JPEG"),
        (9, b"", "ICC Lab"),
        (32803, b"", "raw sensor data"),
    ],
)
def test_colours_that_would_be_taken_for_rgb_are_refused(tmp_path: Path, photometric: int, more: bytes, what: str) -> None:
    path = tiff(tmp_path, photometric, (), 100, 128, 140, more=more)
    with pytest.raises(ImageError, match=rf"a\.tif: a TIFF of {what} is not supported: convert it to RGB first"):
        read(path)


def test_lab_of_8_bits_says_what_to_do(tmp_path: Path) -> None:
    Image.new("LAB", (32, 32), (128, 20, 236)).save(tmp_path / "l.tif")
    try:
        picture = read(tmp_path / "l.tif")
    except ImageError as error:
        assert "cannot read Lab of 8 bits" in str(error)  # noqa: PT017 - other versions of libvips read it
    else:
        assert picture.notices == ["LAB converted to sRGB"]


def damaged_profiles(profile: bytes) -> dict[str, bytes]:
    return {
        "cut off": profile[:300],
        "short": profile[:40],
        "empty": profile[:128] + bytes(len(profile) - 128),
        "too long": struct.pack(">I", 10**6) + profile[4:],
        "no sign": profile[:36] + b"xxxx" + profile[40:],
    }


def test_damaged_profiles_are_told_and_do_no_harm(tmp_path: Path, srgb_profile: bytes) -> None:
    image = Image.fromarray(smooth(20, 30, 3))
    for profile in damaged_profiles(srgb_profile).values():
        for source in ("a.jpg", "a.tif"):
            image.save(tmp_path / source, icc_profile=profile)
            picture = read(tmp_path / source)
            assert (picture.icc, picture.notices) == (None, ["damaged colour profile left out"])
            assert write(tmp_path / "b.png", picture) == []
    image.save(tmp_path / "a.jpg", icc_profile=srgb_profile)
    assert read(tmp_path / "a.jpg").icc == srgb_profile


@pytest.mark.parametrize("bits", [10, 12])
def test_short_samples_of_avif_fill_all_bits(tmp_path: Path, bits: int) -> None:
    ramp = np.linspace(0, 65535, 64 * 64 * 3).astype(np.uint16).reshape(64, 64, 3)
    ramp[0, 0], ramp[0, 1] = 65535, 0
    image = pyvips.Image.new_from_array(ramp, interpretation="rgb16")
    image.heifsave(str(tmp_path / "a.avif"), compression="av1", bitdepth=bits, lossless=True)
    pixels = read(tmp_path / "a.avif").pixels
    assert pixels[0, 0].tolist() == [65535] * 3
    assert pixels[0, 1].tolist() == [0] * 3
    levels = (1 << bits) - 1
    written = ramp >> (16 - bits)  # as libvips takes them
    assert np.abs(pixels - written * (65535 / levels)).max() <= 0.51


def test_resolutions_are_those_that_files_state(tmp_path: Path) -> None:
    image = Image.fromarray(smooth(20, 30, 3))
    for suffix in ("png", "jpg", "tif", "webp", "avif", "gif"):
        image.save(tmp_path / f"a.{suffix}")
        assert read_info(tmp_path / f"a.{suffix}").resolution is None, suffix
    for suffix in ("png", "jpg", "tif"):
        image.save(tmp_path / f"a.{suffix}", dpi=(254, 127))
        assert read_info(tmp_path / f"a.{suffix}").resolution == pytest.approx((10, 5), rel=1e-3), suffix
    image.save(tmp_path / "a.tif", resolution=100, resolution_unit=1)  # of no unit
    assert read_info(tmp_path / "a.tif").resolution is None
    image.save(tmp_path / "a.tif", resolution=100, resolution_unit=3)
    assert read_info(tmp_path / "a.tif").resolution == (10, 10)
    data = (tmp_path / "a.png").read_bytes()
    at = data.index(b"pHYs") + 12
    assert data[at] == 1
    chunk = data[at - 12 : at] + b"\0"  # a ratio of sides only
    (tmp_path / "a.png").write_bytes(data[: at - 12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[at + 5 :])
    assert read_info(tmp_path / "a.png").resolution is None


def test_cmyk_with_a_profile_for_rgb_goes_through_a_standard_one(tmp_path: Path, srgb_profile: bytes) -> None:
    Image.new("CMYK", (30, 20), (0, 200, 200, 0)).save(tmp_path / "a.jpg", icc_profile=srgb_profile)
    picture = read(tmp_path / "a.jpg")
    assert picture.notices == ["CMYK converted to sRGB through a standard profile (it has none of its own)"]
    assert picture.pixels[10, 15, 0] > 200 > 100 > picture.pixels[10, 15, 1:].max()  # magenta and yellow are red


def test_lab_becomes_srgb(tmp_path: Path) -> None:
    rgb = smooth(20, 30, 3)
    for space, dtype, tolerance in (("lab", np.uint8, 3), ("labs", np.uint16, 700)):
        pyvips.Image.new_from_array(rgb).colourspace(space).tiffsave(str(tmp_path / "a.tif"))
        picture = read(tmp_path / "a.tif")
        assert picture.pixels.dtype == dtype
        wanted = rgb.astype(int) * (257 if dtype == np.uint16 else 1)
        assert np.abs(picture.pixels.astype(int) - wanted).max() <= tolerance
        assert picture.notices == ["LAB converted to sRGB"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_pillow_mode_of_tiff(tmp_path: Path, mode: str) -> None:
    pixels = smooth(20, 30, 1)[:, :, 0]
    if mode == "I;16":
        image = Image.fromarray(pixels.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(pixels).convert("RGB").convert(mode) if mode != "LA" else Image.fromarray(pixels).convert("LA")
    image.save(tmp_path / "a.tif")
    picture = read(tmp_path / "a.tif")
    assert (picture.height, picture.width) == (20, 30)
    values = picture.pixels[:, :, 0].astype(float) / np.iinfo(picture.pixels.dtype).max
    assert np.abs(values - pixels / 255).mean() < (0.6 if mode == "1" else 0.1 if mode == "P" else 0.04)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_become_eight(tmp_path: Path, bits: int) -> None:
    levels = 2**bits
    pixels = (np.arange(8 * 9).reshape(8, 9) % levels * (255 // (levels - 1))).astype(np.uint8)
    pyvips.Image.new_from_array(pixels).pngsave(str(tmp_path / "a.png"), bitdepth=bits)
    picture = read(tmp_path / "a.png")
    assert picture.pixels.dtype == np.uint8
    np.testing.assert_array_equal(picture.pixels[:, :, 0], pixels)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_several_frames_the_first(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(smooth(20, 30, 3, seed=i)) for i in range(3)]
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    picture = read(path)
    assert picture.frames == 3
    assert picture.pixels.shape == (20, 30, 3)
    assert picture.notices == [f"only the first of 3 {'page' if suffix == 'tif' else 'frame'}s is used"]
    assert np.abs(picture.pixels.astype(int) - np.asarray(frames[0])).mean() < (8 if suffix == "gif" else 0.01)


def test_frames_stand_for_a_minute_at_most(tmp_path: Path) -> None:
    frames = [Image.fromarray(smooth(20, 30, 3, seed=i)) for i in range(2)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=[600_000, 100])
    assert read_info(tmp_path / "a.gif").delays == (60_000, 100)


def test_float_values_are_kept_and_reported(tmp_path: Path) -> None:
    values = smooth(20, 30, 3, "float32") * 3 - 1
    write(tmp_path / "a.tif", values)
    picture = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(picture.pixels, values)
    assert "beyond 0..1" in picture.notices[0]
    for bad in (np.nan, np.inf, -np.inf):
        values[3, 4, 1] = bad
        pyvips.Image.new_from_array(values, interpretation="scrgb").tiffsave(str(tmp_path / "b.tif"))
        refused(tmp_path / "b.tif", "NaN or infinite")
        with_alpha = np.concatenate([np.zeros_like(values), values[:, :, 1:2]], 2)
        pyvips.Image.new_from_array(with_alpha, interpretation="scrgb").tiffsave(str(tmp_path / "b.tif"))
        refused(tmp_path / "b.tif", "NaN or infinite")
        for picture in (Picture(values), Picture(np.zeros_like(values), values[:, :, 1].copy())):
            with pytest.raises(ImageError, match=r"a\.tif: cannot be written: the pixels hold NaN or infinite values"):
                write(tmp_path / "a.tif", picture)
    np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels[0], values[0])  # as it was


@pytest.mark.parametrize("dtype", [np.uint32, np.int16, np.int32])
def test_unsupported_samples_are_refused(tmp_path: Path, dtype: type) -> None:
    pyvips.Image.new_from_array(smooth(20, 30, 3).astype(dtype)).tiffsave(str(tmp_path / "a.tif"))
    refused(tmp_path / "a.tif", "samples of type")


def test_a_profile_for_other_channels_is_left_out(tmp_path: Path, srgb_profile: bytes, grey_profile: bytes) -> None:
    for pixels, profile in ((smooth(9, 9, 1), srgb_profile), (smooth(9, 9, 3), grey_profile)):
        Image.fromarray(pixels.squeeze()).save(tmp_path / "a.jpg", icc_profile=profile)
        picture = read(tmp_path / "a.jpg")
        assert picture.icc is None
        assert "profile left out" in picture.notices[0]


def test_damaged_exif_is_left_out_with_a_notice(tmp_path: Path) -> None:
    Image.fromarray(smooth(9, 9, 3)).save(tmp_path / "a.jpg", exif=b"Exif\0\0nothing of the kind")
    picture = read(tmp_path / "a.jpg")
    assert picture.exif is None
    assert picture.notices == ["damaged EXIF data left out"]


def test_xmp_orientation_is_reset(tmp_path: Path) -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(smooth(9, 7, 3)).save(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif_with(orientation=6), xmp=xmp)
    picture = read(tmp_path / "a.jpg")
    assert picture.pixels.shape == (7, 9, 3)
    assert picture.xmp is not None
    assert b'tiff:Orientation="1"' in picture.xmp


def test_pixels_are_writable(tmp_path: Path, photo: Picture) -> None:
    write(tmp_path / "a.png", photo)
    assert read(tmp_path / "a.png").pixels.flags.writeable


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    for value in (10, 20):
        write(tmp_path / "a.png", np.full((4, 4), value, np.uint8))
        assert read(tmp_path / "a.png").pixels.max() == value


def test_no_file_stays_open(tmp_path: Path, photo: Picture) -> None:
    descriptors = Path("/proc/self/fd")
    write(tmp_path / "a.png", photo)
    read(tmp_path / "a.png")
    before = len(list(descriptors.iterdir()))
    for _ in range(20):
        read(tmp_path / "a.png")
        write(tmp_path / "b.tif", photo)
        with pytest.raises(ImageError):
            read(tmp_path)
    assert len(list(descriptors.iterdir())) <= before


def _read_mean(path: str) -> float:
    return float(read(path).pixels.mean())


def test_spawned_workers_read_and_forked_ones_say_why_not(tmp_path: Path) -> None:
    path = str(tmp_path / "a.png")
    write(path, smooth(9, 9, 3))
    mean = _read_mean(path)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply_async(_read_mean, (path,)).get(timeout=300) == mean
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(ImageError, match="spawn or forkserver"):
        pool.apply_async(_read_mean, (path,)).get(timeout=300)


def test_old_libraries_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    write(path, smooth(9, 9, 3))
    monkeypatch.setattr("pyvips.version", lambda part: (8, 14, 1)[part])
    for work in (lambda: read(path), lambda: write(tmp_path / "b.png", smooth(9, 9, 3))):
        with pytest.raises(ImageError, match=r"^libvips 8\.14 is installed, but 8\.16 or newer is needed"):
            work()


def test_threads_read_at_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    paths = []
    for i in range(8):
        paths.append(str(tmp_path / f"{i}.jpg"))
        write(paths[-1], smooth(60, 80, 3, seed=i))
    alone = [_read_mean(p) for p in paths]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(_read_mean, paths * 4)) == alone * 4


def test_folder_walk_helpers() -> None:
    assert {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".gif", ".avif"} <= set(supported_suffixes())
    assert ".heic" not in supported_suffixes(writable=True)
    assert ".dzi" not in supported_suffixes()
    assert is_image_file("a/b.PNG")
    assert is_image_file(Path("x.JpEg"))
    assert not any(map(is_image_file, ["a.txt", ".hidden.png", ".a.png.part", "png", "a.mp4", "a.csv"]))


def test_looking_at_files_needs_no_torch() -> None:
    program = "import sys, drct.imaging; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=300)


def test_errors_are_quick(tmp_path: Path) -> None:
    path = tmp_path / "text.png"
    path.write_text("hello\n" * 10_000_000)
    start = time.process_time()
    refused(path, "not an image")
    assert time.process_time() - start < 2  # of the processor, which a busy machine does not stretch

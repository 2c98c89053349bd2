"""HEIC images, written here by pillow-heif."""

from __future__ import annotations

import io
import re
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pillow_heif
import pytest
from pictures import exif_with, smooth
from PIL import Image, ImageOps

from drct.errors import ImageError
from drct.imaging import StripReader, read, read_bytes, read_info, read_size, reading

MODES = {("uint8", 1): "L", ("uint8", 3): "RGB", ("uint8", 4): "RGBA", ("uint16", 1): "L;16", ("uint16", 3): "RGB;16"}


def heic(samples: np.ndarray, **options: Any) -> bytes:
    """A HEIC file of samples ``(H, W, C)``, all but lossless."""
    height, width, bands = samples.shape
    file = pillow_heif.from_bytes(MODES[samples.dtype.name, bands], (width, height), samples.tobytes())
    return saved(file, **options)


def saved(file: Any, **options: Any) -> bytes:
    into = io.BytesIO()
    file.save(into, quality=-1, chroma=444, **options)
    return into.getvalue()


@pytest.mark.parametrize(("channels", "depth"), [(1, "uint8"), (3, "uint8"), (4, "uint8"), (1, "uint16"), (3, "uint16")])
def test_pixels_are_those_that_were_written(channels: int, depth: str) -> None:
    samples = smooth(40, 56, channels, depth)
    picture = read_bytes(heic(samples), "a.heic")
    assert (picture.source_format, picture.pixels.dtype.name, picture.notices) == ("heic", depth, [])
    step = 1 if depth == "uint8" else 65535 / 1023  # deep ones have 10 bits
    colours = min(channels, 3)
    assert np.abs(picture.pixels.astype(float) - samples[:, :, :colours]).max() <= 2 * step
    if channels == 4:
        assert picture.alpha is not None
        assert np.array_equal(picture.alpha, samples[:, :, 3])


def test_white_of_ten_bits_is_white() -> None:
    assert (read_bytes(heic(np.full((16, 16, 3), 65535, np.uint16)), "a.heic").pixels == 65535).all()


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_stands_upright_once(orientation: int, tmp_path: Path) -> None:
    """The file turns the picture by properties of its own; the orientation in EXIF data, which says the same, does not count."""
    upright = smooth(24, 40, 3)
    pillow_heif.register_heif_opener()
    path = tmp_path / "a.HEIC"
    Image.fromarray(upright).save(path, "HEIF", exif=b"Exif\0\0" + exif_with(orientation=orientation), quality=-1, chroma=444)
    picture = read(path)
    as_jpeg_has_it = Image.fromarray(upright)
    as_jpeg_has_it.getexif()[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(as_jpeg_has_it))
    assert picture.pixels.shape == expected.shape
    assert np.abs(picture.pixels.astype(int) - expected).max() <= 2
    assert picture.exif is not None
    tags = Image.Exif()
    tags.load(picture.exif)
    assert tags[0x0112] == 1
    assert read_size(path) == expected.shape[:2]
    info = read_info(path)
    assert (info.height, info.width, info.exif) == (*expected.shape[:2], picture.exif)
    with StripReader(path) as reader:
        assert np.array_equal(reader.rows(3, 9)[0], picture.pixels[3:9])


def test_metadata_come_along(srgb_profile: bytes) -> None:
    file = pillow_heif.from_bytes("RGB", (40, 24), smooth(24, 40, 3).tobytes())
    packet = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    file.info.update(exif=b"Exif\0\0" + exif_with(), xmp=packet, icc_profile=srgb_profile, icc_profile_type="prof")
    picture = read_bytes(saved(file), "a.heic")
    assert (picture.icc, picture.xmp) == (srgb_profile, packet)
    assert picture.exif is not None


def test_of_several_pictures_the_main_one_is_used() -> None:
    file = pillow_heif.HeifFile()
    file.add_frombytes("RGB", (64, 48), smooth(48, 64, 3).tobytes())
    file.add_frombytes("RGB", (40, 24), smooth(24, 40, 3).tobytes())
    picture = read_bytes(saved(file, primary_index=1), "a.heic")
    assert (picture.height, picture.width, picture.frames) == (24, 40, 2)
    assert picture.notices == ["only the main one of 2 pictures is used"]


def test_what_stands_beside_the_picture_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import pi_heif

    def with_map(data: bytes, **options: Any) -> Any:
        file = open_heif(data, **options)
        file.info.update(aux={"urn:com:apple:photo:2020:aux:hdrgainmap": [1]}, depth_images=[object()])
        return file

    open_heif = pi_heif.open_heif
    monkeypatch.setattr(pi_heif, "open_heif", with_map)
    notices = read_bytes(heic(smooth(24, 40, 3)), "a.heic").notices
    assert notices == ["the gain map (HDR) is left out", "the depth map is left out"]


def test_colours_that_were_multiplied_by_their_alpha_are_divided_again() -> None:
    samples = smooth(24, 40, 4)
    samples[:, :, 3] = 128
    dark = samples.copy()
    dark[:, :, :3] = np.round(samples[:, :, :3] * (128 / 255))
    picture = read_bytes(saved(pillow_heif.from_bytes("RGBa", (40, 24), dark.tobytes())), "a.heic")
    assert np.abs(picture.pixels.astype(int) - samples[:, :, :3]).max() <= 4


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[: len(data) // 2], "cut off or damaged"),
        (lambda data: data[:100], "cut off or damaged"),
        (lambda data: data.replace(b"hvc1", b"vvc1"), "coded in a way"),
        (
            lambda data: re.sub(rb"(ispe\0{4}).{8}", rb"\1" + struct.pack(">II", 70000, 70000), data, flags=re.DOTALL),
            "limit of 500000000",
        ),
    ],
)
def test_damaged_files_are_refused_in_a_line(damage: Callable[[bytes], bytes], words: str) -> None:
    whole = heic(smooth(40, 56, 3))
    data = damage(whole)
    assert data != whole
    with pytest.raises(ImageError, match=words) as caught:
        read_bytes(data, "a.heic")
    assert str(caught.value).startswith("a.heic: ")
    assert "\n" not in str(caught.value)


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(ImageError, match=r"a\.heic: .*pip install 'drct\[heic\]'"):
        read_bytes(heic(smooth(40, 56, 3)), "a.heic")


def test_a_size_that_only_the_decoder_finds_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the property of the size stands behind the first bytes, which are looked at before a decoder is asked."""
    monkeypatch.setattr(reading, "HEAD_BYTES", 64)
    (tmp_path / "a.heic").write_bytes(heic(smooth(40, 56, 3)))
    for look in (read, read_info, read_size):
        with pytest.raises(ImageError, match="56 x 40 pixels are more than the limit of 2239"):
            look(tmp_path / "a.heic", 56 * 40 - 1)

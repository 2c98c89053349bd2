"""Text that PNG files carry."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from pictures import exif_with, smooth
from PIL import Image

from drct.imaging import Encoding, Picture, StripReader, png_chunks, read, read_info, read_size, write, write_strips
from drct.imaging.png_chunks import Inspection, chunk, inspect

TEXTS = [
    (b"tEXt", b"Author\0Jane"),
    (b"zTXt", b"parameters\0\0" + zlib.compress(b"seed 1, steps 20")),
    (b"iTXt", "Title\0\0\0de\0Titel\0Größe".encode()),
]
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'


def png_with(*before: tuple[bytes, bytes], behind: bytes = b"", raw: bytes = b"") -> bytes:
    """A PNG with chunks before its pixels, and with bytes before and behind them."""
    file = io.BytesIO()
    Image.fromarray(smooth(9, 12, 3)).save(file, "PNG")
    data = file.getvalue()
    return data[:33] + b"".join(chunk(*c) for c in before) + raw + data[33:-12] + behind + data[-12:]


def test_text_survives(tmp_path: Path) -> None:
    xmp = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)
    (tmp_path / "a.png").write_bytes(png_with(TEXTS[0], xmp, TEXTS[1], behind=chunk(*TEXTS[2])))
    picture = read(tmp_path / "a.png")
    assert picture.png_texts == read_info(tmp_path / "a.png").png_texts == b"".join(chunk(*text) for text in TEXTS)
    assert (picture.xmp, picture.notices) == (XMP, [])
    for exif in (None, exif_with()):
        picture.exif = exif
        assert write(tmp_path / "b.png", picture) == []
        again = read(tmp_path / "b.png")
        assert (again.png_texts, again.xmp, again.exif is None) == (picture.png_texts, XMP, exif is None)
        np.testing.assert_array_equal(again.pixels, picture.pixels)
    with Image.open(tmp_path / "b.png") as image:
        image.load()
        assert {key: image.text[key] for key in ("Author", "parameters", "Title")} == {
            "Author": "Jane",
            "parameters": "seed 1, steps 20",
            "Title": "Größe",
        }
    picture.exif = None
    notices = ["XMP data left out: GIF holds none"]
    notices.append("text of the PNG (Author, parameters, Title) left out: GIF does not hold it")
    assert write(tmp_path / "b.gif", picture) == notices
    assert write(tmp_path / "b.jpg", picture) == [notices[1].replace("GIF", "JPEG")]
    for name in ("c.png", "c.jpg"):
        assert write(tmp_path / name, picture, strip=True) == []
        assert read(tmp_path / name).png_texts == b""


def test_text_in_strips(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png_with(*TEXTS))
    with StripReader(tmp_path / "a.png") as reader:
        for strip in (False, True):
            with write_strips(tmp_path / "b.png", reader.info, encoding=Encoding(strip=strip)) as writer:
                writer.write(*reader.rows(0, 9))
            assert read(tmp_path / "b.png").png_texts == (b"" if strip else reader.info.png_texts)
            write(tmp_path / "c.png", read(tmp_path / "a.png"), strip=strip)
            assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    packed = (b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n       2\n0000\n"))
    damaged = chunk(b"tEXt", b"Author\0Jane")[:-1] + b"?"
    (tmp_path / "a.png").write_bytes(png_with(packed, TEXTS[0], packed, raw=damaged))
    picture = read(tmp_path / "a.png")
    assert picture.png_texts == chunk(*TEXTS[0])
    assert picture.notices == ["metadata packed as text (raw profile) of the PNG left out", "damaged text of the PNG left out"]


def test_text_has_a_bound() -> None:
    long = (b"tEXt", b"Comment\0" + b"a" * 600_000)
    found = inspect(io.BytesIO(png_with(long, long, TEXTS[0])))
    assert found.texts == chunk(*long) + chunk(*TEXTS[0])
    assert found.notices == ("text of the PNG left out: more than 1 MB",)
    longest = (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + b" " * (1 << 21))
    assert inspect(io.BytesIO(png_with(longest, TEXTS[0]))) == Inspection(texts=chunk(*TEXTS[0]))


def test_chunks_that_lie_about_their_length() -> None:
    for claim in (0xFFFFFFFF, 1 << 19, 100):
        lying = claim.to_bytes(4, "big") + b"tEXtAuthor\0Jane"
        whole = png_with(raw=lying)
        assert inspect(io.BytesIO(whole)).texts == b""
        assert inspect(io.BytesIO(whole[:45])).texts == b""


def test_keywords_can_be_shown() -> None:
    texts = b"".join(chunk(b"tEXt", key + b"\0text") for key in (b"a\x1b[2J", b"a\x1b[2J", b"\xe9" * 90, b"c", b"d", b"e", b"f"))
    assert png_chunks.keywords(texts) == f"a[2J, {'é' * 79}, c, d, e, ..."


def test_colours_count_only_before_the_pixels() -> None:
    cicp = chunk(b"cICP", bytes((9, 16, 0, 1)))
    assert inspect(io.BytesIO(png_with(behind=cicp))).colours == b""
    assert inspect(io.BytesIO(png_with(raw=cicp))).colours == cicp


def test_text_of_a_picture_that_came_from_no_file(tmp_path: Path) -> None:
    write(tmp_path / "a.png", Picture(smooth(9, 9, 1), png_texts=chunk(*TEXTS[0])))
    assert read(tmp_path / "a.png").png_texts == chunk(*TEXTS[0])


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x013B] = 6, "Jane"
    return exif.tobytes()[6:]


@pytest.mark.parametrize("packed", [False, True])
def test_metadata_behind_the_pixels(tmp_path: Path, packed: bool) -> None:
    flag, packet = (b"\1", zlib.compress(XMP)) if packed else (b"\0", XMP)
    xmp, exif = chunk(b"iTXt", b"XML:com.adobe.xmp\0" + flag + b"\0en\0XMP\0" + packet), chunk(b"eXIf", turned())
    (tmp_path / "early.png").write_bytes(png_with(raw=xmp + exif))
    (tmp_path / "late.png").write_bytes(png_with(behind=xmp + exif))
    early, late = read(tmp_path / "early.png"), read(tmp_path / "late.png")
    assert early.pixels.shape == late.pixels.shape == (12, 9, 3)
    np.testing.assert_array_equal(early.pixels, late.pixels)
    assert (early.xmp, early.notices) == (late.xmp, late.notices) == (XMP, [])
    assert early.exif == late.exif
    assert read_size(tmp_path / "late.png") == (12, 9)
    with StripReader(tmp_path / "late.png") as reader:
        np.testing.assert_array_equal(reader.rows(0, 12)[0], late.pixels)


def test_damaged_metadata_behind_the_pixels_is_told(tmp_path: Path) -> None:
    whole = chunk(b"eXIf", turned())
    text = chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)[:-6])
    for behind, notice in ((whole[:-1] + b"?", "damaged EXIF data left out"), (text, "damaged XMP data left out")):
        (tmp_path / "a.png").write_bytes(png_with(behind=behind))
        picture = read(tmp_path / "a.png")
        assert (picture.exif, picture.xmp, picture.notices) == (None, None, [notice])
        assert picture.pixels.shape == (9, 12, 3)
    lying = (1 << 30).to_bytes(4, "big") + b"eXIf"
    assert inspect(io.BytesIO(png_with(behind=lying))).notices == ("damaged EXIF data left out",)

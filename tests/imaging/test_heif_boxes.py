"""Colours and animations of AVIF files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import smooth
from PIL import Image

from drct.imaging import png_chunks, read, read_info, write
from drct.imaging.heif_boxes import inspect


def box(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + name + content


def cicp(primaries: int, transfer: int) -> bytes:
    return png_chunks.chunk(b"cICP", bytes((primaries, transfer, 0, 1)))


def head_of(*colours: tuple[int, int], used: tuple[int, ...] = (1,), wide: bool = False, before: bytes = b"") -> bytes:
    """The first bytes of a still AVIF: its properties of colours, and the numbers of those that its picture uses."""
    known = b"".join(box(b"colr", b"nclx" + struct.pack(">HHHB", *pair, 6, 0x80)) for pair in colours)
    if wide:  # numbers of items and properties in more bytes, and properties that are essential
        uses = struct.pack(">IB", 7, len(used)) + b"".join(struct.pack(">H", 0x8000 | index) for index in used)
        boxes = box(b"ipco", known) + box(b"ipma", b"\1\0\0\1" + struct.pack(">I", 1) + uses)
        primary = box(b"pitm", b"\1\0\0\0" + struct.pack(">I", 7))
    else:  # another item stands before
        uses = struct.pack(">HBB", 6, 1, 0x80 | len(colours)) + struct.pack(">HB", 7, len(used)) + bytes(used)
        boxes = box(b"ipco", known) + box(b"ipma", bytes(4) + struct.pack(">I", 2) + uses)
        primary = box(b"pitm", bytes(4) + struct.pack(">H", 7))
    return box(b"ftyp", b"avif" + bytes(4) + b"mif1") + before + box(b"meta", bytes(4) + primary + box(b"iprp", boxes))


def sequence(frames: int, major: bytes = b"avis", table: bytes = b"stsz") -> bytes:
    content = box(table, bytes(8) + struct.pack(">I", frames))
    for name in (b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        content = box(name, content)
    return box(b"ftyp", major + bytes(4) + b"avifavis") + content


@pytest.mark.parametrize("wide", [False, True])
def test_colours_of_the_picture(wide: bool) -> None:
    assert inspect(head_of((12, 13), wide=wide)).colours == cicp(12, 13)
    assert inspect(head_of((9, 16), (12, 13), used=(2,), wide=wide)).colours == cicp(12, 13)
    assert inspect(head_of((9, 16), used=(), wide=wide)).colours == b""
    assert inspect(head_of((9, 16), used=(0, 9), wide=wide)).colours == b""  # there are none of these numbers


def test_usual_and_unknown_colours_tell_nothing() -> None:
    usual = [(1, transfer) for transfer in (1, 6, 13, 14, 15)]
    for pair in [*usual, (1, 2), (2, 2), (2, 13), (9, 2), (0, 13), (3, 13), (12, 3), (99, 13), (12, 300)]:
        assert inspect(head_of(pair)).colours == b""
    for pair in [(1, 16), (1, 8), (9, 18), (22, 13), (5, 6)]:
        assert inspect(head_of(pair)).colours == cicp(*pair)


def test_boxes_of_other_lengths() -> None:
    long = struct.pack(">I4sQ", 1, b"free", 20) + bytes(4)
    whole = head_of((12, 13), before=long)
    assert inspect(whole).colours == cicp(12, 13)
    at = whole.index(b"meta") - 4
    assert inspect(whole[:at] + bytes(4) + whole[at + 4 :]).colours == cicp(12, 13)  # to the end of the file
    assert inspect(whole[:-30]).colours == b""
    assert inspect(head_of((12, 13), before=struct.pack(">I4s", 4, b"free"))).colours == b""


def test_frames_of_a_sequence() -> None:
    only = ("only the first frame of an animation is used",)
    for table in (b"stsz", b"stz2"):
        assert inspect(sequence(3, table=table)) == (3, b"", ())
    assert inspect(sequence(3, b"avif")).frames == 3
    assert inspect(sequence(1)) == (1, b"", ())
    assert inspect(sequence(3)[:60]) == (0, b"", only)
    assert inspect(sequence(3, b"avif")[:60]) == (0, b"", ())


def test_a_gain_map_is_told() -> None:
    assert inspect(box(b"ftyp", b"avif" + bytes(4) + b"mif1tmap")).notices == ("the gain map (HDR) is left out",)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_damaged_boxes_never_break_anything(data: st.DataObject) -> None:
    head = bytearray(data.draw(st.sampled_from([head_of((12, 13)), head_of((9, 16), wide=True), sequence(3)])))
    for _ in range(data.draw(st.integers(1, 12))):
        head[data.draw(st.integers(0, len(head) - 1))] = data.draw(st.integers(0, 255))
    inspect(bytes(head[: data.draw(st.integers(0, len(head)))]))


def avif_with(path: Path, primaries: int, transfer: int, **options: object) -> None:
    Image.fromarray(smooth(30, 40, 3)).save(path, **options)
    data = bytearray(path.read_bytes())
    struct.pack_into(">HH", data, data.index(b"colrnclx") + 8, primaries, transfer)
    path.write_bytes(data)


def test_wide_colours_go_along(tmp_path: Path) -> None:
    avif_with(tmp_path / "a.avif", 9, 16)
    picture = read(tmp_path / "a.avif")
    assert (picture.png_colours, picture.notices) == (cicp(9, 16), [])
    assert write(tmp_path / "a.png", picture) == []
    assert cicp(9, 16) in (tmp_path / "a.png").read_bytes()
    notice = "colour space (cICP) left out: JPEG does not hold it, and the colours may look different"
    assert write(tmp_path / "a.jpg", picture) == [notice]


def test_usual_colours_and_those_of_a_profile_do_not(tmp_path: Path, srgb_profile: bytes) -> None:
    Image.fromarray(smooth(30, 40, 3)).save(tmp_path / "a.avif")
    assert read_info(tmp_path / "a.avif").png_colours == b""
    write(tmp_path / "b.avif", smooth(30, 40, 3))
    assert read_info(tmp_path / "b.avif").png_colours == b""
    Image.fromarray(smooth(30, 40, 3)).save(tmp_path / "c.avif", icc_profile=srgb_profile)
    assert read_info(tmp_path / "c.avif").png_colours == b""


def test_an_animated_avif(tmp_path: Path) -> None:
    frames = [Image.fromarray(smooth(30, 40, 3, seed=i)) for i in range(3)]
    frames[0].save(tmp_path / "a.avif", save_all=True, append_images=frames[1:], duration=100)
    picture = read(tmp_path / "a.avif")
    assert picture.frames == 3
    assert picture.notices == ["only the first of 3 frames is used"]

"""Comments of JPEG files, and what stands behind their picture."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from pictures import exif_with, smooth
from PIL import Image

from drct.imaging import Picture, read, read_info, write
from drct.imaging.jpeg_segments import COMMENT, inspect, segment

GAIN_MAP = "the gain map (HDR) is left out"
PICTURES = "the further pictures in the file are left out"
VIDEO = "the video of the motion photo is left out"


def jpeg(*segments: bytes, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(smooth(30, 40, 3)).save(file, "JPEG", **options)
    data = file.getvalue()
    return data[:2] + b"".join(segments) + data[2:]


def several(*kinds: int, gone: bool = False) -> bytes:
    """A JPEG with further pictures of these kinds behind it; or only with their list."""
    length = 2 + 2 + 4 + 8 + 2 + 12 + 4 + 16 * (len(kinds) + 1)
    first = len(jpeg()) + length
    entries, offset = struct.pack(">IIIHH", 0x030000, first, 0, 0, 0), first - 2 - 8  # counted from the list's own header
    for kind in kinds:
        entries += struct.pack(">IIIHH", kind, len(jpeg()), offset, 0, 0)
        offset += len(jpeg())
    directory = struct.pack(">HHHII", 1, 0xB002, 7, len(entries), 26) + bytes(4)
    listed = b"MPF\0MM\0*" + struct.pack(">I", 8) + directory + entries
    return jpeg(segment(0xE2, listed)) + jpeg() * (0 if gone else len(kinds))


def xmp_with(*items: str, attributes: str = "") -> bytes:
    listed = "".join(f'<rdf:li><Container:Item Item:Semantic="{item}"/></rdf:li>' for item in items)
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description'
        ' xmlns:Container="http://ns.google.com/photos/1.0/container/" xmlns:Item="http://ns.google.com/photos/1.0/container/item/"'
        ' xmlns:GCamera="http://ns.google.com/photos/1.0/camera/" xmlns:hdrgm="http://ns.adobe.com/hdr-gain-map/1.0/"'
        f" {attributes}><Container:Directory><rdf:Seq>{listed}</rdf:Seq></Container:Directory></rdf:Description></rdf:RDF>"
        "</x:xmpmeta>"
    ).encode()


@pytest.mark.parametrize(
    ("data", "notices"),
    [
        (jpeg(), []),
        (several(0), [PICTURES]),
        (several(0x020002, 0x020002), [PICTURES]),
        (several(0x010001, 0x010002), []),  # previews
        (several(0, gone=True), []),
        (several(0x050000), [GAIN_MAP]),
        (several(0x050000, 0), [GAIN_MAP, PICTURES]),
        (jpeg(segment(0xE2, b"urn:iso:std:iso:ts:21496:-1\0\0\0\0\0")), [GAIN_MAP]),
        (jpeg(segment(0xE2, b"MPF\0MM\0*\xff\xff\xff\xff" + bytes(30))), []),
        (jpeg(segment(0xE2, b"MPF\0")), []),
        (jpeg(xmp=xmp_with("Primary", "GainMap", attributes='hdrgm:Version="1.0"')) + jpeg(), [GAIN_MAP]),
        (jpeg(xmp=xmp_with("Primary", "MotionPhoto", attributes='GCamera:MotionPhoto="1"')) + b"video", [VIDEO]),
        (jpeg(xmp=xmp_with("Primary", "Depth")) + jpeg(), [PICTURES]),
    ],
)
def test_what_stands_behind_the_picture(tmp_path: Path, data: bytes, notices: list[str]) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    picture = read(path)
    assert picture.notices == read_info(path).notices == notices
    for suffix in ("jpg", "png"):
        assert write(tmp_path / f"b.{suffix}", picture) == []
        again = read(tmp_path / f"b.{suffix}")
        assert again.notices == []
        assert b"Container:Directory" not in (again.xmp or b"")
        assert b"hdrgm" not in (again.xmp or b"")


def test_the_pictures_of_another_writer(tmp_path: Path) -> None:
    frames = [Image.fromarray(smooth(30, 40, 3, seed=i)) for i in range(2)]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "a.jpg").notices == [PICTURES]


@pytest.mark.parametrize("exif", [None, exif_with()])
def test_comments_survive(tmp_path: Path, exif: bytes | None) -> None:
    of_encoders = [segment(COMMENT, b"CREATOR: gd-jpeg v1.0, quality = 90\n"), segment(COMMENT, b"Lavc61.3.100")]
    (tmp_path / "a.jpg").write_bytes(jpeg(segment(COMMENT, b"first"), *of_encoders, b"\xff", segment(COMMENT, b"\xe9" * 65533)))
    picture = read(tmp_path / "a.jpg")
    assert picture.jpeg_comments == read_info(tmp_path / "a.jpg").jpeg_comments == (b"first", b"\xe9" * 65533)
    picture.exif = exif
    assert write(tmp_path / "b.jpg", picture) == []
    again = read(tmp_path / "b.jpg")
    assert (again.jpeg_comments, again.exif is None) == (picture.jpeg_comments, exif is None)
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.info["comment"] == b"\xe9" * 65533
        image.load()
    assert write(tmp_path / "b.png", picture) == ["comment of the JPEG left out: PNG does not hold it"]
    for name in ("c.jpg", "c.png"):
        assert write(tmp_path / name, picture, strip=True) == []
        assert read(tmp_path / name).jpeg_comments == ()


def test_comments_have_a_bound() -> None:
    data = jpeg(*[segment(COMMENT, b"c" * 65533)] * 20)
    found = inspect(io.BytesIO(data))
    assert len(found.comments) == 16
    assert found.notices == ("comments of the JPEG left out: more than 1 MB",)


def test_damaged_segments_end_the_search() -> None:
    whole = jpeg(segment(COMMENT, b"first"), b"\xff\xfe\0\1", segment(COMMENT, b"second"))
    assert inspect(io.BytesIO(whole)).comments == (b"first",)
    for cut in range(20):
        assert inspect(io.BytesIO(whole[:cut])).pictures == 0


def test_comments_of_a_picture_that_came_from_no_file(tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", Picture(smooth(9, 9, 3), jpeg_comments=(b"hello",)))
    assert read(tmp_path / "a.jpg").jpeg_comments == (b"hello",)

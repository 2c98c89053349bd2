"""Fixtures of the imaging tests."""

from __future__ import annotations

import pytest
from pictures import exif_with, smooth
from PIL import ImageCms

from drct.imaging import Picture


@pytest.fixture(scope="session")
def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="session")
def grey_profile() -> bytes:
    """The smallest grey profile that readers accept: a header and a linear curve."""
    curve = b"curv" + bytes(8)
    white = b"XYZ " + bytes(4) + b"\0\0\xf6\xd6\0\x01\0\0\0\0\xd3\x2d"
    text = b"text" + bytes(4) + b"grey\0\0\0\0"
    tags = [(b"kTRC", curve), (b"wtpt", white), (b"cprt", text), (b"desc", text)]
    body, table = b"", len(tags).to_bytes(4, "big")
    for name, data in tags:
        table += name + (132 + 12 * len(tags) + len(body)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body += data
    head = bytearray(128)
    head[8:12], head[12:24], head[36:40] = b"\x02\x40\0\0", b"mntrGRAYXYZ ", b"acsp"
    head[68:80] = b"\0\0\xf6\xd6\0\x01\0\0\0\0\xd3\x2d"
    head[:4] = (len(head) + len(table) + len(body)).to_bytes(4, "big")
    return bytes(head) + table + body


@pytest.fixture
def photo(srgb_profile: bytes) -> Picture:
    """40 x 30 RGB with everything that a file can carry."""
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" exif:PixelXDimension="9"/></x:xmpmeta>'
    return Picture(smooth(30, 40, 3), None, srgb_profile, exif_with(), xmp, (11.811, 11.811))

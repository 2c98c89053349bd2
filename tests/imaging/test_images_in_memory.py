"""Images as bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import smooth

from drct.errors import ImageError
from drct.imaging import Picture, read, read_bytes, write
from drct.imaging.memory import encode_png


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_bytes_and_files_are_read_alike(tmp_path: Path, photo: Picture, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    write(path, photo)
    mine, other = read_bytes(path.read_bytes(), "record 7"), read(path)
    np.testing.assert_array_equal(mine.pixels, other.pixels)
    assert (mine.icc, mine.exif, mine.xmp, mine.resolution) == (other.icc, other.exif, other.xmp, other.resolution)
    assert mine.source_format == other.source_format
    assert mine.path is None


@pytest.mark.parametrize("kind", [bytearray, memoryview])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_any_buffer_stays_there_until_it_is_decoded(tmp_path: Path, kind: Callable[[bytes], bytearray], suffix: str) -> None:
    """What libvips reads from must not be freed: memory that is asked for meanwhile would be read instead."""
    path = tmp_path / f"a.{suffix}"
    write(path, Picture(smooth(200, 300, 3)))
    data, expected = path.read_bytes(), read(path).pixels
    for _ in range(40):
        np.testing.assert_array_equal(read_bytes(kind(data), "a").pixels, expected)


@pytest.mark.parametrize(("data", "words"), [(b"", "empty"), (b"hello", "not an image"), (b"\x89PNG\r\n\x1a\n", "cut off")])
def test_errors_name_the_record(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=f"^record 7: .*{words}"):
        read_bytes(data, "record 7")


def test_png_there_and_back() -> None:
    for channels in (1, 3):
        pixels = smooth(9, 11, channels)
        np.testing.assert_array_equal(read_bytes(encode_png(pixels), "a").pixels, pixels)

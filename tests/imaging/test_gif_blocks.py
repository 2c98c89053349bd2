"""GIF files that were cut off."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from PIL import Image

from drct.errors import ImageError
from drct.imaging import read, read_info, read_pages
from drct.imaging.gif_blocks import is_cut_off


@pytest.fixture(scope="module", params=[False, True], ids=["one palette", "palettes of their own"])
def animation(request: pytest.FixtureRequest) -> bytes:
    frames = [Image.new("P", (40, 30), i) for i in range(4)]
    for i, frame in enumerate(frames):
        frame.putdata([(x * (i + 3) + x // 40) % 250 for x in range(1200)])
        frame.putpalette([(value * (i + 1 if request.param else 1)) % 256 for value in range(768)])
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=80, loop=0, comment=b"a comment")
    return file.getvalue()


def test_wherever_it_is_cut(animation: bytes, tmp_path: Path) -> None:
    assert not is_cut_off(io.BytesIO(animation))
    assert not is_cut_off(io.BytesIO(animation[:-1]))  # the trailer alone
    assert not is_cut_off(io.BytesIO(animation + b"more"))
    whole = [cut for cut in range(len(animation)) if not is_cut_off(io.BytesIO(animation[:cut]))]
    assert len(whole) <= 12  # ends of blocks: four pictures with a head each, the loop, the comment, the palette
    path = tmp_path / "a.gif"
    for cut in (len(animation) // 2, len(animation) - 5):
        assert cut not in whole
        path.write_bytes(animation[:cut])
        for function in (read, read_info, lambda path: list(read_pages(path))):
            with pytest.raises(ImageError, match=r"a\.gif: the file is cut off or damaged"):
                function(path)
    path.write_bytes(animation[:-1])
    assert len(list(read_pages(path))) == 4


def test_what_is_no_gif_is_left_to_the_decoder() -> None:
    assert not is_cut_off(io.BytesIO(b"GIF89a" + bytes(7) + b"\x77more"))
    assert is_cut_off(io.BytesIO(b"GIF89a"))

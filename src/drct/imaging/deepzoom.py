"""DeepZoom pyramids: a description, and a folder of tiles beside it."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from drct.errors import ImageError
from drct.imaging._vips import pyvips
from drct.imaging.replacing import Part

TILE = 254  # side of the tiles, which neighbours overlap by a pixel
ENDS = {".jpg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82"}  # of whole tiles


def save_tiles(image: pyvips.Image, path: Path, part: Part, options: dict[str, Any]) -> None:
    """A DeepZoom pyramid: its tiles into ``NAME_files``, its description, which makes it a picture, into the temporary file."""
    tiles = tiles_of(path)
    folder = path.with_name(f".{path.stem}_files.part")
    shutil.rmtree(folder, ignore_errors=True)  # of a killed run; nobody else has the lock of the temporary file
    try:
        folder.mkdir()
        # as bytes, because names need not be UTF-8, which pyvips makes of letters
        image.dzsave(os.fsencode(folder / "tiles"), **options, keep="icc")
        description = (folder / "tiles.dzi").read_bytes()
        if not (description.rstrip().endswith(b"</Image>") and _are_whole(folder / "tiles_files", image.width, image.height)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        part.write(description)
        check_tiles(tiles)
        # From here on there is no picture until its new description gets the name: a kill leaves none with the tiles of another.
        path.unlink(missing_ok=True)
        if tiles.exists():
            os.replace(tiles, folder / "old")
        os.replace(folder / "tiles_files", tiles)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _are_whole(tiles: Path, width: int, height: int) -> bool:
    """Whether every tile of a pyramid is there to its last byte: libvips goes on in silence when the disk is full."""
    deepest = (max(width, height) - 1).bit_length()
    for level in range(deepest + 1):
        columns, rows = (math.ceil(math.ceil(side / 2 ** (deepest - level)) / TILE) for side in (width, height))
        found = list(os.scandir(tiles / str(level)))
        if len(found) != columns * rows:
            return False
        for tile in found:
            end = ENDS[Path(tile.name).suffix]
            with open(tile.path, "rb") as file:
                if file.seek(0, os.SEEK_END) < len(end):
                    return False
                file.seek(-len(end), os.SEEK_END)
                if file.read() != end:
                    return False
    return True


def tiles_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}_files")


def check_tiles(tiles: Path) -> None:
    """Refuse to replace a folder that is no DeepZoom's, which somebody may want to keep.

    Raises:
        ImageError: it holds something else than levels of tiles.
    """
    try:
        strange = next(_not_tiles(tiles), None)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ImageError(f"{tiles}: cannot be replaced by tiles: {error.strerror}") from None
    if strange is not None:
        raise ImageError(f"{tiles}: would be replaced by tiles, but holds {strange}: choose another name")


def _not_tiles(tiles: Path) -> Iterator[str]:
    """Names in a folder that DeepZoom does not give."""
    for level in os.scandir(tiles):
        if level.name.isdecimal() and level.is_dir():
            for tile in os.scandir(level):
                if not (re.fullmatch(r"\d+_\d+\.(jpe?g|png|webp)", tile.name) and tile.is_file()):
                    yield f"{level.name}/{tile.name}"
        elif level.name != "vips-properties.xml":
            yield level.name

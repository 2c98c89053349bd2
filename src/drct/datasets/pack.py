"""Packs: a whole image set in one memory-mapped file of raw pixels.

Decoding is what makes data loading slow, so it is done once. A pack is a folder with ``pixels.bin`` (all images one after another,
H x W x 3 bytes each, RGB, row by row) and ``index.json`` (name, height, width and offset of each). Reading a crop touches only the
rows it lies in, and any number of processes share one copy in the page cache.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from drct.errors import DataError

FORMAT = "drct-pack-1"


class Pack:
    """Read-only image set; ``len(pack)``, ``pack.name(i)``, ``pack.shape(i)``, ``pack[i]`` (H x W x 3 uint8, not copied)."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            index = json.loads((self.folder / "index.json").read_text())
        except OSError as error:
            raise DataError(f"{self.folder} is not a pack: index.json cannot be read ({error.strerror})") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.folder / 'index.json'} is damaged: make the pack again with 'drct prepare'") from error
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise DataError(f"{self.folder / 'index.json'} is no index of a pack of this version ({FORMAT})")
        self._entries = _checked_entries(index.get("images"), self.folder / "index.json")
        path = self.folder / "pixels.bin"
        expected = sum(h * w * 3 for _, h, w, _ in self._entries)
        actual = path.stat().st_size if path.exists() else 0
        if actual != expected:
            raise DataError(f"{path} has {actual} bytes, but its index says {expected}: make the pack again with 'drct prepare'")
        self._pixels = np.memmap(path, np.uint8, "r") if expected else np.empty(0, np.uint8)

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, i: int) -> str:
        return self._entries[i][0]

    def shape(self, i: int) -> tuple[int, int]:
        """Height and width."""
        return self._entries[i][1:3]

    def __getitem__(self, i: int) -> np.ndarray:
        _, h, w, offset = self._entries[i]
        return self._pixels[offset : offset + h * w * 3].reshape(h, w, 3)


def _checked_entries(images: object, path: Path) -> list[tuple[str, int, int, int]]:
    """The entries of an index: name, height, width and offset of images that lie one after another."""
    entries: list[tuple[str, int, int, int]] = []
    offset = 0
    for entry in images if isinstance(images, list) else [None]:
        if not isinstance(entry, list) or [type(value) for value in entry] != [str, int, int, int]:
            raise DataError(f"{path} is damaged: make the pack again with 'drct prepare'")
        name, height, width, start = entry
        if height < 1 or width < 1 or start != offset:
            raise DataError(f"{path} is damaged ({name[:80]!r}): make the pack again with 'drct prepare'")
        entries.append((name, height, width, start))
        offset += height * width * 3
    return entries


def write_pack(folder: str | Path, images: Iterable[tuple[str, np.ndarray]], append: bool = False) -> int:
    """Write ``(name, H x W x 3 uint8)`` images to a pack and return how many it holds.

    The index is written last and renamed into place, so an interrupted run leaves no pack that looks whole.
    With ``append`` the images are added to an existing pack.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[tuple[str, int, int, int]] = []
    index = folder / "index.json"
    if append and index.exists():
        entries = list(Pack(folder)._entries)
    elif index.exists():
        index.unlink()
    offset = sum(h * w * 3 for _, h, w, _ in entries)
    with open(folder / "pixels.bin", "r+b" if entries else "wb") as file:
        file.seek(offset)
        file.truncate()
        for name, image in images:
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
                raise DataError(f"{name}: a pack holds 8-bit RGB images, not {image.dtype} of shape {image.shape}")
            file.write(np.ascontiguousarray(image).data)
            entries.append((name, image.shape[0], image.shape[1], offset))
            offset += image.size
        file.flush()
        os.fsync(file.fileno())
    partial = folder / ".index.json.part"
    partial.write_text(json.dumps({"format": FORMAT, "images": entries}))
    os.replace(partial, index)
    return len(entries)

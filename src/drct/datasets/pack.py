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
from typing import BinaryIO

import numpy as np

from drct.errors import DataError
from drct.places import locked

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

    A pack that is there already is replaced when the new one is complete; until then an interrupted run leaves it as it was.
    With ``append`` the images are added to it.

    Raises:
        DataError: the pack cannot be written, another process is writing it, or an image is of another kind.
    """
    folder = Path(folder)
    try:
        with locked(folder) as alone:
            if not alone:
                raise DataError(f"another process is writing {folder}: choose another folder, or wait for it")
            return _append(folder, images) if append and (folder / "index.json").exists() else _replace(folder, images)
    except OSError as error:
        raise DataError(f"{error.filename or folder} cannot be written ({error.strerror or error})") from error


def is_pack(folder: Path) -> bool:
    """Whether a folder holds an index of this format."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(index, dict) and str(index.get("format", "")).startswith("drct-pack")


def _replace(folder: Path, images: Iterable[tuple[str, np.ndarray]]) -> int:
    pixels, index = folder / ".pixels.bin.part", folder / ".index.json.part"
    entries: list[tuple[str, int, int, int]] = []
    try:
        with open(pixels, "wb") as file:
            _write_pixels(file, images, entries)
        _write_index(index, entries)
        # without an index there is no pack: the old one never goes with the new pixels
        (folder / "index.json").unlink(missing_ok=True)
        os.replace(pixels, folder / "pixels.bin")
        os.replace(index, folder / "index.json")
    finally:
        for path in (pixels, index):
            path.unlink(missing_ok=True)
    return len(entries)


def _append(folder: Path, images: Iterable[tuple[str, np.ndarray]]) -> int:
    entries, partial = list(Pack(folder)._entries), folder / ".index.json.part"
    before = sum(h * w * 3 for _, h, w, _ in entries)
    with open(folder / "pixels.bin", "r+b") as file:
        file.seek(before)
        try:
            _write_pixels(file, images, entries)
            _write_index(partial, entries)
        except BaseException:
            partial.unlink(missing_ok=True)
            file.truncate(before)
            raise
    os.replace(partial, folder / "index.json")
    return len(entries)


def _write_pixels(file: BinaryIO, images: Iterable[tuple[str, np.ndarray]], entries: list[tuple[str, int, int, int]]) -> None:
    """Write images where the file stands, and their entries behind those that are there."""
    offset = file.tell()
    for name, image in images:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise DataError(f"{name}: a pack holds 8-bit RGB images, not {image.dtype} of shape {image.shape}")
        file.write(np.ascontiguousarray(image).data)
        entries.append((name, image.shape[0], image.shape[1], offset))
        offset += image.size
    file.flush()
    os.fsync(file.fileno())


def _write_index(path: Path, entries: list[tuple[str, int, int, int]]) -> None:
    path.write_text(json.dumps({"format": FORMAT, "images": entries}))

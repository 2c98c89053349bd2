"""Image sets to train and validate on: folders, lists of names, packs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from drct.datasets.lmdb import LmdbSource
from drct.datasets.pack import Pack
from drct.errors import DataError


class ImageSource(Protocol):
    """A set of 8-bit RGB images."""

    def __len__(self) -> int: ...

    def name(self, i: int) -> str: ...

    def shape(self, i: int) -> tuple[int, int]:
        """Height and width of image i."""
        ...

    def __getitem__(self, i: int) -> np.ndarray:
        """Image i, H x W x 3 uint8."""
        ...


class FolderSource:
    """Images of a folder and its subfolders in order of their names; the last few stay decoded."""

    def __init__(self, folder: str | Path, names: list[str] | None = None, keep: int = 8) -> None:
        from drct.imaging import is_image_file

        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{self.folder} is not a folder of images")
        if names is None:
            paths = sorted(p for p in self.folder.rglob("*") if not p.name.startswith(".") and is_image_file(p))
        else:
            paths = [self.folder / name for name in names]
            missing = [str(p) for p in paths if not p.is_file()]
            if missing:
                raise DataError(f"{missing[0]} does not exist ({len(missing)} of {len(paths)} listed images are missing)")
        if not paths:
            raise DataError(f"{self.folder} holds no images")
        self.paths = paths
        self._shapes: dict[int, tuple[int, int]] = {}
        self._read = functools.lru_cache(maxsize=keep)(self._decode)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, i: int) -> str:
        return str(self.paths[i].relative_to(self.folder))

    def shape(self, i: int) -> tuple[int, int]:
        if i not in self._shapes:
            from drct.imaging import read_size

            self._shapes[i] = read_size(self.paths[i])
        return self._shapes[i]

    def __getitem__(self, i: int) -> np.ndarray:
        return self._read(i)

    def _decode(self, i: int) -> np.ndarray:
        return read_rgb8(self.paths[i])


class EnlargedSource:
    """Images that are at least ``minimum`` pixels on each side: smaller ones are enlarged by the bicubic, keeping their shape.

    What the published pretraining does with the small images of ImageNet.
    """

    def __init__(self, source: ImageSource, minimum: int) -> None:
        self.source = source
        self.minimum = minimum

    def __len__(self) -> int:
        return len(self.source)

    def name(self, i: int) -> str:
        return self.source.name(i)

    def shape(self, i: int) -> tuple[int, int]:
        h, w = self.source.shape(i)
        factor = max(1.0, self.minimum / min(h, w))
        return round(h * factor), round(w * factor)

    def __getitem__(self, i: int) -> np.ndarray:
        from drct.imaging import resize

        image = self.source[i]
        size = self.shape(i)
        return image if image.shape[:2] == size else resize(image, size=size)


def read_rgb8(path: Path) -> np.ndarray:
    """Any image file as H x W x 3 uint8; alpha is dropped, grey repeated, 16 bit rounded."""
    from drct.imaging import from_tensor, read, to_tensor

    pixels = read(path).pixels
    if pixels.dtype != np.uint8:
        pixels = from_tensor(to_tensor(pixels), np.dtype(np.uint8))
    return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def open_source(root: str | Path, names: list[str] | None = None) -> ImageSource:
    """Open what ``root`` is: a pack, an LMDB data base (``NAME.lmdb``) or a folder, of which ``names`` are the images to use."""
    root = Path(root)
    if not root.exists():
        raise DataError(f"{root} does not exist")
    if (root / "index.json").is_file() and (root / "pixels.bin").is_file():
        if names is not None:
            raise DataError(f"{root} is a pack: meta_info_file goes with folders only")
        return Pack(root)
    if root.suffix == ".lmdb":
        if names is not None:
            raise DataError(f"{root} has a list of its own: meta_info_file goes with folders only")
        return LmdbSource(root)
    return FolderSource(root, names)


def listed_names(meta_info_file: str | Path) -> list[str]:
    """Names of images, one per line."""
    try:
        lines = Path(meta_info_file).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{meta_info_file} cannot be read as a list of images ({reason})") from error
    # published lists carry sizes behind the name: "0001_s001.png (480,480,3)"
    return [line.split(" ")[0] for line in lines if line.strip()]


@contextlib.contextmanager
def at_option(key: str | None) -> Iterator[None]:
    """Let data errors begin with the key of the option file that is to be corrected: one path may stand at several."""
    try:
        yield
    except DataError as error:
        if key is None:
            raise
        raise DataError(f"{key}: {error}") from error


def check_pairs(gt: ImageSource, lq: ImageSource, scale: int) -> None:
    """Make sure that every GT image has its LR image of the right size; the first that has not is named."""
    if len(gt) != len(lq):
        raise DataError(f"{len(gt)} GT images and {len(lq)} LR images: the folders do not belong together")
    for i in range(len(gt)):
        (h, w), (lh, lw) = gt.shape(i), lq.shape(i)
        if (h // scale, w // scale) != (lh, lw):
            raise DataError(f"{gt.name(i)} is {w} x {h}, but its LR {lq.name(i)} is {lw} x {lh}: not 1/{scale} of it")

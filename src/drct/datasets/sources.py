"""Image sets to train and validate on: folders, lists of names, packs."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from drct.datasets.lmdb import LmdbSource
from drct.datasets.pack import Pack
from drct.datasets.rgb8 import rgb8
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
    """Images of a folder and its subfolders in order of their names, or of ``names``; the last few stay decoded.

    Behind each of the names further columns may stand, as in lists (:func:`listed_names`).
    """

    def __init__(self, folder: str | Path, names: list[str] | None = None, keep: int = 8) -> None:
        from drct.imaging import is_image_file

        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise DataError(f"{self.folder} is not a folder of images")
        if names is None:
            paths = sorted(p for p in _files(self.folder) if not _hidden(p.relative_to(self.folder)) and is_image_file(p))
        else:
            found = [_listed(self.folder, name) for name in names]
            paths = [path for path in found if path is not None]
            if len(paths) < len(names):
                first = self.folder / names[found.index(None)]
                missing = len(names) - len(paths)
                raise DataError(f"{first} does not exist ({missing} of {len(names)} listed images are missing)")
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


def _listed(folder: Path, line: str) -> Path | None:
    """The file that a line of a list names: as a whole, or by what stands before its first blank; None if there is none."""
    for name in (line, re.split(r"\s", line, maxsplit=1)[0]):
        if (folder / name).is_file():
            return folder / name
    return None


def _files(folder: Path) -> Iterator[Path]:
    """All files below a folder, also behind links, as sets are put together from others; links in a circle end."""
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(place)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        yield from (Path(place) / name for name in files)


def _hidden(path: Path) -> bool:
    """Whether it or a folder that it lies in is, as of notebooks that keep copies."""
    return any(part.startswith(".") for part in path.parts)


class EnlargedSource:
    """Images that are at least ``minimum`` pixels on each side: smaller ones are enlarged by the bicubic, keeping their shape.

    What becomes of the small images of ImageNet; the published pretraining stretches each side by itself.
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
    """Any image file as :func:`drct.datasets.rgb8.rgb8` has it."""
    from drct.imaging import read

    return rgb8(read(path), str(path))


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
    """Names of images, one per line. What stands behind a name other than its size is left to the folder, which knows its files."""
    try:
        lines = Path(meta_info_file).read_text(encoding="utf-8-sig").split("\n")  # names may hold other ends of lines
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{meta_info_file} cannot be read as a list of images ({reason})") from error
    # published lists carry sizes behind the name: "0001_s001.png (480,480,3)"
    names = [re.sub(r"\s+\(\d+,\s*\d+(,\s*\d+)?\).*$", "", line).strip() for line in lines if line.strip()]
    if not names:
        raise DataError(f"{meta_info_file} lists no images")
    if absolute := next((name for name in names if os.path.isabs(name)), None):
        raise DataError(f"{meta_info_file} names {absolute}, but names in it must be relative to the folder of the images")
    return names


@contextlib.contextmanager
def at_option(key: str | None) -> Iterator[None]:
    """Let data errors begin with the key of the option file that is to be corrected: one path may stand at several."""
    try:
        yield
    except DataError as error:
        if key is None:
            raise
        raise DataError(f"{key}: {error}") from error


class ReorderedSource:
    """Some images of a source, in an order of their own."""

    def __init__(self, source: ImageSource, order: list[int]) -> None:
        self.source, self.order = source, order

    def __len__(self) -> int:
        return len(self.order)

    def name(self, i: int) -> str:
        return self.source.name(self.order[i])

    def shape(self, i: int) -> tuple[int, int]:
        return self.source.shape(self.order[i])

    def __getitem__(self, i: int) -> np.ndarray:
        return self.source[self.order[i]]


def name_parts(name: str) -> tuple[str, str]:
    """Name of an image without the suffix of its format, and which piece it is (``_s001``, empty for whole images)."""
    from drct.imaging import is_image_file

    # packs call pieces "0001.png_s001"; "frame.0001" has no suffix
    plain = re.sub(r"\.[A-Za-z0-9]+(?=(_s\d+)?$)", lambda m: "" if is_image_file(f"x{m[0]}") else m[0], name)
    piece = re.search(r"_s\d+$", plain)
    return (plain[: piece.start()], piece[0]) if piece else (plain, "")


def lq_key(name: str, scale: int) -> str:
    """Name of an LR image as its GT image has it: without suffix and without ``x4`` at its end."""
    stem, piece = name_parts(name)
    return stem.removesuffix(f"x{scale}") + piece


def pair_up(gt: ImageSource, lq: ImageSource, scale: int, template: str = "{}", *, subset: bool = False) -> ImageSource:
    """Bring LR images into the order of their GT images.

    Args:
        gt, lq: suffixes of formats play no part in the names.
        scale: LR names may end in ``x4`` for scale 4, unless a template is given.
        template: ``filename_tmpl`` of BasicSR: the LR name made from that of GT, for example ``{}x4``. ``{}`` is no template.
        subset: ``gt`` holds only some of the images, so that further LR images are no fault.

    Raises:
        DataError: naming the first image that has no partner, or several.
    """
    order: list[int] = []
    for i, (found, wanted) in enumerate(find_partners(gt, lq, scale, template)):
        if len(found) != 1:
            what = f"LR images {lq.name(found[0])} and {lq.name(found[1])}" if found else f"no LR image '{wanted}'"
            hint = "filename_tmpl says how LR images are called" if template == "{}" else f"filename_tmpl is '{template}'"
            raise DataError(f"{len(gt)} GT images and {len(lq)} LR images: {gt.name(i)} has {what} ({hint})")
        order += found
    if not subset and (extra := sorted(set(range(len(lq))) - set(order))):
        raise DataError(f"{len(gt)} GT images and {len(lq)} LR images: {lq.name(extra[0])} has no GT image")
    return lq if order == list(range(len(lq))) else ReorderedSource(lq, order)


def find_partners(gt: ImageSource, lq: ImageSource, scale: int, template: str = "{}") -> Iterator[tuple[list[int], str]]:
    """For each GT image the LR images that are called as its own, and how it was looked for; arguments as :func:`pair_up`."""
    names = [lq.name(i) for i in range(len(lq))]
    plain = _by_key("".join(name_parts(name)) for name in names)
    # names that are the same count before those that differ by "x4": ground truth may be called so too
    tables = plain, _by_key(lq_key(name, scale) for name in names) if template == "{}" else plain
    for i in range(len(gt)):
        name = gt.name(i)
        stem, piece = name_parts(name)
        folder, _, last = stem.rpartition("/")
        folder += "/" if folder else ""
        # of "0001_s001" BasicSR makes "0001_s001x4", and a pack of LR images "0001x4_s001"
        wanted = [folder + template.format(last + piece), folder + template.format(last) + piece]
        found = next((table[key] for table, key in zip(tables, wanted, strict=True) if key in table), [])
        if len(found) > 1:
            found = [j for j in found if names[j] == name] or found
        yield found, wanted[0]


def _by_key(keys: Iterable[str]) -> dict[str, list[int]]:
    table: dict[str, list[int]] = {}
    for i, key in enumerate(keys):
        table.setdefault(key, []).append(i)
    return table


def check_pairs(gt: ImageSource, lq: ImageSource, scale: int) -> None:
    """Make sure that every GT image has its LR image, at the same place, of the right size; the first that has not is named."""
    if len(gt) != len(lq):
        raise DataError(f"{len(gt)} GT images and {len(lq)} LR images: the folders do not belong together")
    for i in range(len(gt)):
        (h, w), (lh, lw) = gt.shape(i), lq.shape(i)
        if (h // scale, w // scale) != (lh, lw):
            raise DataError(f"{gt.name(i)} is {w} x {h}, but its LR {lq.name(i)} is {lw} x {lh}: not 1/{scale} of it")

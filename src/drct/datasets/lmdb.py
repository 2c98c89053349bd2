"""LMDB data bases in the layout that BasicSR reads and writes.

A folder ``NAME.lmdb`` with ``data.mdb``, ``lock.mdb`` and ``meta_info.txt``, whose lines are ``NAME.png (H,W,C) LEVEL``; the key of
an image is its name without suffix, the value a PNG file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from drct.datasets.rgb8 import rgb8
from drct.errors import DataError, MissingDependencyError
from drct.imaging import read_bytes
from drct.imaging.memory import encode_png
from drct.places import locked

COMPRESSION = 1  # of the PNG files; the layout's usual level
LARGEST = 1 << 40  # bytes of address space; the file grows only as far as it is filled
BATCH = 200  # images per transaction
LOCKS = 1 << 16  # bytes that must be free for the file of locks, which LMDB maps
LOCK = ".lock"  # of drct.places.locked
PARTIAL_INFO = ".meta_info.txt.part"
PARTS = ("data.mdb", "lock.mdb", PARTIAL_INFO)  # of a data base that is being written


def _open(path: Path, **options: Any) -> Any:
    try:
        import lmdb
    except ImportError as error:
        raise MissingDependencyError("LMDB data bases need the package lmdb: pip install 'drct[train]'") from error
    try:
        return lmdb.open(str(path), **options)
    except lmdb.Error as error:
        raise DataError(f"{path} cannot be opened as LMDB ({error})") from None


def _reader(path: Path, process: int) -> Any:
    """The environment of a data base. LMDB allows one per process, and none may be used across a fork.

    Where the data base was made anew since it was opened, it is opened again.
    """
    with _opening:  # threads of a loader come at once
        try:
            status = (path / "data.mdb").stat()
        except OSError as error:
            raise DataError(f"{path} cannot be opened as LMDB ({error.strerror})") from error
        version = status.st_dev, status.st_ino, status.st_mtime_ns
        known = _environments.get((path, process))
        if known is not None and known[0] == version:
            return known[1]
        if known is not None:
            del _environments[path, process]
            known[1].close()
        environment = _opened(path)
        _environments[path, process] = version, environment
        return environment


_opening = threading.Lock()
_environments: dict[tuple[Path, int], tuple[tuple[int, int, int], Any]] = {}


def _opened(path: Path) -> Any:
    environment = _open(path, readonly=True, lock=False, readahead=False, meminit=False)
    # the file is mapped into memory, where reading beyond its end kills the process
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if (path / "data.mdb").stat().st_size < needed:
        raise DataError(f"{path} is cut off: data.mdb has {(path / 'data.mdb').stat().st_size} bytes of {needed}")
    return environment


class LmdbSource:
    """Images of a data base in the order of its ``meta_info.txt``; see :class:`drct.datasets.sources.ImageSource`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        info = self.path / "meta_info.txt"
        try:
            lines = info.read_text(encoding="utf-8").split("\n")  # names may hold other ends of lines
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{info} cannot be read ({getattr(error, 'strerror', None) or error})") from error
        self._entries: list[tuple[str, int, int]] = []
        for line in filter(str.strip, lines):
            match = re.fullmatch(r"(.+?)(\.\w+)? \((\d+),(\d+),\d+\)( \d+)?\s*", line)
            if match is None:
                raise DataError(f"{info} has a line that is not 'NAME.png (H,W,C) LEVEL': {line[:80]!r}")
            self._entries.append((match[1], int(match[3]), int(match[4])))
        if not self._entries:
            raise DataError(f"{self.path} holds no images")

    def __len__(self) -> int:
        return len(self._entries)

    def name(self, i: int) -> str:
        return self._entries[i][0]

    def shape(self, i: int) -> tuple[int, int]:
        return self._entries[i][1:]

    def __getitem__(self, i: int) -> np.ndarray:
        name, h, w = self._entries[i]
        data = self._value(name)
        if data is None:
            raise DataError(f"{self.path} has no image '{name}', which its meta_info.txt lists")
        image = rgb8(read_bytes(data, f"{self.path}:{name}"), f"{self.path}:{name}")
        if image.shape[:2] != (h, w):
            raise DataError(f"{self.path}: '{name}' is {image.shape[1]} x {image.shape[0]}, but meta_info.txt says {w} x {h}")
        return image

    def _value(self, name: str) -> bytes | None:
        environment = _reader(self.path.resolve(), os.getpid())
        import lmdb

        try:
            with environment.begin() as transaction:
                data: bytes | None = transaction.get(name.encode())
                return data
        except lmdb.Error as error:  # a damaged page, for one
            raise DataError(f"{self.path}: '{name}' cannot be read ({error}): make the data base again") from None


def write_lmdb(path: str | Path, images: Iterable[tuple[str, np.ndarray]]) -> int:
    """Write ``(name, H x W x 3 uint8)`` images to a new data base; returns how many. ``meta_info.txt`` is written last.

    An interrupted run leaves nothing, and what one leaves that was killed is replaced.

    Raises:
        DataError: there is one already, another process is writing it, it cannot be written, two images have the same key, or a
            name is none that a line of ``meta_info.txt`` can hold.
    """
    path = Path(path)
    if (path / "data.mdb").exists() and not is_unfinished(path):
        raise DataError(f"{path} exists already: remove it or choose another name")
    try:
        with locked(path) as alone:
            if not alone:
                raise DataError(f"another process is writing {path}: choose another name, or wait for it")
            if (path / "meta_info.txt").exists():  # of one that has just finished
                raise DataError(f"{path} exists already: remove it or choose another name")
            return _write(path, images)
    except OSError as error:
        raise DataError(f"{error.filename or path} cannot be written ({error.strerror or error})") from error


def is_unfinished(path: Path) -> bool:
    """Whether a folder holds nothing but what :func:`write_lmdb` leaves when it is killed.

    Its lock is among that: without, a data base is somebody else's, since others have no ``meta_info.txt``.
    """
    names = {entry.name for entry in path.iterdir()}
    return LOCK in names and names <= {LOCK, *PARTS}


def _write(path: Path, images: Iterable[tuple[str, np.ndarray]]) -> int:
    with _removed_after_errors(path):
        for name in PARTS:
            (path / name).unlink(missing_ok=True)
        lines = _write_images(path, images)
        partial = path / PARTIAL_INFO
        partial.write_text("".join(lines), encoding="utf-8")
        os.replace(partial, path / "meta_info.txt")
    return len(lines)


@contextlib.contextmanager
def _removed_after_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        for name in PARTS:
            (path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other things lie in it
            (path / LOCK).unlink(missing_ok=True)
            path.rmdir()
        raise


def _write_images(path: Path, images: Iterable[tuple[str, np.ndarray]]) -> list[str]:
    """Fill a new data base; returns the lines of its ``meta_info.txt``."""
    lines: list[str] = []
    names: dict[str, str] = {}
    if shutil.disk_usage(path).free < LOCKS:  # LMDB would die of SIGBUS
        raise DataError(f"{path} cannot be written ({os.strerror(errno.ENOSPC)})")
    environment = _open(path, map_size=LARGEST)
    import lmdb

    try:
        transaction = environment.begin(write=True)
        for name, image in images:
            key = re.sub(r"\.\w{3,4}(?=$|_s\d+$)", "", name)  # "a.png" and its piece "a.png_s001" become "a" and "a_s001"
            if key in names:
                raise DataError(f"{names[key]} and {name} would have the same key '{key}' in {path}: rename one of them")
            names[key] = name
            if "\n" in key or "\r" in key:
                raise DataError(f"{name}: its name holds the end of a line, which meta_info.txt cannot: rename it")
            try:
                place = key.encode()
            except UnicodeEncodeError:
                raise DataError(f"{name}: its name is not UTF-8, as keys of LMDB are: rename it") from None
            transaction.put(place, encode_png(image, COMPRESSION))
            lines.append(f"{key}.png ({image.shape[0]},{image.shape[1]},3) {COMPRESSION}\n")
            if len(lines) % BATCH == 0:
                transaction.commit()
                transaction = environment.begin(write=True)
        transaction.commit()
    except lmdb.Error as error:
        raise DataError(f"{path} cannot be written as LMDB ({error})") from None
    finally:
        environment.close()  # what was not committed is dropped
    return lines

"""Files that appear whole or not at all: temporary names, locks, and what a killed run left behind."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Literal, TextIO

from drct.errors import ImageError
from drct.imaging.formats import format_of

try:
    import fcntl
except ImportError:  # Windows, where an open file cannot be removed anyway
    fcntl = None  # type: ignore[assignment]

NAME_BYTES = 255  # longest file name of common file systems
STALE_SECONDS = 24 * 3600  # where the file system has no locks, a temporary file untouched for so long is taken for left behind


def part_path(path: str | os.PathLike[str]) -> Path:
    """The temporary name ``.NAME.part`` beside ``path``, which no folder walk takes for an image; a long NAME becomes a hash."""
    path = Path(path)
    name = f".{path.name}.part"
    if len(os.fsencode(name)) > NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        name = f".{digest}{path.suffix[:16]}.part"
    return path.with_name(name)


@contextlib.contextmanager
def replacing_text(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A text file open for writing that takes the name ``path`` when the block ends well, and vanishes when it does not.

    For what is written about images. Devices, pipes and what links lead to are written in place. Missing folders are made; bytes
    of file names that are no UTF-8 become ``\\udcNN``.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink() or (path.exists() and not path.is_file()):  # such as /dev/stdout, whose name must not be taken
        with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
        return
    part = part_path(path)
    try:
        with part.open("w", encoding="utf-8", errors="backslashreplace") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def remove_stale_parts(folder: str | os.PathLike[str]) -> list[Path]:
    """Remove temporary files that killed runs left in a folder; those that a live process is writing (it holds a lock) stay.

    Only names that :func:`part_path` gives to image files are touched.

    Returns:
        The removed files, sorted.
    """
    removed = []
    try:
        candidates = sorted(
            p for p in Path(folder).iterdir() if p.name.startswith(".") and p.suffix == ".part" and format_of(p.stem)
        )
    except OSError:
        return []  # a folder that is not there, or not to be read, holds nothing to remove
    for part in candidates:
        try:
            with part.open("r+b") as file:
                lock = _lock(file, part)
                if lock == "held" or (lock == "none" and time.time() - part.stat().st_mtime > STALE_SECONDS):
                    part.unlink()
                    removed.append(part)
        except OSError:
            continue  # gone meanwhile, or not ours to remove
    return removed


def _lock(file: IO[bytes] | io.FileIO, part: Path) -> Literal["held", "busy", "gone", "none"]:
    """Try to take the lock of a temporary file, which the system drops when its process ends, however it ends.

    Returns:
        ``held``; ``busy`` when another process has it; ``gone`` when the file lost its name between opening and locking; ``none``
        when there are no locks on this system.
    """
    if fcntl is None:
        return "none"
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "busy"
    except OSError:
        return "none"
    try:
        return "held" if os.path.samestat(os.fstat(file.fileno()), part.stat()) else "gone"
    except FileNotFoundError:
        return "gone"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Part]:
    """A temporary file open for writing that takes the name ``path`` when the block ends well, and vanishes when it does not."""
    part = part_path(path)
    if os.path.isdir(path):  # unlike Path.is_dir false, and no error, for impossible names
        raise ImageError(f"{path}: cannot be written: it is a folder")
    with _locked(path, part) as file:
        try:
            file.truncate(0)
            keep_permissions(part, path)
            yield file
            os.fsync(file.fileno())
            if fcntl is None:
                file.close()  # Windows renames no open file
            os.replace(part, path)
        except BaseException as error:
            with contextlib.suppress(OSError, ValueError):
                file.truncate(0)  # an encoder may hold a copy of the descriptor, and the room that the file takes, for a while
            if fcntl is None:
                file.close()
            with contextlib.suppress(OSError):
                part.unlink()
            if isinstance(error, OSError):
                raise ImageError(f"{path}: cannot be written: {error.strerror or error}") from None
            raise
    _sync_folder(path.parent)


def keep_permissions(part: Path, path: Path) -> None:
    """Give a temporary file the permissions of the file whose name it will take, if there is one: what was private stays so.

    Its owner may write it in any case, as a later run must if this one is killed.
    """
    with contextlib.suppress(OSError):  # there is none, or the file system knows no permissions
        part.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IWUSR)


class Part(io.FileIO):
    """A file whose ``write`` writes all or fails; that of FileIO stops half way, without a word, when the disk gets full."""

    def write(self, data: Any) -> int:
        view = memoryview(data)
        done = 0
        while done < len(view):
            done += super().write(view[done:]) or 0
        return done


def _locked(path: Path, part: Path) -> Part:
    while True:
        try:
            # Neither emptied before the lock is held, nor in append mode, where TIFF could not go back to fill in its directory.
            file = Part(os.open(part, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+")
        except (OSError, ValueError) as error:
            raise ImageError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from None
        lock = _lock(file, part)
        if lock in ("held", "none"):
            return file
        file.close()
        if lock == "busy":
            raise ImageError(f"{path}: cannot be written: another process or thread is writing it")
        # Another process removed or finished the file of that name just then: the next one will be ours.


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power cut, where the system can."""
    if fcntl is None:
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

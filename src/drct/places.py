"""Where files are kept and written; for every room that keeps or writes any."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from drct.errors import Error, OptionError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # what writing to a full or failing disk ends with


def platform_caches() -> Path:
    """The platform's folder for what can be made or fetched again, on Linux ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Of a user without a home it is not absolute, and holds nothing.
    """
    home = Path(os.path.expanduser("~"))  # unlike Path.home no error for a user without a home
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    if sys.platform == "darwin":
        return home / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")


def cache_folder(kind: str) -> Path:
    """Where things of a kind are kept: ``$DRCT_CACHE/KIND``, else ``drct/KIND`` in the platform's folder. It may not exist yet.

    Raises:
        OptionError: nothing is set, and the user has no home.
    """
    if chosen := os.environ.get("DRCT_CACHE"):
        return Path(os.path.expanduser(chosen)) / kind
    folder = platform_caches() / "drct" / kind
    if not folder.is_absolute():
        raise OptionError("there is no home folder to keep files in: set DRCT_CACHE to a folder")
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Inside, no other process is in here with the folder, or False is given; the system lets go of it however the process ends.

    The folder is made. Where the file system has no locks, all are alone.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:  # stays, since others may be about to open it
        alone = True
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                alone = False
            except OSError:
                pass
        yield alone


def check_folder(folder: Path) -> None:
    """Create a folder in which files are written later, and make sure that they can be.

    Raises:
        OptionError: they cannot.
        Error: the disk is full.
    """
    with written(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            read_only = hasattr(os, "statvfs") and os.statvfs(folder).f_flag & os.ST_RDONLY
            number = errno.EROFS if read_only else errno.EACCES
            raise PermissionError(number, os.strerror(number))


def check_place(path: Path) -> None:
    """Create the folder of a file that is written later, and make sure that it can be.

    Raises:
        OptionError: it cannot.
        Error: the disk is full.
    """
    with written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not os.path.exists(path)
        path.open("a").close()
        if new:
            path.unlink()


@contextlib.contextmanager
def written(path: Path) -> Iterator[None]:
    """Inside, a file or folder of results that cannot be written is told in one line.

    Raises:
        OptionError: it cannot be at this place.
        Error: the disk is full, or fails.
    """
    try:
        yield
    except OSError as error:
        told = f"{path} cannot be written ({error.strerror or error})"
        raise (Error(told) if error.errno in FULL else OptionError(f"{told}: choose another place")) from error

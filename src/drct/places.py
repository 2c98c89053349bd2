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

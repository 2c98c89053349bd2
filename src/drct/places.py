"""Folders of the user in which things are kept; for every room that keeps any."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from drct.errors import OptionError


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

"""Packages that only explanations need, imported when a figure is drawn."""

from __future__ import annotations

import importlib
from typing import Any

from drct.errors import MissingDependencyError

PACKAGES = {"matplotlib": "matplotlib", "PIL": "Pillow"}


def need(module: str) -> Any:
    """Import a module of the extra ``explain``.

    Raises:
        MissingDependencyError: its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = PACKAGES[module.partition(".")[0]]
        raise MissingDependencyError(f"'drct explain' needs {package}: pip install 'drct[explain]'") from error

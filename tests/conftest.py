"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with the benchmark images and reference values that are not part of the repository."""
    folder = Path(os.environ.get("DRCT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"reference values not found in {folder} (set DRCT_SHARED)")
    return folder

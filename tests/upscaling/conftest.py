"""Networks for the tests of this room."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from upscaling_helpers import Nursery, tiny_network

from drct.networks import SuperResolutionNetwork
from drct.weights import save_network


@pytest.fixture(scope="session")
def network() -> SuperResolutionNetwork:
    return tiny_network()


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight file of a tiny x4 network."""
    path = tmp_path_factory.mktemp("models") / "tiny-x4.safetensors"
    save_network(tiny_network(), path)
    return path


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a family of tiny networks x2, x3 and x4 in the user's models folder."""
    folder = tmp_path / "models"
    folder.mkdir()
    for scale in (2, 3, 4):
        save_network(tiny_network(scale), folder / f"tiny-x{scale}.safetensors")
    monkeypatch.setenv("DRCT_MODELS", str(folder))
    return "tiny"


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Processes of the command line at short notice."""
    nursery = Nursery(tmp_path_factory.mktemp("nursery") / "log.txt")
    yield nursery
    nursery.close()


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """As ``tmp_path``, in memory where there is a file system for it: what waits for the disk a hundred times ends soon."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        yield Path(folder)

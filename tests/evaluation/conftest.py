"""Images and weights for the metrics' tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pyvips
import torch
from torch import Tensor

from drct.evaluation import benchmark, no_reference, perceptual
from drct.imaging import resize
from drct.networks import create_network
from drct.weights import save_network


@pytest.fixture(scope="session")
def read() -> Callable[[Path], Tensor]:
    """Read an 8-bit RGB file as ``(1, 3, H, W)`` uint8."""
    return lambda path: torch.from_numpy(np.array(pyvips.Image.new_from_file(str(path)).numpy())).permute(2, 0, 1)[None]


@pytest.fixture(scope="session")
def nearest_pair(shared: Path, read: Callable[[Path], Tensor]) -> Callable[[str], tuple[Tensor, Tensor]]:
    """Nearest x4 of the published LR image of Set5, and the ground truth cropped to its size."""

    def pair(name: str) -> tuple[Tensor, Tensor]:
        folder = shared / "data/benchmarks/Set5"
        lr = read(folder / "LR_bicubic/X4" / name.replace(".png", "x4.png"))
        sr = lr.repeat_interleave(4, 2).repeat_interleave(4, 3)
        return sr, read(folder / "HR" / name)[..., : sr.shape[2], : sr.shape[3]]

    return pair


@pytest.fixture
def metric_weights(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the metrics' weights: ``DRCT_WEIGHTS``, or the one beside the reference values."""
    folder = Path(os.environ.get("DRCT_WEIGHTS", shared / "weights"))
    monkeypatch.setenv("DRCT_WEIGHTS", str(folder))
    perceptual._weights.cache_clear()
    no_reference._model.cache_clear()
    return folder


@pytest.fixture
def need(metric_weights: Path) -> Callable[..., None]:
    """Skip the test unless one of the named files is among the metrics' weights."""

    def check(*names: str) -> None:
        if not any((metric_weights / name).is_file() for name in names):
            pytest.skip(f"none of {', '.join(names)} in {metric_weights} (set DRCT_WEIGHTS)")

    return check


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of the test's own for unfinished runs; compiled kernels stay where they are."""
    monkeypatch.setattr(benchmark, "cache_folder", lambda kind: tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def picture() -> Callable[..., np.ndarray]:
    """Make a smooth random picture, ``(height, width, channels)`` uint8, the same for the same seed."""

    def make(height: int = 48, width: int = 40, channels: int = 3, seed: int = 0) -> np.ndarray:
        coarse = np.random.default_rng(seed).integers(0, 256, (6, 5, channels), dtype=np.uint8)
        return np.clip(resize(coarse.astype(np.float64), size=(height, width)), 0, 255).astype(np.uint8)

    return make


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weight file of a very small DRCT x4 with random weights."""
    torch.manual_seed(0)
    network = create_network("drct", scale=4, embed_dim=12, depths=[1], num_heads=[2], window_size=4, gc=4)
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_network(network, path)
    return path

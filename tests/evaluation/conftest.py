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

from drct.evaluation import no_reference, perceptual


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

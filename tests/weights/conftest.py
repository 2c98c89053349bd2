"""Small networks and a models folder of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drct.networks import SuperResolutionNetwork, create_network

from .strategies import TINY


@pytest.fixture
def tiny() -> SuperResolutionNetwork:
    """A DRCT by the published rules with weights that differ everywhere."""
    torch.manual_seed(0)
    network = create_network("drct", scale=2, **TINY).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models folder."""
    folder = tmp_path / "models"
    folder.mkdir()
    monkeypatch.setenv("DRCT_MODELS", str(folder))
    return folder

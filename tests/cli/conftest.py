"""A weight file for tests of the verbs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drct.networks import create_network
from drct.weights import save_network


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A very small x4 network with random weights."""
    torch.manual_seed(0)
    network = create_network(
        "drct", scale=4, embed_dim=8, gc=4, depths=[1], num_heads=[2], window_size=4, upsampler="pixelshuffledirect"
    )
    path = tmp_path_factory.mktemp("models") / "tiny-x4.safetensors"
    save_network(network, path)
    return path

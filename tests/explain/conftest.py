"""Networks for explanations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from drct.imaging import Picture, write
from drct.networks import create_network
from drct.weights import save_network

TINY = {"embed_dim": 8, "gc": 4, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Very small networks with random weights: DRCT x4 and SwinIR x2."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    swinir = {key: value for key, value in TINY.items() if key != "gc"}
    networks = {
        "tiny-drct": create_network("drct", scale=4, **TINY),
        "tiny-swinir": create_network("swinir", scale=2, upsampler="pixelshuffledirect", **swinir),
    }
    paths = []
    for name, network in networks.items():
        paths.append(folder / f"{name}.safetensors")
        save_network(network, paths[-1])
    return paths


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A smooth picture with some noise, 50 x 42 pixels."""
    rng = np.random.default_rng(0)
    ys, xs = np.mgrid[:42, :50]
    pixels = 120 + 60 * np.sin(xs / 5)[..., None] * np.cos(ys / 7)[..., None] + rng.normal(0, 12, (42, 50, 3))
    path = tmp_path_factory.mktemp("images") / "waves.png"
    write(path, Picture(pixels.clip(0, 255).astype(np.uint8)))
    return path

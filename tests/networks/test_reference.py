"""Every network against the values of its published implementation."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from drct.networks import SuperResolutionNetwork, create_network

SMALL = {"embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4, "window_size": 8, "gc": 16}
CASES: dict[str, tuple[str, int, dict]] = {
    "drct_x4": ("drct", 4, {}),
    "drct_x3": ("drct", 3, {}),
    "drct_x2": ("drct", 2, {}),
    "drct_l_x4": ("drct_l", 4, {}),
    "drct_xl_x4": ("drct_xl", 4, {}),
    "drct_small_x4": ("drct", 4, SMALL),
    "swinir_classical_x4": ("swinir", 4, {}),
    "swinir_light_x2": ("swinir_light", 2, {}),
    "swinir_real_x4": ("swinir_real", 4, {}),
    "hat_x4": ("hat", 4, {}),
    "hat_s_x4": ("hat_s", 4, {}),
    "hat_l_x4": ("hat_l", 4, {}),
}


def build(case: str) -> SuperResolutionNetwork:
    name, scale, options = CASES[case]
    return create_network(name, scale=scale, **options).eval()


@pytest.mark.parametrize("case", CASES)
def test_output_equals_the_published_implementation(case: str, shared: Path, seeded: ModuleType) -> None:
    reference = np.load(shared / "reference" / "networks.npz")
    network = seeded.fill(build(case))
    sizes = [name.split("/")[1] for name in reference.files if name.startswith(f"{case}/") and name.endswith("/x")]
    assert sizes
    for size in sizes:
        x, y = (torch.from_numpy(reference[f"{case}/{size}/{part}"]) for part in "xy")
        with torch.inference_mode():
            assert (network(x) - y).abs().max() < 1e-4, size


@pytest.mark.parametrize("case", CASES)
def test_parameter_count_and_names(case: str, shared: Path) -> None:
    published = json.loads((shared / "reference" / "networks.json").read_text())[case]
    with torch.device("meta"):  # shapes are enough, and initial values of 41 million weights take their time
        network = build(case)
    assert sum(p.numel() for p in network.parameters()) == published["parameters"]
    assert len(network.state_dict()) == published["param_keys"]

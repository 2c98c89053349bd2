"""Kernels, filters, JPEG and sharpening against published implementations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drct.degradation import filter2d, jpeg, usm_sharpen
from drct.degradation.kernels import blur_kernels, sinc_kernels

KINDS = ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]


@pytest.fixture(scope="module")
def values(shared: Path) -> Any:
    return np.load(shared / "reference" / "imaging.npz")


@pytest.fixture(scope="module")
def arguments(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "reference" / "imaging.json").read_text())["kernels"]


@pytest.mark.parametrize("kind", KINDS)
def test_blur_kernels(kind: str, values: Any, arguments: dict[str, Any]) -> None:
    a = arguments[kind]
    kernel = blur_kernels(a["kernel_size"], a["sig_x"], a["sig_y"], a["theta"], a.get("beta", 1.0), kind.startswith("plateau"))
    np.testing.assert_allclose(kernel[0], values[f"kernel/{kind}"], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", ["sinc", "sinc_padded"])
def test_sinc_kernels(name: str, values: Any, arguments: dict[str, Any]) -> None:
    a = arguments[name]
    kernel = sinc_kernels(a["cutoff"], a["kernel_size"], a["pad_to"])
    np.testing.assert_allclose(kernel[0], values[f"kernel/{name}"], rtol=0, atol=1e-8)


def test_kernels_of_a_batch_are_those_of_single_ones(values: Any, arguments: dict[str, Any]) -> None:
    several = [arguments[kind] for kind in KINDS]
    batch = blur_kernels(
        [a["kernel_size"] for a in several],
        [a["sig_x"] for a in several],
        [a["sig_y"] for a in several],
        [a["theta"] for a in several],
        [a.get("beta", 1.0) for a in several],
        [kind.startswith("plateau") for kind in KINDS],
        pad_to=21,
    )
    for kind, kernel in zip(KINDS, batch, strict=True):
        border = (21 - arguments[kind]["kernel_size"]) // 2
        np.testing.assert_allclose(kernel, np.pad(values[f"kernel/{kind}"], border), rtol=0, atol=1e-8)


def test_filter(values: Any) -> None:
    y = filter2d(torch.from_numpy(values["ops/x"]), torch.from_numpy(values["kernel/aniso"]))
    np.testing.assert_allclose(y, values["ops/filter2d_aniso"], rtol=0, atol=1e-5)


def test_sharpening(values: Any) -> None:
    np.testing.assert_allclose(usm_sharpen(torch.from_numpy(values["ops/x"])), values["ops/usm_sharp"], rtol=0, atol=1e-5)


def test_jpeg(values: Any) -> None:
    x = torch.from_numpy(values["ops/x"]).expand(3, -1, -1, -1)
    y = jpeg(x, torch.tensor([30.0, 75.0, 95.0]))
    for image, quality in zip(y, (30, 75, 95), strict=True):
        np.testing.assert_allclose(image, values[f"ops/jpeg_q{quality}"][0], rtol=0, atol=1e-5)

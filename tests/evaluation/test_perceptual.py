"""LPIPS and DISTS against published implementations, and where their weights come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from drct.errors import DataError, OptionError
from drct.evaluation import dists, lpips

Pair = Callable[[str], tuple[Tensor, Tensor]]

# nearest x4 of Set5 against HR by the authors' DISTS program with the half-precision VGG16 weights of the LPIPS reference
DISTS_VALUES = {"bird.png": 0.3650960922241211, "butterfly.png": 0.3564389944076538}


@pytest.mark.parametrize("index", range(5))
def test_lpips_alex_has_the_published_values(shared: Path, metric_weights: Path, nearest_pair: Pair, index: int) -> None:
    reference = json.loads((shared / "reference/imaging.json").read_text())["lpips"]["values"][index]
    assert lpips(*nearest_pair(reference["image"])).item() == pytest.approx(reference["lpips_alex"], abs=1e-4)


@pytest.mark.parametrize("index", [1, 2])
def test_lpips_vgg_has_the_published_values(shared: Path, need: Callable[..., None], nearest_pair: Pair, index: int) -> None:
    need("vgg16_features.safetensors")
    reference = json.loads((shared / "reference/imaging.json").read_text())["lpips"]["values"][index]
    sr, gt = nearest_pair(reference["image"])
    assert lpips(sr / 255, gt / 255, net="vgg").item() == pytest.approx(reference["lpips_vgg"], abs=1e-4)


@pytest.mark.parametrize("name", DISTS_VALUES)
def test_dists_has_the_published_values(need: Callable[..., None], nearest_pair: Pair, name: str) -> None:
    need("vgg16_features.safetensors")
    need("dists_weights.safetensors", "weights.pt")
    assert dists(*nearest_pair(name)).item() == pytest.approx(DISTS_VALUES[name], abs=1e-4)


def test_batches_and_identity(metric_weights: Path) -> None:
    x, y = torch.rand(2, 3, 48, 40), torch.rand(2, 3, 48, 40)
    together = lpips(x, y)
    assert together.shape == (2,)
    torch.testing.assert_close(together, torch.cat([lpips(x[i : i + 1], y[i : i + 1]) for i in range(2)]), atol=1e-6, rtol=1e-5)
    assert lpips(x, x).abs().max().item() == 0
    assert lpips(x[:1, :1], y[:1, :1]).item() > 0  # grey counts as RGB with equal channels


def test_lpips_has_a_gradient(metric_weights: Path) -> None:
    sr = torch.rand(1, 3, 40, 40, requires_grad=True)
    lpips(sr, torch.rand(1, 3, 40, 40)).sum().backward()
    assert sr.grad is not None
    assert sr.grad.isfinite().all()
    assert sr.grad.abs().max() > 0


def test_wrong_arguments_are_named() -> None:
    x = torch.rand(1, 3, 40, 40)
    with pytest.raises(OptionError, match="'squeeze'"):
        lpips(x, x, net="squeeze")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="LPIPS needs 32 x 32"):
        lpips(x, x, crop=5)
    with pytest.raises(DataError, match="differ in shape"):
        dists(x, x[..., 1:])

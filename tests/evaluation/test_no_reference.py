"""NIQE against published values."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from drct.errors import DataError
from drct.evaluation import niqe


@pytest.mark.parametrize("index", range(5))
def test_niqe_of_set5_has_the_published_values(
    shared: Path, metric_weights: Path, read: Callable[[Path], Tensor], index: int
) -> None:
    reference = json.loads((shared / "reference/imaging.json").read_text())["set5_nearest_x4"][index]
    image = read(shared / "data/benchmarks/Set5/HR" / reference["image"])
    assert niqe(image, crop=4).item() == pytest.approx(reference["niqe_hr"], abs=1e-2)
    assert niqe(image / 255, crop=4).item() == pytest.approx(reference["niqe_hr"], abs=1e-2)


def test_niqe_takes_batches(shared: Path, metric_weights: Path, read: Callable[[Path], Tensor]) -> None:
    image = read(shared / "data/benchmarks/Set5/HR/woman.png")
    batch = torch.cat([image, image.flip(-1)])
    values = niqe(batch)
    assert values.shape == (2,)
    torch.testing.assert_close(values[1:], niqe(image.flip(-1)), atol=1e-5, rtol=0)


def test_flat_images_have_no_value(metric_weights: Path) -> None:
    assert niqe(torch.full((1, 3, 200, 200), 0.5)).isnan().all()


def test_too_small(metric_weights: Path) -> None:
    with pytest.raises(DataError, match="NIQE needs 96 x 96"):
        niqe(torch.rand(1, 3, 100, 100), crop=4)

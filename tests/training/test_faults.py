"""Faults in clean pairs: in LR and in GT alike, in their share, the same for the same seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from training_helpers import assert_resumes_exactly

from drct.errors import OptionError
from drct.imaging import resize
from drct.training import faults
from drct.training.faults import add_faults, add_grain
from drct.training.options import parse_options
from drct.training.pairs import open_pairs, seeded


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    gt = resize(torch.rand(64, 3, 8, 8, generator=generator), scale=8).clamp(0.2, 0.8)  # no fault is cut off
    return (resize(gt, scale=1 / 4) * 255).round() / 255, gt


def test_what_is_added_to_lr_is_added_to_gt(pairs: tuple[Tensor, Tensor]) -> None:
    lq, gt = pairs
    faulty, target = add_faults(lq, gt, 1.0, seeded(1))
    assert faulty.shape == lq.shape
    assert target.shape == gt.shape
    assert torch.equal((faulty * 255).round() / 255, faulty)
    inside = (target > 0) & (target < 1)
    assert ((target - gt - resize(faulty - lq, scale=4)).abs() * inside).max() < 1e-6
    changed = (faulty - lq).abs().amax((1, 2, 3)) > 1e-4
    assert 50 <= changed.sum() <= 62  # all but an eighth, which gets none of the three kinds


def test_a_share_of_the_pairs_gets_faults_and_the_others_keep_their_values(pairs: tuple[Tensor, Tensor]) -> None:
    lq, gt = pairs
    faulty, target = add_faults(lq, gt, 0.25, seeded(2))
    same = (faulty == lq).flatten(1).all(1)
    assert 44 <= same.sum() <= 58
    assert torch.equal(target[same], gt[same])
    again = add_faults(lq, gt, 0.25, seeded(2))
    assert torch.equal(again[0], faulty)
    assert torch.equal(again[1], target)
    assert not torch.equal(add_faults(lq, gt, 0.25, seeded(3))[0], faulty)


# the functions that make the three kinds, as they would leave everything as it is
IDLE: dict[str, Callable[..., Tensor]] = {
    "blur": lambda x, *_: x,
    "gaussian_noise": lambda x, *_: torch.zeros_like(x),
    "jpeg": lambda x, *_: x,
}


def edges(count: int) -> tuple[Tensor, Tensor]:
    """Pairs of a dark and a light part: LR and, twice as large, GT."""
    lq = torch.full((count, 3, 16, 16), 64 / 255)
    lq[..., 5:] = 191 / 255
    return lq, lq.repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.mark.parametrize("kind", IDLE)
def test_each_kind_comes_in_half_of_the_images(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for other in IDLE.keys() - {kind}:
        monkeypatch.setattr(faults, other, IDLE[other])
    lq, gt = edges(400)
    faulty, _ = add_faults(lq, gt, 1.0, seeded(4))
    assert 0.43 < (faulty != lq).flatten(1).any(1).float().mean() < 0.57


def test_sharpened_edges_overshoot_on_both_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    for other in ("gaussian_noise", "jpeg"):
        monkeypatch.setattr(faults, other, IDLE[other])
    lq, gt = edges(100)
    faulty, _ = add_faults(lq, gt, 1.0, seeded(4))
    sharpened = faulty[(faulty != lq).flatten(1).any(1)]
    assert len(sharpened) > 30
    assert (sharpened[..., 4] < 64 / 255).all()
    assert (sharpened[..., 5] > 191 / 255).all()
    assert torch.allclose(sharpened[..., 12:], lq[:1, ..., 12:])  # flat parts stay


def test_weak_noise_is_as_frequent_as_strong_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []

    def note(x: Tensor, sigma: Tensor, *_: object) -> Tensor:
        drawn.append(sigma[sigma > 0])
        return torch.zeros_like(x)

    monkeypatch.setattr(faults, "gaussian_noise", note)
    add_faults(torch.zeros(2000, 3, 8, 8), torch.zeros(2000, 3, 8, 8), 1.0, seeded(7))
    (sigma,) = drawn
    assert 1 <= sigma.min() < 1.1
    assert 28 < sigma.max() <= 30
    assert sigma.median() == pytest.approx(30**0.5, rel=0.15)


def test_grain_is_noise_alone(pairs: tuple[Tensor, Tensor]) -> None:
    lq, gt = pairs
    grainy, target = add_grain(lq, gt, 0.5, (2.0, 4.0), seeded(8))
    change = 255 * (grainy - lq)
    some = change.flatten(1).any(1)
    assert 22 <= some.sum() <= 42
    assert torch.equal(target[~some], gt[~some])
    assert ((target - gt - resize(grainy - lq, scale=4)).abs()).max() < 1e-6
    deviations = change[some].std((1, 2, 3))
    assert (deviations > 1.8).all()
    assert (deviations < 4.4).all()
    assert change.mean().abs() < 0.1
    grey = (change[some] - change[some][:, :1]).abs().amax((1, 2, 3)) < 1.5  # but for the rounding
    assert 8 <= grey.sum() <= 24


def test_all_three_kinds_come() -> None:
    """Each in half of the images, none in an eighth; two kinds would leave a quarter alone."""
    lq, gt = edges(400)
    faulty, _ = add_faults(lq, gt, 1.0, seeded(4))
    assert 0.83 < (faulty != lq).flatten(1).any(1).float().mean() < 0.92


def test_runs_with_tones_and_faults_resume_exactly(option_dict: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    def data() -> dict[str, Any]:
        made = option_dict()
        made["datasets"]["train"] |= {"tone_share": 0.5, "fault_share": 0.5}
        return made

    options, _ = parse_options(data())
    loaded = open_pairs(options)
    raw = loaded.patches.raw_batch(range(8))
    lq, gt = loaded.patches.finish(raw, torch.device("cpu"))
    batch = loaded(raw, torch.device("cpu"), (0, 0))
    assert not torch.equal(batch.lq, lq)
    assert not torch.equal(batch.gt, gt)
    assert any(p.tones for p in raw.patches)
    assert_resumes_exactly(data, option_dict, tmp_path)


def test_degraded_sets_take_no_faults(option_dict: Callable[..., dict[str, Any]]) -> None:
    data = option_dict()
    data["datasets"]["train"] |= {"type": "RealESRGANDataset", "fault_share": 0.1}
    with pytest.raises(OptionError, match="degraded already"):
        parse_options(data)


def test_images_of_any_values_stay_in_range() -> None:
    lq = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (8, 3, 12, 20))).float()
    faulty, target = add_faults(lq, resize(lq, scale=3).clamp(0, 1), 1.0, seeded(6))
    for image in (faulty, target):
        assert image.min() >= 0
        assert image.max() <= 1

"""Dead leaves in place of photographs: plain surfaces of many tones, sharp outlines, LR by the bicubic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_helpers import assert_resumes_exactly

from drct.degradation.draws import Draws
from drct.errors import OptionError
from drct.imaging import resize
from drct.training import dead_leaves as module
from drct.training.dead_leaves import add_leaves, dead_leaves
from drct.training.options import parse_options
from drct.training.pairs import open_pairs, seeded


def drawn(count: int, side: int, seed: int = 0) -> Tensor:
    return dead_leaves(count, side, Draws(seeded(seed)), torch.device("cpu"))


def test_images_hold_eight_bits_and_come_from_their_seed() -> None:
    images = drawn(16, 64)
    assert images.shape == (16, 3, 64, 64)
    assert images.dtype == torch.float32
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.equal((images * 255).round() / 255, images)
    assert torch.equal(images, drawn(16, 64))
    assert not torch.equal(images, drawn(16, 64, seed=1))
    assert len(images.flatten(1).unique(dim=0)) == 16


def test_most_of_an_image_is_plain_and_outlines_are_sharp() -> None:
    step = (drawn(64, 96)[..., 1:] - drawn(64, 96)[..., :-1]).abs().amax(1) * 255
    assert (step <= 1).float().mean() > 0.8
    assert (step > 60).flatten(1).any(1).float().mean() > 0.8  # nearly every image has a strong outline
    assert 0.005 < (step > 20).float().mean() < 0.15


def test_half_of_the_images_are_grey_and_all_tones_come() -> None:
    images = drawn(300, 16)
    grey = (images == images[:, :1]).flatten(1).all(1)
    assert 0.42 < grey.float().mean() < 0.58
    shares = torch.histc(images.mean((1, 2, 3)), 4, 0, 1) / 300
    assert (shares[1:3] > 0.2).all()
    assert (shares[[0, 3]] > 0.1).all()


def test_leaves_are_discs_and_rectangles_of_many_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One leaf in each image: what differs from the ground has the area of an ellipse in its box, or of a turned rectangle."""
    monkeypatch.setattr(module, "LEAVES", (1.0, 1.0))
    monkeypatch.setattr(module, "SHADING", 0.0)
    monkeypatch.setattr(module, "SOFTNESS", (0.1, 0.1))
    monkeypatch.setattr(module, "ASPECT", (1.0, 1.0))
    side, filled, radii = 128, [], []
    for image in drawn(400, side):
        values, counts = image.flatten(1).unique(dim=1, return_counts=True)
        ground = values[:, counts.argmax()]
        ys, xs = (image != ground[:, None, None]).any(0).nonzero(as_tuple=True)
        if not len(ys) or min(ys.min(), xs.min()) == 0 or max(ys.max(), xs.max()) == side - 1:
            continue  # cut by the border, or outside, or the leaf is what there is most of
        height, width = int(ys.max() - ys.min() + 1), int(xs.max() - xs.min() + 1)
        if min(height, width) > 12:
            filled.append(len(ys) / (height * width))
            radii.append(max(height, width) / 2)
    assert len(filled) > 40
    discs = sum(abs(f - torch.pi / 4) < 0.04 for f in filled)
    assert 0.35 < discs / len(filled) < 0.8  # squares that are turned by 15 degrees or 75 fill as much
    assert min(filled) < 0.6  # on edge
    assert max(filled) > 0.9  # nearly upright
    assert max(radii) > 3 * min(radii)


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    return torch.full((40, 3, 16, 16), 0.5), torch.full((40, 3, 48, 48), 0.25)


def test_a_share_of_the_pairs_gives_way(pairs: tuple[Tensor, Tensor]) -> None:
    lq, gt = pairs
    low, high = add_leaves(lq, gt, 0.25, seeded(2))
    assert (low.shape, high.shape) == (lq.shape, gt.shape)
    kept = (high == 0.25).flatten(1).all(1)
    assert 24 <= kept.sum() <= 36
    assert torch.equal(low[kept], lq[kept])
    assert not (low[~kept] == 0.5).flatten(1).all(1).any()
    assert torch.equal(add_leaves(lq, gt, 0.25, seeded(2))[1], high)
    assert torch.equal(add_leaves(lq, gt, 0.0, seeded(2))[1], gt)
    assert (lq == 0.5).all()  # the batch that came in is not written to
    assert (gt == 0.25).all()


def test_lr_is_the_bicubic_of_gt(pairs: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAULTS", 0.0)
    monkeypatch.setattr(module, "GRAIN", 0.0)
    low, high = add_leaves(*pairs, 1.0, seeded(3))
    expected = resize(255 * high, scale=1 / 3, rounding="uint8_per_pass") / 255
    assert torch.equal(low[..., 2:-2, 2:-2], expected[..., 2:-2, 2:-2])
    # and so it is at the border, where the leaves go on beyond what is cut out: nothing is mirrored there
    assert not torch.equal(low, expected)


def test_most_have_noise_or_faults_in_lr_and_gt(pairs: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    faulty = add_leaves(*pairs, 1.0, seeded(4))
    monkeypatch.setattr(module, "FAULTS", 0.0)
    monkeypatch.setattr(module, "GRAIN", 0.0)
    clean = add_leaves(*pairs, 1.0, seeded(4))
    changed = [(f != c).flatten(1).any(1) for f, c in zip(faulty, clean, strict=True)]
    assert torch.equal(*changed)
    assert 20 <= changed[0].sum() <= 37  # 0.72 of 40: half get noise, half of the others faults, of which an eighth is of no kind


def test_runs_with_leaves_resume_exactly(option_dict: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    def data() -> dict[str, Any]:
        made = option_dict()
        made["datasets"]["train"] |= {"leaves_share": 0.5}
        return made

    loaded = open_pairs(parse_options(data())[0])
    raw = loaded.patches.raw_batch(range(8))
    _, gt = loaded.patches.finish(raw, torch.device("cpu"))
    same = (loaded(raw, torch.device("cpu"), (0, 0)).gt == gt).flatten(1).all(1)
    assert 0 < same.sum() < 8
    assert_resumes_exactly(data, option_dict, tmp_path)


def test_sets_with_lr_files_take_no_leaves(option_dict: Callable[..., dict[str, Any]]) -> None:
    data = option_dict()
    data["datasets"]["train"] |= {"leaves_share": 0.1, "dataroot_lq": "lq"}
    with pytest.raises(OptionError, match="leaves_share and dataroot_lq exclude"):
        parse_options(data)

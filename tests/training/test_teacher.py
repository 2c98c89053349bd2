"""A teacher stands for a part of the ground truth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_helpers import assert_resumes_exactly, run

from drct.errors import Error, ModelNotFoundError, OptionError
from drct.networks import create_network
from drct.training.linear_start import linear_start
from drct.training.log import read_log
from drct.training.loop import fingerprint
from drct.training.options import Train, parse_options
from drct.training.teacher import Teacher
from drct.upscaling import self_ensemble
from drct.weights import load_network, save_network

Make = Callable[..., dict[str, Any]]
TINY: dict[str, Any] = {"embed_dim": 16, "gc": 16, "depths": [2, 2], "num_heads": [1, 1], "window_size": 8}
CPU = torch.device("cpu")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(3)
    save_network(create_network("drct_light", scale=2, **TINY), tmp_path / "teacher.safetensors")
    return tmp_path / "teacher.safetensors"


def options(network: Path, **more: Any) -> Train:
    return Train.model_validate({"teacher_opt": {"network": str(network), **more}})


def test_the_target_lies_between_ground_truth_and_the_teachers_mean(weights: Path) -> None:
    lq, gt = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        mean = self_ensemble(load_network(weights).eval())(lq)
    for weight in (1.0, 0.25):
        target = Teacher(options(weights, weight=weight, views=8), 2, CPU).target(lq, gt)
        assert torch.allclose(target, (1 - weight) * gt + weight * mean, atol=1e-4)
        assert not target.is_inference()


def test_each_batch_draws_its_views(weights: Path) -> None:
    teacher = Teacher(options(weights, weight=1, views=1), 2, CPU)
    lq, gt = torch.rand(1, 3, 16, 16), torch.zeros(1, 3, 32, 32)
    torch.manual_seed(5)
    drawn = [teacher.target(lq, gt) for _ in range(40)]
    assert len({tuple(t.flatten()[:50].tolist()) for t in drawn}) == 8
    torch.manual_seed(5)
    assert torch.equal(teacher.target(lq, gt), drawn[0])
    with torch.no_grad():
        mean = self_ensemble(load_network(weights).eval())(lq)
    distinct = {tuple(t.flatten()[:50].tolist()): t for t in drawn}
    assert torch.allclose(torch.stack([*distinct.values()]).mean(0), mean, atol=1e-4)


def test_a_teacher_that_looks_alike_from_all_sides_has_nothing_to_teach_itself(option_dict: Make, tmp_path: Path) -> None:
    network = create_network("drct_light", scale=2, **TINY)
    linear_start(network)
    path = tmp_path / "linear.safetensors"
    save_network(network, path)
    data = option_dict(teacher_opt={"network": str(path), "weight": 1}, optim_g={"type": "AdamW", "lr": 1e-9})
    data["path"] = {"pretrain_network_g": str(path)}
    data["network_g"]["drop_path_rate"] = 0
    losses = [r["loss"] for r in read_log(run(data, tmp_path / "run", stop_after=5)) if "loss" in r]
    assert losses
    assert max(losses) < 2e-3  # of L1 in 0..1
    del data["train"]["teacher_opt"]
    with_truth = [r["loss"] for r in read_log(run(data, tmp_path / "truth", stop_after=5)) if "loss" in r]
    assert min(with_truth) > 3 * max(losses)


def test_the_learner_approaches_its_teacher(option_dict: Make, weights: Path, tmp_path: Path) -> None:
    data = option_dict(total_iter=60, teacher_opt={"network": str(weights), "weight": 1, "views": 2}, linear_start=True)
    losses = [r["loss"] for r in read_log(run(data, tmp_path / "run")) if "loss" in r]
    assert losses[-1] < 0.8 * losses[0]


def test_resumes_exactly(option_dict: Make, weights: Path, tmp_path: Path) -> None:
    teaching = {"network": str(weights), "weight": 0.5}
    assert_resumes_exactly(lambda: option_dict(teacher_opt=teaching), option_dict, tmp_path)


def test_where_its_file_lies_does_not_count_but_which_it_is_does(option_dict: Make) -> None:
    def prints(**teaching: Any) -> str:
        return fingerprint(parse_options(option_dict(teacher_opt=teaching))[0])

    assert prints(network="a/t.pth") == prints(network="b/t.pth")
    different = [
        prints(network="t.pth"),
        prints(network="u.pth"),
        prints(network="t.pth", views=2),
        prints(network="t.pth", weight=1),
    ]
    assert len({*different, fingerprint(parse_options(option_dict())[0])}) == 5


def test_mistakes_are_named(option_dict: Make, weights: Path, tmp_path: Path) -> None:
    def start(**teaching: Any) -> None:
        run(option_dict(teacher_opt=teaching), tmp_path / "run")

    other = tmp_path / "x4.safetensors"
    save_network(create_network("drct_light", scale=4, **TINY), other)
    with pytest.raises(OptionError, match=r"scale of \S*x4\.safetensors is 4, but 2 is needed"):
        start(network=str(other))
    grey = tmp_path / "grey.safetensors"
    save_network(create_network("drct_light", scale=2, in_chans=1, **TINY), grey)
    with pytest.raises(OptionError, match=r"channels of \S*grey\.safetensors is 1, but 3 is needed"):
        start(network=str(grey))
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        start(network="nowhere.pth")
    for wrong in ({"views": 9}, {"weight": 0}, {"veiws": 2}, {}):
        given = {"network": str(weights), **wrong} if wrong else {}
        with pytest.raises(Error, match="teacher_opt"):
            start(**given)

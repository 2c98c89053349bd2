"""Runs on degraded images and against a discriminator: batches, steps, resuming, two processes, bad input."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from training_helpers import run, states_equal

from drct.degradation import degrade, usm_sharpen
from drct.errors import CheckpointError, Error, OptionError
from drct.evaluation import perceptual
from drct.imaging import read_size, resize
from drct.training.adversarial import GANLoss
from drct.training.checkpoint import list_states, load_state
from drct.training.dead_leaves import add_leaves_to_degrade
from drct.training.discriminator import UNetDiscriminatorSN
from drct.training.log import read_log
from drct.training.loop import Run, TrainingError
from drct.training.options import TrainOptions, ValSet, parse_options
from drct.training.pairs import Batch, RealPairs, open_pairs, seeded
from drct.training.processes import Process
from drct.training.starting import build_discriminator, build_network
from drct.training.steps import GanStep, PixelStep, build_step
from drct.training.validation import ValidationSet
from drct.weights import save_network

Make = Callable[..., dict[str, Any]]
CPU = torch.device("cpu")


def build(data: dict[str, Any], folder: Path) -> Run:
    return Run(parse_options(data)[0], folder, Process(0, 1, CPU), lambda line: None)


def stage_one(data: dict[str, Any]) -> dict[str, Any]:
    """The options without what belongs to the discriminator."""
    data = {**data, "model_type": "RealDRCTMSEModel"}
    data.pop("network_d")
    data["train"] = {k: v for k, v in data["train"].items() if k not in ("optim_d", "perceptual_opt", "gan_opt")}
    return data


# -------------------------------------------------------------------------------------------------------- batches


def test_batches_are_degraded_ground_truth(gan_dict: Make) -> None:
    options, _ = parse_options(gan_dict())
    pairs = open_pairs(options)
    assert isinstance(pairs, RealPairs)
    raw = pairs.patches.raw_batch(range(2))
    batch = pairs(raw, CPU, (0, 1))
    assert batch.lq.shape == (2, 3, 16, 16)
    assert batch.gt.shape == batch.sharp.shape == (2, 3, 32, 32)
    assert torch.equal((batch.lq * 255).round() / 255, batch.lq)
    assert torch.equal((batch.gt * 255).round() / 255, batch.gt)
    assert torch.equal(batch.sharp, usm_sharpen(batch.gt))
    # the pair is cut from one place of the whole degraded patch
    assert options.degradation is not None
    whole = pairs.patches.ground_truth(raw, CPU)
    degraded = degrade(usm_sharpen(whole), options.degradation, scale=2, generator=seeded(0, 1))
    places = [
        (top, left)
        for top in range(9)
        for left in range(9)
        if torch.equal(degraded[..., top : top + 16, left : left + 16], batch.lq)
        and torch.equal(whole[..., 2 * top : 2 * top + 32, 2 * left : 2 * left + 32], batch.gt)
    ]
    assert len(places) == 1


def test_some_pairs_stay_clean(gan_dict: Make) -> None:
    """Reduced alone, in their place among the others, which are degraded as without the option."""
    data = gan_dict()
    plain = open_pairs(parse_options(data)[0])
    raw = plain.patches.raw_batch(range(8))
    data["datasets"]["train"]["clean_share"] = 0.5
    some = open_pairs(parse_options(data)[0])
    data["datasets"]["train"]["clean_share"] = 1.0
    every = open_pairs(parse_options(data)[0])
    whole = plain.patches.ground_truth(raw, CPU)
    degraded = degrade(usm_sharpen(whole), parse_options(data)[0].degradation, scale=2, generator=seeded(0, 1))
    reduced = resize(255 * usm_sharpen(whole), scale=0.5, rounding="uint8_per_pass") / 255

    def where(batch: Batch) -> list[set[str]]:
        """Which of the two each image was cut from."""
        cuts = [(y, x) for y in range(9) for x in range(9)]
        kinds = {"degraded": degraded, "reduced": reduced}
        return [
            {
                name
                for name, images in kinds.items()
                if any(torch.equal(lq, images[i, :, y : y + 16, x : x + 16]) for i in range(8) for y, x in cuts)
            }
            for lq in batch.lq
        ]

    assert where(plain(raw, CPU, (0, 1))) == [{"degraded"}] * 8
    assert where(every(raw, CPU, (0, 1))) == [{"reduced"}] * 8
    mixed = where(some(raw, CPU, (0, 1)))
    assert 1 <= sum(kind == {"reduced"} for kind in mixed) <= 7
    assert all(len(kind) == 1 for kind in mixed)


def test_some_images_give_way_to_dead_leaves_before_they_are_degraded(gan_dict: Make) -> None:
    data = gan_dict()
    data["datasets"]["train"]["leaves_share"] = 0.5
    pairs = open_pairs(parse_options(data)[0])
    raw = pairs.patches.raw_batch(range(8))
    files = pairs.patches.ground_truth(raw, CPU)
    batch = pairs(raw, CPU, (0, 1))
    source = add_leaves_to_degrade(files, 0.5, seeded(0, 1))
    cuts = [(y, x) for y in range(0, 18, 2) for x in range(0, 18, 2)]

    def cut_from(images: Tensor) -> list[bool]:
        return [
            any(torch.equal(gt, whole[:, y : y + 32, x : x + 32]) for y, x in cuts)
            for gt, whole in zip(batch.gt, images, strict=True)
        ]

    assert all(cut_from(source))
    assert 1 <= sum(cut_from(files)) <= 7
    assert torch.equal(add_leaves_to_degrade(files, 0.0, seeded(0, 1)), files)


def test_keys_of_the_other_stage_are_told(gan_dict: Make) -> None:
    assert parse_options(gan_dict())[1] == parse_options(stage_one(gan_dict()))[1] == []
    for data, keys in (
        ({**gan_dict(), "gt_usm": False}, ["gt_usm"]),
        ({**stage_one(gan_dict()), "l1_gt_usm": False, "gan_gt_usm": True}, ["l1_gt_usm", "gan_gt_usm"]),
    ):
        assert [line.split("'")[1] for line in parse_options(data)[1]] == keys


def test_sharpening_follows_the_stage(gan_dict: Make) -> None:
    two, _ = parse_options({**gan_dict(), "l1_gt_usm": False, "percep_gt_usm": False})
    pairs = open_pairs(two)
    assert isinstance(pairs, RealPairs)
    assert (pairs.sharpen_source, pairs.sharpen_target) == (True, False)
    one, _ = parse_options({**stage_one(gan_dict()), "gt_usm": False})
    pairs = open_pairs(one)
    assert isinstance(pairs, RealPairs)
    assert (pairs.sharpen_source, pairs.sharpen_target) == (False, False)


def test_small_images_are_mirrored(gan_dict: Make) -> None:
    data = gan_dict()
    data["datasets"]["train"]["crop_size"] = 96  # the images are 80 x 64
    pairs = open_pairs(parse_options(data)[0])
    patch = pairs.patches.raw_batch(range(1)).gt[0]
    assert patch.shape == (96, 96, 3)
    assert torch.equal(patch[64:], patch[32:64].flip(0)) or torch.equal(patch[:, 64:], patch[:, 32:64].flip(1))


def test_validation_repeats_its_degradations(gan_dict: Make) -> None:
    entry = gan_dict()["datasets"]["val_1"]
    first, again = (ValidationSet(ValSet(**entry), 2) for _ in range(2))
    other = ValidationSet(ValSet(**{**entry, "seed": 1}), 2)
    assert torch.equal(first[0].lq, again[0].lq)
    assert torch.equal(first[0].lq, first[0].lq)
    assert first[0].lq.shape == (1, 3, 32, 40)
    assert not torch.equal(first[0].lq, other[0].lq)


def test_images_without_ground_truth_are_looked_at(gan_dict: Make, tmp_path: Path) -> None:
    """What the published file suggests for validation: a folder of photographs, a sheet, no scores."""
    data = stage_one(gan_dict(total_iter=2))
    lq = data["datasets"]["train"]["dataroot_gt"]
    data["datasets"]["val"] = {"name": "validation", "type": "SingleImageDataset", "dataroot_lq": lq, "max_images": 2}
    data["datasets"].pop("val_1")
    folder = run(data, tmp_path / "run")
    assert not any("validation" in r for r in read_log(folder))
    assert not (folder / "best.safetensors").exists()
    assert read_size(folder / "sheets" / "00000002.png")[1] >= 2 * 2 * 48  # two columns of 48 pixels at x2


# ---------------------------------------------------------------------------------------------------------- steps


def one_batch(seed: int = 0) -> Batch:
    torch.manual_seed(seed)
    gt = torch.rand(2, 3, 32, 32)
    return Batch(torch.rand(2, 3, 16, 16), gt, (gt + 0.1).clamp(0, 1))


@pytest.mark.parametrize("gan_type", ["vanilla", "lsgan", "hinge", "relativistic"])
def test_a_step_is_the_published_one(gan_dict: Make, tmp_path: Path, gan_type: str) -> None:
    """Gradients of both networks against the two phases written out."""
    data = gan_dict(gan_opt={"gan_type": gan_type, "loss_weight": 0.3})
    data["network_g"]["drop_path_rate"] = 0.0
    step = build(data, tmp_path).step
    assert isinstance(step, GanStep)
    generator, judge = step.generator.network, step.discriminator.network
    batch = one_batch()
    before = {name: value.clone() for name, value in judge.state_dict().items()}
    terms = step.gradients(iter([batch]), 0).numbers()
    found = [[p.grad.clone() for p in network.parameters() if p.grad is not None] for network in (generator, judge)]
    step.forget()
    judge.load_state_dict(before)

    loss = GANLoss(gan_type, 0.3)
    judge.requires_grad_(False)
    sr = generator(batch.lq)
    fake = judge(sr)
    real = judge(batch.gt) if gan_type == "relativistic" else None
    assert step.content.perceptual is not None
    total = (sr - batch.sharp).abs().mean() + step.content.perceptual(sr, batch.sharp)["percep"] + loss.generator(fake, real)
    total.backward()
    judge.requires_grad_(True)
    on_real, on_fake = judge(torch.cat([batch.gt, sr.detach()])).chunk(2)
    sum(loss.discriminator(on_real, on_fake), torch.zeros(())).backward()
    expected = [[p.grad for p in network.parameters() if p.grad is not None] for network in (generator, judge)]
    for ours, theirs in zip(found, expected, strict=True):
        assert len(ours) == len(theirs) > 10
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-6) for a, b in zip(ours, theirs, strict=True))
    assert terms["loss"] == pytest.approx(total.item(), rel=1e-4)
    assert terms["out_d_real"] == pytest.approx(on_real.mean().item(), rel=1e-3, abs=1e-5)
    assert set(terms) == {"loss", "l_g_pix", "l_g_percep", "l_g_gan", "l_d_real", "l_d_fake", "out_d_real", "out_d_fake"}


def test_the_discriminator_may_learn_alone(gan_dict: Make, tmp_path: Path) -> None:
    folder = run(gan_dict(net_d_init_iters=5, net_d_iters=2, total_iter=8), tmp_path / "run")
    records = {r["iteration"]: r for r in read_log(folder) if "out_d_real" in r}
    assert "loss" not in records[5]
    assert "l_g_gan" in records[8]
    state = load_state(list_states(folder)[-1])
    assert state.ema_updates == 2  # iterations 6 and 8
    steps = {int(v["step"]) for v in state.optimizer["state"].values()}
    assert steps == {2}
    assert {int(v["step"]) for v in state.discriminator["optimizer"]["state"].values()} == {8}


def test_accumulated_batches_equal_one_large_batch_for_both_networks(gan_dict: Make, tmp_path: Path) -> None:
    steps: list[GanStep] = []
    for accumulate in (1, 2):
        data = gan_dict(accumulate=accumulate)
        data["network_g"]["drop_path_rate"] = 0.0
        options, _ = parse_options(data)
        torch.manual_seed(0)
        step = build_step(options, build_network(options, lambda line: None), CPU)
        assert isinstance(step, GanStep)
        step.discriminator.network.eval()  # power iterations move with every forward pass
        steps.append(step)
    a, b = one_batch(1), one_batch(2)
    both = Batch(*(torch.cat(pair) for pair in zip((a.lq, a.gt, a.sharp), (b.lq, b.gt, b.sharp), strict=True)))
    steps[0].gradients(iter([both]), 0)
    steps[1].gradients(iter([a, b]), 0)
    for name in ("g", "d"):
        grads = [[p.grad for p in step.learners[name].network.parameters() if p.grad is not None] for step in steps]
        assert all(torch.allclose(x, y, rtol=1e-2, atol=1e-5) for x, y in zip(*grads, strict=True))


# ----------------------------------------------------------------------------------------------------------- runs


def test_stopped_and_resumed_equals_one_go(gan_dict: Make, tmp_path: Path) -> None:
    data = gan_dict(total_iter=8)  # the pool of 8 is full after 4 batches of 2, so its shuffling is part of it
    whole = run(data, tmp_path / "whole")
    halves = run(data, tmp_path / "halves", stop_after=5)
    run(data, tmp_path / "halves", resume="auto")
    assert states_equal(list_states(whole)[-1], list_states(halves)[-1])
    state = load_state(list_states(whole)[-1])
    assert state.pairs[0]["lq"].dtype == torch.uint8
    assert len(state.pairs[0]["lq"]) == 8
    data["network_d"]["num_feat"] = 16
    with pytest.raises(CheckpointError, match="other options"):
        run(data, tmp_path / "halves", resume="auto")


def test_stage_two_begins_with_stage_one(gan_dict: Make, tmp_path: Path) -> None:
    first = run(stage_one(gan_dict(total_iter=3)), tmp_path / "one")
    data = gan_dict()
    data["path"] = {"pretrain_network_g": str(first / "latest.safetensors")}
    instance = build(data, tmp_path / "two")
    average = load_state(list_states(first)[-1]).ema
    assert all(torch.equal(p, average[name]) for name, p in instance.network.named_parameters())
    assert isinstance(build(stage_one(gan_dict()), tmp_path / "x").step, PixelStep)


def one_of_two(rank: int, data: dict[str, Any], folder: str) -> None:
    """A process of two: three steps on its half of each batch."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    options, _ = parse_options(data)
    torch.manual_seed(0)
    step = build_step(options, build_network(options, lambda line: None), CPU, world_size=2)
    for i in range(3):
        step.gradients(iter([one_batch(2 * i + rank)]), i)
        assert step.clip()
        step.update(1.0)
    torch.save({name: part.network.state_dict() for name, part in step.learners.items()}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_train_both_networks_together(gan_dict: Make, tmp_path: Path) -> None:
    data = gan_dict(ema_decay=0)
    data["network_g"]["drop_path_rate"] = 0.0
    torch.multiprocessing.spawn(one_of_two, (data, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    options, _ = parse_options(data)
    torch.manual_seed(0)
    step = build_step(options, build_network(options, lambda line: None), CPU)
    for i in range(3):
        a, b = one_batch(2 * i), one_batch(2 * i + 1)
        both = Batch(*(torch.cat(pair) for pair in zip((a.lq, a.gt, a.sharp), (b.lq, b.gt, b.sharp), strict=True)))
        step.gradients(iter([both]), i)
        step.update(1.0)
    for name, part in step.learners.items():
        for key, value in part.network.state_dict().items():
            assert torch.equal(first[name][key], second[name][key]), f"{key} went apart"
            assert torch.allclose(first[name][key], value, atol=1e-3), key


@pytest.mark.slow
def test_two_processes_stopped_and_resumed_equal_one_go(gan_dict: Make, tmp_path: Path) -> None:
    """Each process has a pool of its own, and the checkpoint holds both."""
    data = gan_dict(total_iter=6)
    data["val"] = {"val_freq": 100}
    (tmp_path / "options.yml").write_text(yaml.safe_dump(data))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "drct", "train"]
    command += ["-opt", str(tmp_path / "options.yml"), "--device", "cpu"]
    for extra in (["whole"], ["halves", "--stop-after", "5"], ["halves", "--resume", "auto"]):
        subprocess.run(
            [*command, "--output", str(tmp_path / extra[0]), *extra[1:]],
            check=True,
            capture_output=True,
            timeout=1500,  # nine processes that import torch
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
    whole, halves = (list_states(tmp_path / name)[-1] for name in ("whole", "halves"))
    assert states_equal(whole, halves)
    pools = load_state(whole).pairs
    assert len(pools) == 2
    assert not torch.equal(pools[0]["gt"], pools[1]["gt"])


def test_a_bad_gradient_of_either_network_stops_both(gan_dict: Make, tmp_path: Path) -> None:
    for culprit in ("g", "d"):
        folder = tmp_path / culprit
        instance = build(gan_dict(), folder)
        step = instance.step
        assert isinstance(step, GanStep)
        before = {name: {k: v.clone() for k, v in part.network.named_parameters()} for name, part in step.learners.items()}
        next(step.learners[culprit].network.parameters()).register_hook(lambda grad: grad * math.nan)
        with pytest.raises(TrainingError, match="10 steps in a row"):
            instance.go()
        state = load_state(list_states(folder)[-1])
        assert all(torch.equal(state.network[k], v) for k, v in before["g"].items())
        assert all(torch.equal(state.discriminator["network"][k], v) for k, v in before["d"].items())


# ------------------------------------------------------------------------------------------------------ bad input


def changed(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *groups, last = path.split(".")
    place = data
    for group in groups:
        place = place[group]
    if value is None:
        place.pop(last)
    else:
        place[last] = value
    return data


@pytest.mark.parametrize("name", ["HAT", "ESR"])
def test_published_files_of_other_networks_call_the_stages_by_other_names(gan_dict: Make, name: str) -> None:
    gan, mse = {"HAT": ("RealHATGANModel", "RealHATMSEModel"), "ESR": ("RealESRGANModel", "RealESRNetModel")}[name]
    parse_options(gan_dict() | {"model_type": gan})
    parse_options(stage_one(gan_dict()) | {"model_type": mse})
    with pytest.raises(OptionError, match=f"model_type {gan} needs network_d and train.gan_opt"):
        parse_options(stage_one(gan_dict()) | {"model_type": gan})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("degradation", {"resize_prob": [0.2, 0.7, 0.2]}, r"resize_prob sums to 1\.1"),
        ("degradation", {"jpeg_range": [0, 101]}, "jpeg_range is 0 to 101"),
        ("degradation", "rael", "no degradation preset 'rael'.*'real'"),
        ("datasets.train.kernel_prob", [0.5, 0.5], "'degradation' and 'kernel_prob' exclude each other"),
        ("datasets.train.blur_sgima", [0.2, 3], "blur_sgima.*did you mean 'blur_sigma'"),
        ("datasets.train.crop_size", 16, "crop_size 16 must be a multiple of scale 2 and at least gt_size 32"),
        ("datasets.train.dataroot_lq", "lq", "remove datasets.train.dataroot_lq"),
        ("queue_size", 0, "queue_size.*greater than 0"),
        ("queue_size", 7, "queue_size 7 is not a multiple of batch_size_per_gpu 2"),
        ("gt_size", 28, "gt_size 28 is not a multiple of 8"),
        ("gt_size", 31, "gt_size 31 is not a multiple of scale 2"),
        ("network_d", None, r"train\.gan_opt needs network_d"),
        ("train.gan_opt", None, r"network_d needs train\.gan_opt"),
        ("train.gan_opt.gan_type", "wgan", "gan_type is 'wgan': .*'vanilla'"),
        ("train.perceptual_opt.layer_weights", {"conv3_4": 1}, "vgg16 has no layer 'conv3_4'"),
        ("train.perceptual_opt.perceptual_weight", 0, "are both 0"),
        ("train.perceptual_opt.shift", 17, "shift 17 is more than half of gt_size 32"),
        ("train.optim_d.type", "Muon", "optim_d cannot be Muon"),
        ("train.net_d_iters", 0, "net_d_iters"),
        ("datasets.train.type", "GroundTruthDataset", "'degradation' needs datasets.train.type RealESRGANDataset"),
        ("model_type", "DRCTModel", "model_type DRCTModel does not go with"),
        ("model_type", "HATModel", "model_type HATModel does not go with"),
        ("model_type", "RealDRCTGAN", "model_type.*RealDRCTGANModel"),
        ("datasets.val_1.dataroot_lq", "lq", "dataroot_lq and degradation exclude each other"),
        ("datasets.val_1.type", "SingleImageDataset", "a SingleImageDataset has dataroot_lq and nothing else"),
        ("datasets.val_1.dataroot_gt", None, "'dataroot_gt' is missing"),
    ],
)
def test_mistakes_in_option_files_are_named(gan_dict: Make, path: str, value: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        parse_options(changed(gan_dict(), path, value), "file.yml")
    assert str(caught.value).startswith("file.yml: ")
    assert "\n" not in str(caught.value)


def test_a_degradation_key_in_both_places_must_be_the_same(gan_dict: Make) -> None:
    data = gan_dict()
    del data["degradation"]
    data["jpeg_range"], data["datasets"]["train"]["jpeg_range"] = [90, 95], [90.0, 95.0]
    degradation = parse_options(data)[0].degradation
    assert degradation is not None
    assert degradation.jpeg_range == (90, 95)
    data["datasets"]["train"]["jpeg_range"] = [30, 40]
    with pytest.raises(
        OptionError, match=r"'jpeg_range' is \[90, 95\] at the top, but \[30, 40\] in datasets\.train: write it in one"
    ):
        parse_options(data)


def test_the_patch_size_that_counts_is_the_one_checked(gan_dict: Make) -> None:
    data = gan_dict()
    data["gt_size"], data["datasets"]["train"]["gt_size"] = 32, 31  # what counts stands at the top
    assert parse_options(data)[0].patch_size == 32


def test_an_optimizer_without_its_network_warns(gan_dict: Make) -> None:
    data = stage_one(gan_dict())
    data["train"]["optim_d"] = {"type": "Adam", "lr": 1e-4}
    _, warnings = parse_options(data)
    assert any("'train.optim_d' has no effect" in line for line in warnings)


def test_weights_that_are_missing_are_named_before_the_first_step(
    gan_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = gan_dict()
    data["train"]["perceptual_opt"] = {"vgg_type": "vgg19"}
    monkeypatch.setenv("DRCT_WEIGHTS", str(tmp_path))
    with pytest.raises(CheckpointError, match="perceptual loss needs the ImageNet weights of vgg19"):
        run(data, tmp_path / "run")
    data = gan_dict()
    data["val"]["metrics"] = {"lpips": {"type": "calculate_lpips"}}
    monkeypatch.setenv("DRCT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("DRCT_OFFLINE", "1")
    monkeypatch.setattr("drct.evaluation.metric_weights.download", _no_network)
    perceptual._weights.cache_clear()  # of earlier tests
    with pytest.raises(Error, match="DRCT_WEIGHTS"):
        run(data, tmp_path / "run")
    data = gan_dict()
    small = build(data, tmp_path / "x").network
    save_network(small, tmp_path / "wrong.safetensors")
    data["path"] = {"pretrain_network_d": str(tmp_path / "wrong.safetensors")}
    with pytest.raises(
        CheckpointError, match=r"path\.pretrain_network_d: .*wrong\.safetensors does not fit the network \(UNetDiscriminatorSN\)"
    ):
        run(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_discriminators_start_is_looked_at_as_the_networks_is(gan_dict: Make, tmp_path: Path) -> None:
    def discriminator(content: Any, **path: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
        torch.save(content, tmp_path / "d.pth")
        data = gan_dict()
        data["path"] = {"pretrain_network_d": str(tmp_path / "d.pth"), **path}
        lines: list[str] = []
        torch.manual_seed(3)
        return build_discriminator(parse_options(data)[0], lines.append).state_dict(), lines

    given = discriminator({"params": UNetDiscriminatorSN(num_feat=8).state_dict()})[0]
    part = {name: value for name, value in given.items() if not name.startswith("conv5")}
    with pytest.raises(CheckpointError, match=r"path\.pretrain_network_d: .*does not fit"):
        discriminator({"params": part})
    got, lines = discriminator({"params": part}, strict_load_d=False)
    assert all(torch.equal(got[name], value) for name, value in part.items() if not name.endswith(("_u", "_v")))
    assert len(lines) == 1
    assert "missing (conv5" in lines[0]
    # the first estimates of a fresh spectral norm are random: run on, the norm hardly moves any more
    u = got["conv5.weight_u"]
    weight = got["conv5.weight_orig"].flatten(1)
    once = torch.nn.functional.normalize(weight @ (weight.T @ u), dim=0)
    assert (u @ once).abs() > 0.9
    with pytest.raises(CheckpointError, match="does not fit"):
        discriminator({"params": {f"{name}_of_another": value for name, value in given.items()}}, strict_load_d=False)
    broken = dict(given) | {"conv9.bias": torch.tensor([float("nan")])}
    with pytest.raises(CheckpointError, match=r"not finite \(conv9\.bias\)"):
        discriminator({"params": broken})


def _no_network(*args: Any, **kwargs: Any) -> Path:
    from drct.errors import DownloadError

    raise DownloadError("no network")


def test_better_follows_the_metric(gan_dict: Make) -> None:
    data = gan_dict()
    data["val"]["metrics"] = {"lpips": {"type": "calculate_lpips"}, "psnr": {"type": "calculate_psnr"}}
    options: TrainOptions = parse_options(data)[0]
    assert [m.better for m in options.val.metrics.values()] == ["lower", "higher"]


@pytest.mark.slow
def test_hundreds_of_iterations_of_a_gan(gan_dict: Make, tmp_path: Path) -> None:
    """The network improves, the discriminator tells images apart without winning outright, and nothing blows up."""
    # the rate falls: at a constant one the last scores waver as the discriminator does
    rate = {"optim_g": {"type": "Adam", "lr": 1e-3}, "scheduler": {"type": "CosineAnnealingLR", "eta_min": 0.05}}
    data = gan_dict(total_iter=300, linear_start=True, **rate)
    data["logger"] = {"print_freq": 30, "save_checkpoint_freq": 150}
    data["val"]["val_freq"] = 100
    folder = run(data, tmp_path / "run")
    records = [r for r in read_log(folder) if "loss" in r]
    assert all(math.isfinite(v) for r in records for v in r.values())
    late = records[len(records) // 2 :]  # single records waver: degradations differ from batch to batch

    def mean(name: str) -> float:
        return sum(r[name] for r in late) / len(late)

    assert mean("l_g_pix") < records[0]["l_g_pix"]
    assert mean("l_g_percep") < records[0]["l_g_percep"]
    assert mean("out_d_real") - mean("out_d_fake") > 0.005
    assert mean("l_d_real") + mean("l_d_fake") > 0.5
    scores = [r["validation"]["val"]["ssim"] for r in read_log(folder) if "validation" in r]
    assert scores[-1] > scores[0]
    assert not any("skipped" in r for r in read_log(folder))

"""The training loop: it learns, resumes bit-exactly, survives bad steps and bad data."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from training_helpers import run, states_equal

from drct.datasets.loader import PatchSet, RawBatch
from drct.datasets.pack import write_pack
from drct.engine.accelerate import accelerate
from drct.errors import CheckpointError, DataError, Error, ImageError, ModelNotFoundError, OptionError, OutOfMemoryError
from drct.imaging import Picture, write
from drct.networks import create_network
from drct.training import checkpoint
from drct.training.checkpoint import list_states, load_state, set_aside
from drct.training.log import Log, read_log
from drct.training.loop import Run, TrainingError, changeable_rates, fingerprint, train
from drct.training.options import parse_options
from drct.training.pairs import open_pairs
from drct.training.starting import build_network
from drct.training.steps import PixelStep, uses_bf16
from drct.weights import load_network, read_weights, save_network

Make = Callable[..., dict[str, Any]]
TINY: dict[str, Any] = {"embed_dim": 16, "gc": 16, "depths": [1, 1], "num_heads": [1, 1], "window_size": 8, "drop_path_rate": 0.3}


def test_learns_and_leaves_everything_behind(option_dict: Make, tmp_path: Path) -> None:
    folder = run(option_dict(total_iter=60, linear_start=True), tmp_path / "run")
    losses = [r["loss"] for r in read_log(folder) if "loss" in r]
    assert losses[-1] < 0.8 * losses[0]
    scores = [r["validation"]["val"] for r in read_log(folder) if "validation" in r]
    assert len(scores) == 6
    assert scores[-1]["psnr"] > scores[0]["psnr"]
    for name in ("curve.png", "best.safetensors", "latest.safetensors", "sheets/00000060.png"):
        assert (folder / name).stat().st_size > 0, name
    state = load_state(list_states(folder)[-1])
    network = load_network(folder / "latest.safetensors")
    assert all(torch.equal(p, state.ema[n]) for n, p in network.named_parameters())


def test_killed_and_resumed_equals_one_go(option_dict: Make, tmp_path: Path) -> None:
    data = option_dict()
    whole = run(data, tmp_path / "whole")
    (tmp_path / "options.yml").write_text(yaml.safe_dump(data))
    command = [sys.executable, "-m", "drct", "train", "-opt", str(tmp_path / "options.yml"), "--device", "cpu"]
    command += ["--output", str(tmp_path / "halves"), "--resume", "auto"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not any(s.name == "iteration_00000010.state" for s in list_states(tmp_path / "halves")):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    reached = load_state(list_states(tmp_path / "halves")[-1]).iteration
    assert reached >= 10
    for late in list_states(tmp_path / "halves"):
        if load_state(late).iteration > 10:  # the kill came a moment too late: go back to where it was meant
            late.unlink()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "resumed iteration_00000010.state" in done.stdout
    assert states_equal(list_states(whole)[-1], list_states(tmp_path / "halves")[-1])
    assert [r for r in read_log(whole) if "validation" in r] == [r for r in read_log(tmp_path / "halves") if "validation" in r]


def test_precision_auto_follows_the_processor(option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from drct.engine import devices

    for instructions, wanted in (((), False), (("amx_bf16",), True)):
        monkeypatch.setattr(devices, "bf16_instructions", lambda found=instructions: found)
        options, _ = parse_options(option_dict() | {"train": option_dict()["train"] | {"precision": "auto"}})
        assert uses_bf16(options.train, torch.device("cpu")) is wanted


def test_bf16_without_instructions_is_warned_of(option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drct.training.loop.bf16_instructions", lambda: ())
    lines: list[str] = []
    data = option_dict(total_iter=1, precision="bf16")
    train(parse_options(data)[0], tmp_path / "run", device="cpu", echo=lines.append)
    assert [line for line in lines if "no instructions for bf16" in line]


def test_a_run_is_not_overwritten_by_mistake(option_dict: Make, tmp_path: Path) -> None:
    run(option_dict(total_iter=5), tmp_path / "run")
    with pytest.raises(OptionError, match="--resume auto"):
        run(option_dict(total_iter=5), tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="file is a file, but the output is the folder of the run"):
        run(option_dict(total_iter=5), tmp_path / "file")
    with pytest.raises(CheckpointError, match="other options"):
        run(option_dict(optim_g={"type": "Adam"}), tmp_path / "run", resume="auto")


def test_accumulated_batches_equal_one_large_batch(option_dict: Make, tmp_path: Path) -> None:
    small, large = option_dict(accumulate=4), option_dict()
    large["datasets"]["train"]["batch_size_per_gpu"] = 8
    for data in (small, large):
        data["network_g"]["drop_path_rate"] = 0.0
        data["train"]["total_iter"] = 5
    a, b = (load_state(list_states(run(d, tmp_path / n))[-1]).network for n, d in (("a", small), ("b", large)))
    assert all((a[k] - b[k]).abs().max() < 1e-3 for k in a)


def test_skips_bad_steps_and_stops_after_ten(option_dict: Make, tmp_path: Path) -> None:
    options, _ = parse_options(option_dict())
    from drct.training.loop import Process

    instance = Run(options, tmp_path / "run", Process(0, 1, torch.device("cpu")), lambda line: None)
    before = {k: v.clone() for k, v in instance.network.state_dict().items()}
    assert isinstance(instance.step, PixelStep)
    instance.step.content.criteria = {"pix": lambda sr, gt: sr.sum() * float("nan")}
    with pytest.raises(
        TrainingError, match=r"10 steps in a row .* first at iteration 1; no checkpoint .* after iteration 0, which"
    ):
        instance.go()
    state = load_state(list_states(tmp_path / "run")[-1])
    assert all(torch.equal(v, before[k]) for k, v in state.network.items())
    assert [r["in_a_row"] for r in read_log(tmp_path / "run") if "in_a_row" in r] == list(range(1, 11))


def clips(monkeypatch: pytest.MonkeyPatch, answers: str) -> None:
    """Steps are finite where there is a ``+`` in ``answers``, and none is afterwards."""
    left = iter(answers)
    monkeypatch.setattr(PixelStep, "clip", lambda self: next(left, "-") == "+")


def saving_every_third(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"logger": {"print_freq": 100, "save_checkpoint_freq": 3}}


def test_a_diverged_run_keeps_what_was_saved_before(option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips(monkeypatch, "+" * 7)
    with pytest.raises(TrainingError, match="10 steps in a row were not finite, the first at iteration 8; ") as caught:
        run(saving_every_third(option_dict()), tmp_path / "run")
    folder = tmp_path / "run"
    assert names(folder) == ["03.state", "06.state"]
    assert f"is {folder}/iteration_00000006.state, of iteration 6: " in str(caught.value)
    assert f"with --resume auto, or if that diverges too, with --resume {folder}/iteration_00000003.state" in str(caught.value)
    state, latest = load_state(list_states(folder)[-1]), load_network(folder / "latest.safetensors")
    assert all(torch.equal(p, state.ema[n]) for n, p in latest.named_parameters())
    assert not (folder / "best.safetensors").exists()
    assert not [r for r in read_log(folder) if "validation" in r]


def test_spoilt_weights_are_not_saved_as_the_first_checkpoint(
    option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(self: PixelStep) -> bool:
        next(self.generator.network.parameters()).data.fill_(math.nan)
        return False

    monkeypatch.setattr(PixelStep, "clip", spoil)
    with pytest.raises(TrainingError, match=r"no checkpoint had been written yet: .* and start again$"):
        run(option_dict(), tmp_path / "run")
    assert names(tmp_path / "run") == []


@pytest.mark.parametrize(("answers", "saved"), [("++++++--", ["03", "06"]), ("+++++++-", ["06", "08"]), ("+++++--+", ["03", "08"])])
def test_a_run_that_is_stopped_among_bad_steps_saves_what_it_learned(
    option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str, saved: list[str]
) -> None:
    clips(monkeypatch, answers)
    folder = run(saving_every_third(option_dict()), tmp_path / "run", stop_after=8)
    assert names(folder) == [f"{iteration}.state" for iteration in saved]


def test_a_bad_step_costs_no_checkpoint(option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips(monkeypatch, "++++-++++-")
    lines: list[str] = []
    folder = train(parse_options(option_dict(total_iter=10))[0], tmp_path / "run", device="cpu", echo=lines.append).folder
    assert [load_state(p).iteration for p in list_states(folder)] == [6, 10]
    assert [line.endswith(" left  1 of 5 steps skipped") for line in lines if "it/s" in line] == [True, True]
    log = read_log(folder)
    assert [r["iteration"] for r in log if "skipped" in r] == [5, 10]
    assert [r["iteration"] for r in log if "images_per_second" in r] == [5, 10]
    assert [r["iteration"] for r in log if "validation" in r] == [10]


def test_x4_takes_the_body_of_x2(option_dict: Make, tmp_path: Path) -> None:
    data = option_dict()
    small = {k: v for k, v in data["network_g"].items() if k != "type"}
    x2 = create_network("drct_light", scale=2, **small)
    save_network(x2, tmp_path / "x2.safetensors")
    data["scale"] = 4
    data["path"] = {"pretrain_network_g": str(tmp_path / "x2.safetensors"), "strict_load_g": True}
    lines: list[str] = []
    x4 = build_network(parse_options(data)[0], lines.append)
    assert any("all but the upsampler" in line for line in lines)
    own, given = x4.state_dict(), x2.state_dict()
    assert all(torch.equal(own[k], given[k]) for k in own if not k.startswith("upsample"))
    assert own["upsample.0.weight"].shape != given["upsample.0.weight"].shape


@pytest.mark.parametrize(
    ("layout", "options"), [("params", {}), ("params", {"param_key_g": "params_ema"}), ("state_dict", {}), ("", {})]
)
def test_start_weights_need_no_averages(option_dict: Make, tmp_path: Path, layout: str, options: dict[str, str]) -> None:
    data = option_dict()
    torch.manual_seed(7)
    state = create_network("drct_light", scale=2, **{k: v for k, v in data["network_g"].items() if k != "type"}).state_dict()
    torch.save({layout: state} if layout else state, tmp_path / "start.pth")
    data["path"] = {"pretrain_network_g": str(tmp_path / "start.pth"), **options}
    network = build_network(parse_options(data)[0], lambda _: None)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("options", [{"skip_upsampler_g": True}, {"strict_load_g": False}])
def test_a_body_alone_is_a_start(option_dict: Make, tmp_path: Path, options: dict[str, bool]) -> None:
    data = option_dict()
    torch.manual_seed(7)
    state = create_network("drct_light", scale=2, **{k: v for k, v in data["network_g"].items() if k != "type"}).state_dict()
    body = {name: value for name, value in state.items() if not name.startswith("upsample.")}
    torch.save(body, tmp_path / "body.pth")
    data["path"] = {"pretrain_network_g": str(tmp_path / "body.pth"), **options}
    network = build_network(parse_options(data)[0], lambda _: None).state_dict()
    assert all(torch.equal(network[name], value) for name, value in body.items())
    data["path"] = {"pretrain_network_g": str(tmp_path / "body.pth")}
    with pytest.raises(CheckpointError, match="it has no upsampler"):
        build_network(parse_options(data)[0], lambda _: None)


def test_another_tail_is_left_as_it_is(option_dict: Make, tmp_path: Path) -> None:
    data = option_dict()
    small = {k: v for k, v in data["network_g"].items() if k != "type"}
    save_network(create_network("drct_light", scale=2, **small), tmp_path / "direct.safetensors")
    data["network_g"]["upsampler"] = "pixelshuffle"
    data["path"] = {"pretrain_network_g": str(tmp_path / "direct.safetensors"), "skip_upsampler_g": True}
    lines: list[str] = []
    network = build_network(parse_options(data)[0], lines.append)
    given = read_weights(tmp_path / "direct.safetensors").tensors
    assert all(torch.equal(t, given[k]) for k, t in network.state_dict().items() if k.startswith(("conv_first", "layers")))
    assert "skipped" in lines[-1]


@pytest.mark.parametrize(("key", "value"), [("img_range", 255.0), ("qk_scale", 0.1)])
def test_weights_that_would_compute_something_else_are_refused(option_dict: Make, tmp_path: Path, key: str, value: float) -> None:
    data = option_dict()
    small = {k: v for k, v in data["network_g"].items() if k != "type"}
    save_network(create_network("drct_light", scale=2, **small), tmp_path / "start.safetensors")
    data["network_g"][key] = value
    data["path"] = {"pretrain_network_g": str(tmp_path / "start.safetensors")}
    with pytest.raises(CheckpointError, match=rf"start\.safetensors was trained with {key} .*, but the network has {value}"):
        build_network(parse_options(data)[0], lambda _: None)


def test_a_model_may_have_a_dot_in_its_name(option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = option_dict()
    monkeypatch.setenv("DRCT_MODELS", str(tmp_path))
    network = create_network("drct_light", scale=2, **{k: v for k, v in data["network_g"].items() if k != "type"})
    save_network(network, tmp_path / "net_v1.5.safetensors")
    data["path"] = {"pretrain_network_g": "net_v1.5"}
    assert build_network(parse_options(data)[0], lambda _: None).scale == 2


def test_two_processes_train_together(option_dict: Make, tmp_path: Path) -> None:
    data = option_dict(total_iter=4)
    data["network_g"]["drop_path_rate"] = 0.0
    (tmp_path / "options.yml").write_text(yaml.safe_dump(data))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "drct", "train"]
    command += ["-opt", str(tmp_path / "options.yml"), "--device", "cpu", "--output", str(tmp_path / "two")]
    subprocess.run(command, check=True, capture_output=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"})
    one = option_dict(total_iter=4)
    one["network_g"]["drop_path_rate"] = 0.0
    one["datasets"]["train"]["batch_size_per_gpu"] = 4
    a = load_state(list_states(tmp_path / "two")[-1]).network
    b = load_state(list_states(run(one, tmp_path / "one"))[-1]).network
    assert all((a[k] - b[k]).abs().max() < 1e-3 for k in a)


def test_a_compiler_sees_one_graph_and_the_same_values() -> None:
    """Under torch.compile the kernels step aside for the network's own operations."""
    torch.manual_seed(0)
    net = create_network("drct", scale=2, **TINY).eval()
    x = torch.rand(1, 3, 16, 16)
    expected = net(x)
    accelerate(net)
    assert (torch.compile(net, backend="eager", fullgraph=True)(x) - expected).abs().max() < 1e-5


@pytest.mark.slow  # minutes of a C++ compiler
def test_a_compiled_step_equals_an_eager_one(option_dict: Make, tmp_path: Path) -> None:
    states = []
    for compiled in (False, True):
        data = option_dict(total_iter=1, compile=compiled)
        states.append(load_state(list_states(run(data, tmp_path / str(compiled)))[-1]).network)
    assert all((a - b).abs().max() < 1e-4 for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_a_full_disk_leaves_earlier_checkpoints(option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(option_dict(total_iter=5), tmp_path / "run")
    earlier = list_states(folder)[-1]
    content = earlier.read_bytes()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("drct.weights.save.os.fsync", full)
    with pytest.raises(Error, match=r"No space left on device.*intact"):
        run(option_dict(total_iter=10), folder, resume="auto")
    assert list_states(folder) == [earlier]
    assert earlier.read_bytes() == content
    assert not list(folder.glob(".*.part"))


def limit_files() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


@pytest.mark.skipif(sys.platform == "win32", reason="no limits there")
def test_no_room_costs_one_line(option_dict: Make, tmp_path: Path) -> None:
    """The system itself refuses, in the midst of a file."""
    data = option_dict(total_iter=20)
    folder = run(data, tmp_path / "run", stop_after=5)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    (tmp_path / "options.yml").write_text(yaml.safe_dump(data))
    command = [sys.executable, "-m", "drct", "train", "-opt", str(tmp_path / "options.yml"), "--device", "cpu"]
    command += ["--output", str(folder), "--resume", "auto"]
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit_files)
    assert done.returncode == 1
    assert done.stderr.startswith("drct: error: ")
    assert "(File too large)" in done.stderr
    assert "intact" in done.stderr
    assert done.stderr.count("\n") == 1
    assert files.keys() - {folder / "log.jsonl"} <= set(folder.iterdir())
    assert all(path.read_bytes() == content for path, content in files.items() if path.name != "log.jsonl")
    assert not list(folder.glob(".*.part"))


def test_a_folder_that_cannot_be_made_is_named(option_dict: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"file/run cannot be written \(Not a directory\)"):
        run(option_dict(), tmp_path / "file" / "run")


def test_a_file_that_is_no_checkpoint_is_named(option_dict: Make, tmp_path: Path) -> None:
    folder = run(option_dict(total_iter=5), tmp_path / "run")
    for path in (folder / "latest.safetensors", list_states(folder)[-1]):
        if path.suffix == ".state":
            path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(CheckpointError, match=r"no checkpoint of a training run, or cut off"):
            run(option_dict(total_iter=5), folder, resume=str(path))


def test_bad_data_is_named_before_the_first_step(option_dict: Make, tmp_path: Path) -> None:
    for by_area in (False, True):
        data = option_dict()
        data["datasets"]["train"] |= {"gt_size": 128, "by_area": by_area}
        with pytest.raises(DataError, match=r"^datasets\.train: .* smaller than a patch"):
            run(data, tmp_path / "run")
    pack, nowhere, fewer = (str(tmp_path / name) for name in ("pack", "nowhere", "fewer"))
    (tmp_path / "fewer").mkdir()
    write(tmp_path / "fewer" / "a.png", Picture(pixels=np.zeros((48, 48, 3), np.uint8)))
    for section, changes, message in (
        ("train", {"dataroot_gt": nowhere}, rf"^datasets\.train\.dataroot_gt: {re.escape(nowhere)} does not exist$"),
        ("train", {"dataroot_lq": nowhere}, rf"^datasets\.train\.dataroot_lq: {re.escape(nowhere)} does not exist$"),
        ("train", {"dataroot_lq": fewer}, r"^datasets\.train: \d+ GT images and 1 LR images"),
        ("train", {"meta_info_file": nowhere}, rf"^datasets\.train\.meta_info_file: {re.escape(nowhere)} cannot be read"),
        ("val_1", {"dataroot_gt": nowhere}, rf"^datasets\.val_1\.dataroot_gt: {re.escape(nowhere)} does not exist$"),
        ("val_1", {"dataroot_lq": nowhere}, rf"^datasets\.val_1\.dataroot_lq: {re.escape(nowhere)} does not exist$"),
        ("val_1", {"dataroot_lq": fewer, "dataroot_gt": pack}, r"^datasets\.val_1: \d+ GT images and 1 LR images"),
    ):
        data = option_dict()
        data["datasets"][section] |= changes
        with pytest.raises(DataError, match=message):
            run(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_list_and_a_template_choose_the_training_pairs(option_dict: Make, tmp_path: Path) -> None:
    for i in range(1, 13):
        for name, side in ((f"gt/{i}.png", 40), (f"lq/{i}x2.png", 20)):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            write(tmp_path / name, Picture(pixels=np.full((side, side, 3), i, np.uint8)))
    (tmp_path / "list.txt").write_text("12.png (40,40,3)\n2.png (40,40,3)\n1.png (40,40,3)\n")
    data = option_dict()
    data["datasets"]["train"] |= {"dataroot_gt": str(tmp_path / "gt"), "dataroot_lq": str(tmp_path / "lq")}
    for more, count in (({}, 12), ({"filename_tmpl": "{}x2"}, 12), ({"meta_info_file": str(tmp_path / "list.txt")}, 3)):
        data["datasets"]["train"] |= more
        patches = open_pairs(parse_options(data)[0]).patches
        assert len(patches.gt) == count
        raw = patches.raw_batch(range(12))
        assert raw.lq is not None
        assert raw.gt[:, 0, 0, 0].tolist() == raw.lq[:, 0, 0, 0].tolist()


def test_an_image_lost_during_a_run_is_named(option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that cannot read its image ends the run with that image's name; the checkpoints of before stay."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(60):  # more than a run has seen, and then keeps, by the time they are lost
        write(folder / f"{i}.png", Picture(pixels=np.full((40, 40, 3), 4 * i, np.uint8)))
    data = option_dict(total_iter=40)
    data["datasets"]["train"] |= {"dataroot_gt": str(folder), "num_worker_per_gpu": 1}
    save = checkpoint.save_state

    def save_and_break(*args: Any) -> Path:
        for path in folder.glob("*.png"):
            path.write_bytes(path.read_bytes()[:60])
        return save(*args)

    monkeypatch.setattr("drct.training.loop.save_state", save_and_break)
    with pytest.raises(Error, match=r"images/\d+\.png") as caught:
        run(data, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert load_state(list_states(tmp_path / "run")[-1]).iteration >= 5


@pytest.mark.parametrize("cut", [5, 6])
def test_an_image_lost_right_after_a_checkpoint_does_not_cost_it(
    option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    """The next batch is prepared before the step is saved."""
    whole = PatchSet.raw_batch

    def broken(self: PatchSet, samples: range) -> RawBatch:
        if samples.start >= 2 * cut:  # batches of 2
            raise DataError("a.png cannot be read")
        return whole(self, samples)

    monkeypatch.setattr(PatchSet, "raw_batch", broken)
    with pytest.raises(DataError, match=r"a\.png"):
        run(option_dict(), tmp_path / "run")
    assert [load_state(path).iteration for path in list_states(tmp_path / "run")] == ([5] if cut == 5 else [5, 6])


def test_recomputed_groups_give_the_same_gradients() -> None:
    """Activation checkpointing (use_checkpoint) under stochastic depth, plain and with the native kernels."""
    x, found = torch.rand(2, 3, 16, 16), []
    for recompute in (False, True):
        torch.manual_seed(0)
        net = create_network("drct_light", scale=2, **TINY, use_checkpoint=recompute)
        accelerate(net)
        with torch.autocast("cpu", torch.bfloat16):
            y = net(x)
        found.append(torch.autograd.grad(y.float().square().mean(), list(net.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def names(folder: Path) -> list[str]:
    return sorted(p.name.removeprefix("iteration_000000") for p in folder.glob("iteration_*"))


def test_going_back_sets_newer_checkpoints_aside(option_dict: Make, tmp_path: Path) -> None:
    folder = run(option_dict(), tmp_path / "run")
    assert names(folder) == ["15.state", "20.state"]
    (folder / "iteration_00000015.state").rename(tmp_path / "kept.state")
    lines: list[str] = []
    options, _ = parse_options(option_dict())
    train(options, folder, resume=str(tmp_path / "kept.state"), device="cpu", echo=lines.append, stop_after=2)
    assert names(folder) == ["17.state", "20.state.abandoned"]
    assert "set aside: iteration_00000020.state, best.safetensors (now .abandoned)" in lines
    run(option_dict(), folder, resume="auto", stop_after=1)
    assert names(folder) == ["17.state", "18.state", "20.state.abandoned"]


def test_what_was_set_aside_earlier_stays(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    for content in ("one", "two", "three"):
        path.write_text(content)
        set_aside([path])
    found = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert found == {f"{path.name}.abandoned{end}": text for end, text in (("", "one"), (".2", "two"), (".3", "three"))}


@pytest.mark.parametrize("resume", [None, "auto"])
def test_weights_whose_checkpoints_were_removed_are_not_replaced(option_dict: Make, tmp_path: Path, resume: str | None) -> None:
    folder = run(option_dict(), tmp_path / "run")
    for state in list_states(folder):
        state.unlink()
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    with pytest.raises(OptionError, match=r"run holds best.* of an earlier run, but no checkpoint"):
        run(option_dict(), folder, resume=resume)
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_a_damaged_image_costs_no_step(option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients(self: Any, batches: Any, iteration: int) -> Any:
        if iteration == 3:
            raise ImageError("a.png: cut off")
        return plain(self, batches, iteration)

    plain = PixelStep.gradients
    monkeypatch.setattr(PixelStep, "gradients", gradients)
    with pytest.raises(ImageError, match="cut off"):
        run(option_dict(), tmp_path / "run")
    assert names(tmp_path / "run") == ["03.state"]


def test_going_back_sets_the_best_of_the_abandoned_way_aside(option_dict: Make, tmp_path: Path) -> None:
    folder = run(option_dict(), tmp_path / "run")
    (folder / "iteration_00000015.state").rename(tmp_path / "kept.state")
    assert load_state(folder / "iteration_00000020.state").best["iteration"] == 20
    of_20 = (folder / "best.safetensors").read_bytes()
    run(option_dict(), folder, resume=str(tmp_path / "kept.state"), stop_after=1)
    assert (folder / "best.safetensors.abandoned").read_bytes() == of_20
    assert not (folder / "best.safetensors").exists()
    run(option_dict(), folder, resume="auto")
    of_20 = (folder / "best.safetensors").read_bytes()
    (folder / "iteration_00000020.state").rename(tmp_path / "again.state")
    run(option_dict(total_iter=22), folder, resume=str(tmp_path / "again.state"), stop_after=1)
    assert (folder / "best.safetensors").read_bytes() == of_20  # of no abandoned way


def test_a_record_whose_weights_are_elsewhere_does_not_count(option_dict: Make, tmp_path: Path) -> None:
    first = run(option_dict(), tmp_path / "run", stop_after=10)
    assert load_state(first / "iteration_00000010.state").best["iteration"] == 10
    second = run(option_dict(), tmp_path / "other", resume=str(first / "iteration_00000010.state"), stop_after=1)
    assert (second / "best.safetensors").is_file()  # the validation that this folder has not seen is made again
    assert load_state(list_states(second)[-1]).best["iteration"] == 10


def test_what_was_just_written_is_not_pruned(option_dict: Make, tmp_path: Path) -> None:
    folder = run(option_dict(), tmp_path / "run")
    state = load_state(list_states(folder)[0])
    state.iteration = 10
    assert checkpoint.save_state(state, folder).exists()


def test_only_auto_begins_anew(option_dict: Make, tmp_path: Path) -> None:
    folder = run(option_dict(total_iter=5), tmp_path / "run")
    (tmp_path / "empty").mkdir()
    for given, message in (("rnu", "does not exist"), ("rnu.state", "does not exist"), ("empty", "holds no checkpoint")):
        with pytest.raises(CheckpointError, match=f"{given} {message}"):
            run(option_dict(), folder, resume=str(tmp_path / given))
    assert names(folder) == ["05.state"]


def test_resume_state_is_the_default_of_resume(option_dict: Make, tmp_path: Path) -> None:
    folder = run(option_dict(), tmp_path / "run")
    data = option_dict() | {"path": {"resume_state": str(folder / "iteration_00000015.state")}}
    run(data, tmp_path / "other", stop_after=1)
    assert names(tmp_path / "other") == ["16.state"]
    with pytest.raises(OptionError, match=r"00000020\.state is newer than .*add --resume auto"):
        run(data, folder)
    run(data, folder, resume="auto")
    assert names(folder) == ["15.state", "20.state"]


def test_an_error_in_validation_costs_no_work(option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = option_dict()
    data["logger"]["save_checkpoint_freq"] = 1000
    whole = run(data, tmp_path / "whole")

    def broken(*args: Any) -> None:
        raise DataError("a.png cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr("drct.training.loop.validate", broken)
        for resume in (None, "auto"):
            with pytest.raises(DataError, match="cannot be read"):
                run(data, tmp_path / "run", resume=resume)
            assert names(tmp_path / "run") == ["10.state"]
    folder = run(data, tmp_path / "run", resume="auto")  # makes the validation that is missing
    assert states_equal(list_states(whole)[-1], list_states(folder)[-1])
    assert [r for r in read_log(whole) if "validation" in r] == [r for r in read_log(folder) if "validation" in r]


def test_the_best_record_survives_a_resume(option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([30.0, 20.0])
    monkeypatch.setattr("drct.training.loop.validate", lambda *args: {"psnr": next(scores)})
    folder = run(option_dict(total_iter=20), tmp_path / "run", stop_after=10)
    assert load_state(list_states(folder)[-1]).best == {"psnr": 30.0, "iteration": 10.0}
    best = (folder / "best.safetensors").read_bytes()
    run(option_dict(total_iter=20), folder, resume="auto")
    assert load_state(list_states(folder)[-1]).best == {"psnr": 30.0, "iteration": 10.0}
    assert (folder / "best.safetensors").read_bytes() == best


def test_a_border_too_large_is_named_before_the_first_step(option_dict: Make, tmp_path: Path) -> None:
    for metric, border in (("psnr", 32), ("ssim", 27)):
        data = option_dict()
        data["val"]["metrics"][metric]["crop_border"] = border
        with pytest.raises(OptionError, match=rf"val\.metrics\.{metric}: 0 of val is 80 x 64, .*crop_border of {border}"):
            run(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce] can't allocate memory")])
def test_too_little_memory_costs_one_line(
    option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*args: Any) -> None:
        raise error

    monkeypatch.setattr(PixelStep, "gradients", full)
    with pytest.raises(OutOfMemoryError, match=r"batch_size_per_gpu \(now 2; .*accumulate.*use_checkpoint.*precision") as caught:
        run(option_dict(), tmp_path / "run")
    assert "\n" not in str(caught.value)


def test_a_resumed_run_needs_no_files_of_its_start_and_finds_moved_data(option_dict: Make, tmp_path: Path) -> None:
    data = option_dict()
    small = {k: v for k, v in data["network_g"].items() if k != "type"}
    save_network(create_network("drct_light", scale=2, **small), tmp_path / "start.safetensors")
    data["path"] = {"pretrain_network_g": str(tmp_path / "start.safetensors")}
    folder = run(data, tmp_path / "run", stop_after=5)
    (tmp_path / "start.safetensors").unlink()
    (tmp_path / "pack").rename(tmp_path / "moved")
    for section in ("train", "val_1"):
        data["datasets"][section]["dataroot_gt"] = str(tmp_path / "moved")
    run(data, folder, resume="auto", stop_after=1)
    assert names(folder) == ["05.state", "06.state"]
    data["datasets"]["train"]["dataroot_lq"] = str(tmp_path / "moved")
    options, _ = parse_options(data)
    assert fingerprint(options) != fingerprint(parse_options(option_dict())[0])  # LR from files is no other place of made LR


def test_two_runs_do_not_share_a_folder(option_dict: Make, tmp_path: Path) -> None:
    with checkpoint.held(tmp_path / "run"), pytest.raises(OptionError, match=r"another process is training in .*run"):
        run(option_dict(), tmp_path / "run", stop_after=1)
    run(option_dict(), tmp_path / "run", stop_after=5)
    with checkpoint.held(tmp_path / "run"), pytest.raises(OptionError, match="another process is training"):
        run(option_dict(), tmp_path / "run", resume="auto")
    assert names(tmp_path / "run") == ["05.state"]


def test_errors_of_a_key_name_the_option_file(
    option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from drct import cli

    monkeypatch.chdir(tmp_path)
    data = option_dict()
    data["network_g"]["window_sise"] = 8
    Path("o.yml").write_text(yaml.safe_dump(data))
    assert cli.run(["train", "-opt", "o.yml"]) == 2
    assert capsys.readouterr().err.startswith("drct: error: o.yml: network_g: option 'window_sise' is unknown")
    data = option_dict()
    data["datasets"]["train"]["dataroot_gt"] = "nowhere"
    Path("o.yml").write_text(yaml.safe_dump(data))
    assert cli.run(["train", "-opt", "o.yml"]) == 1
    assert capsys.readouterr().err.startswith("drct: error: o.yml: datasets.train.dataroot_gt: nowhere")


def test_a_training_set_that_has_grown_is_told(option_dict: Make, tmp_path: Path) -> None:
    folder = run(option_dict(), tmp_path / "run", stop_after=5)
    said: list[str] = []
    options, _ = parse_options(option_dict())
    train(options, folder, device="cpu", resume="auto", stop_after=1, echo=said.append)
    assert not [line for line in said if "images" in line]
    write_pack(tmp_path / "pack", [("more", np.zeros((64, 64, 3), np.uint8))], append=True)
    train(options, folder, device="cpu", resume="auto", stop_after=1, echo=said.append)
    (warning,) = [line for line in said if "images" in line]
    assert "trained on 4 images, and there are 5 now" in warning


def test_options_that_change_no_weights_do_not_end_a_run(option_dict: Make) -> None:
    data = option_dict(precision="bf16")
    data["network_g"]["use_checkpoint"] = True
    data["network_g"]["compress_ratio"] = 3
    data["datasets"]["train"] |= {"name": "another", "dataset_enlarge_ratio": 7}
    assert fingerprint(parse_options(data)[0]) == fingerprint(parse_options(option_dict())[0])


def test_a_run_goes_on_at_another_rate_and_is_told(option_dict: Make, tmp_path: Path) -> None:
    said: list[str] = []
    slow = option_dict(grad_clip=0.5)
    slow["train"]["optim_g"] = slow["train"]["optim_g"] | {"lr": 1e-12}
    folder = run(option_dict(), tmp_path / "run", stop_after=5)
    for _ in range(2):
        train(parse_options(slow)[0], folder, device="cpu", resume="auto", stop_after=1, echo=said.append)
    rates = [line for line in said if "from here on" in line]
    assert rates == [
        "train.optim_g.lr was 0.001 until now and is 1e-12 from here on",
        "train.grad_clip was none until now and is 0.5 from here on",
    ]
    before, after = (load_state(path) for path in list_states(folder))
    assert after.optimizer["param_groups"][0]["lr"] == 1e-12
    assert all((after.network[name] - value).abs().max() < 1e-9 for name, value in before.network.items())


def test_a_run_against_a_discriminator_goes_on_at_another_rate(gan_dict: Make) -> None:
    options, slower = (parse_options(gan_dict(optim_d={"type": "Adam", "lr": lr, "betas": [0.9, 0.99]}))[0] for lr in (5e-4, 1e-4))
    assert fingerprint(options) == fingerprint(slower)
    assert fingerprint(options, 2) != fingerprint(slower, 2)
    assert changeable_rates(slower)["train.optim_d.lr"] == 1e-4


def test_points_of_the_iteration_that_a_run_goes_on_from_stay_in_tensorboard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden: list[int] = []

    class SummaryWriter:
        """Hides from viewers what was written of ``purge_step`` and later."""

        def __init__(self, folder: str, purge_step: int) -> None:
            hidden.append(purge_step)

        def close(self) -> None:
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=SummaryWriter))
    for iteration in (0, 5):
        Log(tmp_path, True, iteration, tensorboard=True).close()
    assert hidden == [0, 6]


def test_a_state_of_another_network_is_not_called_damaged(option_dict: Make, tmp_path: Path) -> None:
    folder = run(option_dict(), tmp_path / "run", stop_after=5)
    state = load_state(list_states(folder)[-1])
    name = next(iter(state.network))
    state.network[name] = torch.cat([state.network[name]] * 2)
    checkpoint.save_state(state, folder)
    with pytest.raises(CheckpointError, match=rf"holds another network than network_g describes \({re.escape(name)}\)"):
        run(option_dict(), folder, resume="auto", stop_after=1)


@pytest.mark.parametrize("earlier", [1, 2, 3, 4, 5])
def test_earlier_states_still_resume(option_dict: Make, tmp_path: Path, earlier: int) -> None:
    folder = run(option_dict(), tmp_path / "run", stop_after=5)
    state = load_state(list_states(folder)[-1])
    state.options_sha256 = fingerprint(parse_options(option_dict())[0], earlier)
    checkpoint.save_state(state, folder)
    run(option_dict(), folder, resume="auto", stop_after=1)
    assert names(folder) == ["05.state", "06.state"]


@pytest.mark.parametrize(("changes", "since"), [({"by_area": True}, 3), ({"tone_share": 0.5}, 1)])
def test_a_run_whose_patches_were_drawn_otherwise_goes_on_and_is_told(
    option_dict: Make, tmp_path: Path, changes: dict[str, Any], since: int
) -> None:
    data = option_dict()
    data["datasets"]["train"] |= changes
    folder = run(data, tmp_path / "run", stop_after=4)
    options, _ = parse_options(data)

    def told(earlier: int) -> bool:
        state = load_state(list_states(folder)[-1])
        state.options_sha256 = fingerprint(options, earlier)
        checkpoint.save_state(state, folder)
        said: list[str] = []
        train(options, folder, device="cpu", resume="auto", stop_after=1, echo=said.append)
        return any("by an earlier version, which drew patches otherwise: other patches follow" in line for line in said)

    assert [told(earlier) for earlier in range(6)] == [earlier >= since for earlier in range(6)]


def test_log_survives_a_line_cut_short(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps({"iteration": 1}) + '\n{"iter')
    assert read_log(tmp_path) == [{"iteration": 1}]


def test_an_image_without_any_error_does_not_end_the_search_for_the_best(
    option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its PSNR is infinite; JSON has no such number."""
    answers = iter([math.inf, math.nan, 20.0, 21.0, math.inf, math.inf])

    def answer(sr: torch.Tensor, gt: torch.Tensor, *, y: bool, crop: int) -> torch.Tensor:
        return torch.tensor(20.0 if y else next(answers))  # the sheet asks, too, of luma

    monkeypatch.setattr("drct.training.validation.psnr", answer)
    data = option_dict(total_iter=3)
    data["val"]["val_freq"] = 1
    data["val"]["metrics"] = {"psnr": {"type": "calculate_psnr", "test_y_channel": False}}
    folder = run(data, tmp_path / "run")
    assert load_state(list_states(folder)[-1]).best == {"psnr": 100.0, "iteration": 3.0}
    scores = [r["validation"]["val"]["psnr"] for r in read_log(folder) if "validation" in r]
    assert scores == [None, 20.5, 100.0]
    assert "NaN" not in (folder / "log.jsonl").read_text()


def test_training_leaves_the_settings_of_torch_alone(option_dict: Make, tmp_path: Path) -> None:
    torch.manual_seed(5)
    number = torch.rand(1)
    torch.manual_seed(5)
    try:
        torch.set_default_dtype(torch.float64)
        run(option_dict(total_iter=2), tmp_path / "run")
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(1), number)
    plain = run(option_dict(total_iter=2), tmp_path / "plain")
    assert states_equal(list_states(tmp_path / "run")[-1], list_states(plain)[-1])


def test_a_tail_of_another_kind_is_not_resampled(option_dict: Make, tmp_path: Path) -> None:
    data = option_dict()
    small = {k: v for k, v in data["network_g"].items() if k != "type"}
    save_network(create_network("drct", scale=2, **small), tmp_path / "start.safetensors")
    data["path"] = {
        "pretrain_network_g": str(tmp_path / "start.safetensors"),
        "strict_load_g": False,
        "resample_upsampler_g": True,
    }
    with pytest.raises(OptionError, match=r"resample_upsampler_g: .*start\.safetensors has no tail 'pixelshuffledirect'"):
        run(data, tmp_path / "run")


def test_images_that_position_embeddings_do_not_fit_are_named_before_the_first_step(option_dict: Make, tmp_path: Path) -> None:
    data = option_dict()
    data["network_g"] |= {"ape": True, "img_size": data["datasets"]["train"]["gt_size"] // 2}
    with pytest.raises(OptionError, match=r"with ape LR images must be .* but 0 of val are 40 x 32"):
        run(data, tmp_path / "run")
    data["network_g"]["img_size"] = 64
    with pytest.raises(OptionError, match="the patches of training are"):
        run(data, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("resume", ["auto", None])
def test_a_start_while_another_process_still_trains_sees_what_that_one_leaves(
    option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: str | None
) -> None:
    """The other one ends, and saves, while this one opens its images."""
    data, folder = option_dict(total_iter=6), tmp_path / "run"
    if resume:
        run(data, folder, stop_after=2)

    def slowly(options: Any) -> Any:
        monkeypatch.undo()
        run(data, folder, resume=resume, stop_after=2)
        return open_pairs(options)

    monkeypatch.setattr("drct.training.loop.open_pairs", slowly)
    with pytest.raises(OptionError, match=r"until now: start again|holds checkpoints of an earlier run"):
        run(data, folder, resume=resume)
    left = load_state(list_states(folder)[-1]).iteration
    assert left == (4 if resume else 2)
    assert not list(folder.glob("*.abandoned"))
    run(data, folder, resume="auto")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so(option_dict: Make, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "options.yml").write_text(yaml.safe_dump(option_dict(total_iter=100_000)))
    command = [sys.executable, "-m", "drct", "train", "-opt", str(tmp_path / "options.yml"), "--device", "cpu"]
    command += ["--output", str(tmp_path / "run"), "--resume", "auto"]
    # shells let what runs in the background ignore SIGINT, and children inherit that
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "it/s" in line:
            break
    process.send_signal(number)
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 130, errors
    assert "interrupted: go on by the same command with --resume auto" in errors
    assert "iteration" in said
    few = subprocess.run([*command, "--stop-after", "2"], capture_output=True, text=True, timeout=300)
    assert (few.returncode, few.stderr) == (0, "")


def test_the_best_weights_are_chosen_anew_where_they_are_judged_otherwise(option_dict: Make, tmp_path: Path) -> None:
    said: list[str] = []

    def go_on(data: dict[str, Any]) -> dict[str, float]:
        options, _ = parse_options(data)
        return train(options, tmp_path / "run", device="cpu", echo=said.append, resume="auto").best

    assert go_on(option_dict(total_iter=10))["iteration"] == 10
    moved = option_dict(total_iter=10)
    assert go_on(moved)["iteration"] == 10
    assert not any("chosen anew" in line for line in said)
    data = option_dict(total_iter=20, optim_g={"type": "AdamW", "lr": 1e-3})
    data["val"]["metrics"] = {"psnr": {"type": "calculate_psnr", "test_y_channel": False, "crop_border": 9}}
    best = go_on(data)
    assert any("chosen anew" in line for line in said)
    assert best["iteration"] == 20


def test_weights_to_start_from_are_named_where_they_do_not_fit(option_dict: Make, tmp_path: Path) -> None:
    network = create_network("drct_light", scale=2, **TINY)
    body = {name: value for name, value in network.state_dict().items() if not name.startswith("upsample")}
    torch.save({"params": body}, tmp_path / "body.pth")
    for file, error in (("body.pth", CheckpointError), ("none.pth", ModelNotFoundError)):
        data = option_dict()
        data["path"] = {"pretrain_network_g": str(tmp_path / file)}
        with pytest.raises(error, match=rf"^path\.pretrain_network_g: \S*{file}") as caught:
            run(data, tmp_path / "run")
        assert str(caught.value).count(file) == 1

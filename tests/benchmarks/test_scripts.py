"""What the benchmark scripts do when something runs out: memory, time, patience."""

from __future__ import annotations

import importlib.util
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import yaml

from drct.datasets.pack import write_pack
from drct.imaging import Picture, resize, write
from drct.networks import create_network
from drct.weights import save_network

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Import a script by its name."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    monkeypatch.syspath_prepend(str(FOLDER))
    yield load
    sys.modules.pop("inference", None)


def gpu_sh(folder: Path, *parts: str, script: str = 'echo "$@"') -> subprocess.CompletedProcess[str]:
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    command = ["sh", str(FOLDER / "gpu.sh"), str(folder / "out"), *parts]
    return subprocess.run(command, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)})


def parts() -> dict[str, int]:
    """Seconds that each part may take."""
    return {name: int(limit) for name, limit in re.findall(r"^part (\w+) (\d+) ", (FOLDER / "gpu.sh").read_text(), re.MULTILINE)}


def test_all_parts_are_run_or_those_that_are_named(tmp_path: Path) -> None:
    assert gpu_sh(tmp_path).returncode == 0
    written = {path.stem for path in (tmp_path / "out").glob("*.txt")}
    assert written == set(parts())
    assert "training.py --model drct " in (tmp_path / "out" / "training.txt").read_text()
    for path in (tmp_path / "out").iterdir():
        path.unlink()
    result = gpu_sh(tmp_path, "training", "lam")
    assert result.returncode == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"training.txt", "lam.txt"}


def test_a_part_that_fails_keeps_no_other_from_running(tmp_path: Path) -> None:
    result = gpu_sh(tmp_path, "lam", "mamba", script='case "$1" in *mamba.py) exit 3 ;; esac; echo done')
    assert result.returncode == 1
    assert "failed with exit code 3" in result.stdout
    assert (tmp_path / "out" / "lam.txt").read_text() == "done\n"


def test_a_part_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    result = gpu_sh(tmp_path, "lam", "lama")
    assert result.returncode == 2
    assert "there is no part 'lama'" in result.stderr
    assert not (tmp_path / "out").exists()


def test_the_calls_hold_every_part_once_and_end_in_ten_minutes() -> None:
    calls = re.findall(
        r"^#     sh benchmarks/gpu.sh results/ ([\w ]+?) +# (\d+) s at most", (FOLDER / "gpu.sh").read_text(), re.MULTILINE
    )
    limits = parts()
    assert sorted(name for call, _ in calls for name in call.split()) == sorted(limits)
    for call, seconds in calls:
        assert sum(limits[name] for name in call.split()) == int(seconds) <= 600


def test_a_batch_too_large_for_one_step_costs_a_line(load, tmp_path, monkeypatch, capsys) -> None:
    training = load("training")
    written: list[list[int]] = []

    def published_step(*arguments: object):
        def step(lq: torch.Tensor, gt: torch.Tensor) -> None:
            if len(lq) > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")

        return step

    def loader_rate(*arguments: object) -> float:
        written.append([row["batch"] for row in json.loads(target.read_text())["rows"]] if target.exists() else [])
        return 5.0

    target = tmp_path / "training.json"
    monkeypatch.setattr(training, "published_step", published_step)
    monkeypatch.setattr(training, "our_step", lambda *arguments: lambda lq, gt: None)
    monkeypatch.setattr(training, "loader_rate", loader_rate)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    options = ["--batch", "1", "2", "--patch", "8", "--pairs", "2", "--device", "cpu", "--precision", "fp32", "--json", str(target)]
    monkeypatch.setattr(sys, "argv", ["training.py", *options])
    training.main()
    lines = capsys.readouterr().out.splitlines()
    assert written == [[], [1]]
    one, two = json.loads(target.read_text())["rows"]
    assert one["ratio"] is not None
    assert (two["against_seconds"], two["ratio"]) == (None, None)
    assert two["ours_images_per_second"] > 0
    assert "  published: out of memory with 2 images" in lines
    assert lines[-1].startswith("batch 2: published - s, ours 0.000 (fp32), ratio -; images/s: published -, ours ")


def test_other_errors_of_a_step_are_raised(load) -> None:
    def step(lq: torch.Tensor, gt: torch.Tensor) -> None:
        raise RuntimeError("something else")

    x = torch.zeros(1)
    with pytest.raises(RuntimeError, match="something else"):
        load("training").take_turns({"ours": step}, x, x, 1, lambda: 0.0, "s")


def test_the_file_of_the_inference_is_written_after_every_network(load, tmp_path, monkeypatch) -> None:
    inference = load("inference")
    target = tmp_path / "inference.json"

    def compare(name: str, network: object, device: object, arguments: object, results: list[dict[str, str]]) -> None:
        if name == "hat_s":
            raise RuntimeError("the limit was reached")
        results.append({"network": name})

    monkeypatch.setattr(inference, "compare", compare)
    monkeypatch.setattr(inference, "create_network", lambda name, scale: torch.nn.Identity())
    monkeypatch.setattr(sys, "argv", ["inference.py", "drct", "drct_light", "hat_s", "--json", str(target)])
    with pytest.raises(RuntimeError, match="the limit"):
        inference.main()
    assert [result["network"] for result in json.loads(target.read_text())["results"]] == ["drct", "drct_light"]


def test_kept_masks_change_no_value(load) -> None:
    inference = load("inference")
    options = {"embed_dim": 12, "depths": [1], "num_heads": [2], "window_size": 4, "gc": 4}
    network = inference.create_network("drct", scale=2, **options).eval()
    x = torch.rand(1, 3, 9, 8)
    made: list[tuple[int, ...]] = []

    def mask(*arguments) -> torch.Tensor | None:
        made.append(arguments[:4])
        return inference.made_mask(*arguments)

    with torch.inference_mode():
        expected = network(x)
        results = [inference.published_forward(network, x, masks) for masks in (mask, inference.kept_mask, inference.kept_mask)]
    assert all((y - expected).abs().max() < 1e-5 for y in results)
    assert made == [(12, 8, 4, shift) for shift in (0, 2, 0, 2, 0)]
    assert inference.kept_mask.cache_info().misses == 2


@pytest.mark.parametrize(
    ("script", "options", "words"),
    [
        ("real_world", ["--data", "nowhere"], "nowhere does not exist"),
        ("consistency", ["--data", "{data}", "--json", "{data}/a.png/x.json"], "x.json cannot be written"),
        ("condition", ["--data", "nowhere"], "nowhere is not a folder"),
        ("condition", ["--data", "{data}"], "holds no images that can be read"),
        ("lam", ["--model", "drct-lihgt"], "'drct-lihgt' is unknown"),
        ("training", ["--device", "cdua"], "'cdua' is unknown"),
        ("gradients", ["{data}/none.yml"], "none.yml cannot be read"),
    ],
)
def test_mistakes_cost_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, options: list[str], words: str) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *(option.format(data=tmp_path) for option in options)])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    assert re.fullmatch(f"{script}: .*{re.escape(words)}.*", str(caught.value))


def test_an_image_that_cannot_be_read_stops_no_other(load, tmp_path: Path, capsys) -> None:
    (tmp_path / "a.png").write_bytes(b"broken")
    write(tmp_path / "b.png", np.full((64, 64, 3), 128, np.uint8))
    cases = load("condition").cases([tmp_path / "a.png", tmp_path / "b.png"])
    assert next(cases).image == 1
    assert "a.png" in capsys.readouterr().err


def test_results_that_do_not_shrink_back_are_found(load, tmp_path: Path) -> None:
    consistency = load("consistency")
    image = torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25
    write(tmp_path / "a.png", Picture((image[0].permute(1, 2, 0) * 255).round().byte().numpy()))
    write(tmp_path / "b.png", Picture(np.full((40, 40, 3), 128, np.uint8)))
    found = consistency.measure(tmp_path, ["bicubic"], side=32)["bicubic"]
    assert found["as it is"].image == "a.png"
    assert 0 < found["near black"].worst < found["as it is"].worst < 8
    blotch = torch.zeros(1, 3, 160, 160)
    blotch[..., 64:96, 64:96] = 0.1
    sound = consistency.deviations(image, lambda x: resize(x, scale=4), 4)
    blotched = consistency.deviations(image, lambda x: resize(x, scale=4) + blotch, 4)
    assert sound.max() < 5
    assert blotched.max() > 20


@pytest.mark.parametrize(("names", "side", "count"), [(("painting.png", "comic2.png"), 64, None), (("computer.png",), 128, 1)])
def test_the_bundled_network_paints_no_blotches(
    load, shared: Path, tmp_path: Path, names: tuple[str, ...], side: int, count: int | None
) -> None:
    """Sharpened, compressed, dark and drawn images, parts of which earlier weights turned black, by up to 44 of 255."""
    for name in names:
        shutil.copy(shared / "data" / "real" / name, tmp_path)
    found = load("consistency").measure(tmp_path, ["drct-light-x4"], side, count)["drct-light-x4"]
    assert all(deviation.off < 0.5 for deviation in found.values())
    assert all(found[kind].worst < 8 for kind in found if kind != "drawn, faulty")  # there edges of noise and JPEG count, too


def test_a_rehearsal_goes_all_the_way(load, tmp_path, monkeypatch, capsys) -> None:
    rehearsal = load("rehearsal")
    network = {"type": "drct", "embed_dim": 12, "depths": [1], "num_heads": [2], "window_size": 8, "gc": 4}
    data = {
        "name": "x",
        "scale": 2,
        "datasets": {"train": {"dataroot_gt": "none", "gt_size": 32, "batch_size_per_gpu": 2, "leaves_share": 0.5}},
        "network_g": network,
        "train": {"optim_g": {"type": "Muon", "lr": 1e-3}, "total_iter": 10_000},
        "val": {"val_freq": 1000, "metrics": {"psnr": {"type": "calculate_psnr"}}},
    }
    (tmp_path / "o.yml").write_text(yaml.safe_dump(data))
    options = [str(tmp_path / "o.yml"), "--iterations", "4", "--device", "cpu", "--json", str(tmp_path / "r.json")]
    monkeypatch.setattr(sys, "argv", ["rehearsal.py", *options])
    rehearsal.main()
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("       4/4") for line in lines)
    assert re.fullmatch(r"[\d.]+ it/s, [\d.]+ images/s", lines[-1])
    document = json.loads((tmp_path / "r.json").read_text())
    assert len(document["images_per_second"]) == 2
    assert document["best"]["iteration"] == 4


def test_turns_of_gradients_are_told_from_noise(load, tmp_path, monkeypatch) -> None:
    gradients = load("gradients")
    network = create_network("drct_light", scale=2, embed_dim=16, gc=16, depths=[1], num_heads=[1])
    save_network(network, tmp_path / "net.safetensors")
    write_pack(tmp_path / "pack", [("a", np.zeros((64, 64, 3), np.uint8))])
    data = {
        "name": "x",
        "scale": 2,
        "datasets": {"train": {"dataroot_gt": str(tmp_path / "pack"), "gt_size": 32, "batch_size_per_gpu": 2}},
        "network_g": {"type": "drct_light", "embed_dim": 16, "gc": 16, "depths": [1], "num_heads": [1]},
        "train": {"optim_g": {"type": "Adam"}, "total_iter": 10},
    }
    (tmp_path / "o.yml").write_text(yaml.safe_dump(data))
    signs = iter([1, -1] * 2)

    def made(network, batch, half):
        assert batch.lq.shape == (2, 3, 16, 16)
        sign = next(signs) if half else 0
        return {"conv_first.weight": torch.full((4,), 1.5 if half else 1.0), "layers.0.x": torch.ones(4) + 2 * sign}

    monkeypatch.setattr(gradients, "gradients", made)
    found = gradients.measure(tmp_path / "o.yml", str(tmp_path / "net.safetensors"), 4)
    assert found["conv_first"] == pytest.approx({"length": 2, "turn": 0.5, "noise": 0.25})
    assert found["layers.0"] == pytest.approx({"length": 2, "turn": 0, "noise": 1})

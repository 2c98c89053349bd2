"""The command line of explanations."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from drct.cli import run
from drct.cli.explain import repeat_model
from drct.errors import MissingDependencyError
from drct.explain import extras
from drct.explain.subjects import load_or_create, unique_names
from drct.imaging import write
from drct.networks import SuperResolutionNetwork, create_network


def test_several_models_after_one_option() -> None:
    assert repeat_model(["a.png", "--model", "A", "B", "-o", "x"]) == ["a.png", "--model", "A", "--model", "B", "-o", "x"]
    assert repeat_model(["--model", "A", "a.png", "b.png"]) == ["--model", "A", "a.png", "b.png"]
    assert repeat_model(["--model=A", "a.png"]) == ["--model=A", "a.png"]
    assert repeat_model(["--model=A", "B", "a.png"]) == ["--model=A", "--model", "B", "a.png"]


def test_a_folder_hides_no_name_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("hat", "drct-light-x2", "photos"):
        Path(name).mkdir()
    args = ["--model", "A", "hat", "drct-light-x2", "photos"]
    assert repeat_model(args) == ["--model", "A", "--model", "hat", "--model", "drct-light-x2", "photos"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text here")
def test_names_that_are_no_text(image: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = create_network("drct", scale=2, embed_dim=8, gc=4, depths=[1], num_heads=[2], window_size=4)
    named = tmp_path / "m\udcff.pth"
    with named.open("wb") as file:
        torch.save({"params": network.state_dict()}, file)
    lam, flow = tmp_path / "lam.png", tmp_path / "flow.png"
    assert run(["explain", "lam", str(image), "--at", "10,12", "--fold", "2", "--model", str(named), "-o", str(lam)]) == 0
    assert r"m\udcff/attribution" in np.load(lam.with_suffix(".npz"))
    assert run(["explain", "flow", str(image), "--crop", "16", "--model", str(named), "-o", str(flow)]) == 0
    assert flow.with_suffix(".csv").read_text().splitlines()[1].startswith(r"m\udcff,")


def test_lam_writes_figure_and_maps(image: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "lam.png"
    args = ["explain", "lam", str(image), "--at", "10,12", "--window", "8", "--fold", "3", "--model", *map(str, models)]
    assert run([*args, "-o", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    maps = np.load(out.with_suffix(".npz"))
    for line, name, shape in zip(lines, ("tiny-drct", "tiny-swinir"), ((10, 12), (20, 24)), strict=False):
        index = float(maps[f"{name}/diffusion_index"])
        assert line == f"{name}: diffusion index {index:.4f}"
        assert maps[f"{name}/attribution"].shape == shape
        assert maps[f"{name}/gradient"].shape == (3, *shape)
    assert maps["window"].tolist() == [10, 12, 8]
    assert out.stat().st_size > 10_000


def test_flow_writes_figure_and_numbers(
    image: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "flow.svg"
    args = ["explain", "flow", str(image.parent), "--crop", "16", "--model", str(models[0]), "--model", str(models[1])]
    assert run([*args, "-o", str(out)]) == 0
    assert "tiny-swinir: mean absolute value by group" in capsys.readouterr().out
    rows = out.with_suffix(".csv").read_text().splitlines()
    assert rows[0] == "model,group,images,maximum,mean_absolute,deviation"
    assert len(rows) == 5
    drawn = out.read_text()
    assert all(label in drawn for label in ("group", "tiny-drct", "tiny-swinir", "mean absolute value"))


def test_cost_of_names_and_files(models: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["explain", "cost", "--model", "drct_light", str(models[1]), "--size", "16x32", "--json"]) == 0
    light, tiny = json.loads(capsys.readouterr().out)
    assert light["parameters"] == 1_128_196
    assert (light["width"], light["height"]) == (16, 32)
    assert tiny["model"] == "tiny-swinir"
    assert tiny["scale"] == 2


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["lam", "IMAGE", "--at", "100,3", "--model", "MODEL"], "outside the image of 50 x 42"),
        (["lam", "IMAGE", "--at", "40,3", "--model", "MODEL"], "does not fit"),
        (["lam", "IMAGE", "--at", "4;3", "--model", "MODEL"], "not two whole numbers"),
        (["lam", "IMAGE", "--at", "4,3", "--model", "no-such-model"], "no-such-model"),
        (["lam", "IMAGE", "--at", "4,3", "--model", "IMAGE"], "waves.png"),
        (["lam", "IMAGE", "--at", "4,3", "--model", "MODEL", "-o", "IMAGE"], "is an input"),
        (["lam", "IMAGE", "--at", "4,3", "--model", "MODEL", "-o", "lam.txt"], "no suffix of a figure"),
        (["lam", "gone.png", "--at", "4,3", "--model", "MODEL"], "gone.png"),
        (["flow", "gone.png", "--model", "MODEL"], "gone.png does not exist"),
        (["flow", "IMAGE", "--model", "MODEL", "--crop", "0"], "crop is 0"),
        (["flow", "EMPTY", "--model", "MODEL"], "holds no images"),
        (["cost", "--model", "drct_light", "--size", "0x4"], "no pixels"),
        (["lam", "IMAGE", "--at", "-1,3", "--model", "MODEL"], "outside the image of 50 x 42"),
        (["lam", "IMAGE", "--at", "4,3", "--window", "0", "--model", "MODEL"], "at least 1"),
        (["lam", "IMAGE", "--at", "4,3", "--fold", "0", "--model", "MODEL"], "needs at least 1"),
        (["features", "IMAGE", "--model", "MODEL", "--show", "900"], "channel 900 does not exist"),
        (["field", "IMAGE", "--model", "IMAGE"], "waves.png"),
    ],
)
def test_bad_input_is_one_line(
    args: list[str], message: str, image: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"IMAGE": str(image), "MODEL": str(models[0]), "EMPTY": str(tmp_path)}
    before = image.read_bytes()
    assert run(["explain", *(names.get(arg, arg) for arg in args)]) in (1, 2)
    err = capsys.readouterr().err.strip()
    assert message in err
    assert "Traceback" not in err
    assert image.read_bytes() == before


@pytest.mark.parametrize("verb", ["flow", "features", "cka", "report"])
def test_a_network_without_groups_is_one_line(
    verb: str, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = SuperResolutionNetwork(None, scale=2, in_chans=3, pad_multiple=1, img_range=1.0)
    network.only = torch.nn.Conv2d(3, 3, 1)
    monkeypatch.setattr("drct.explain.subjects.load_network", lambda model: network)
    out = tmp_path / ("out.html" if verb == "report" else "out.png")
    assert run(["explain", verb, str(image), "--model", "other.pth", "-o", str(out)]) == 2
    err = capsys.readouterr().err.strip()
    assert "other has no groups named 'layers.N'" in err
    assert "\n" not in err
    assert not out.exists()


def test_missing_packages_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(extras.PACKAGES, "no_such_package_here", "Nothing")
    with pytest.raises(MissingDependencyError, match=r"Nothing: pip install 'drct\[explain\]'"):
        extras.need("no_such_package_here")


def test_names_are_unique() -> None:
    assert unique_names(["a/net.pth", "b/net.pth", "other"]) == ["net (1)", "net (2)", "other"]
    assert unique_names(["a/net.pth", "b/net.pth", "c/net (1).pth"]) == ["net (2)", "net (3)", "net (1)"]


def test_a_figure_stays_until_the_next_one_is_whole(
    image: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource", reason="no limits on sizes of files here")
    out = tmp_path / "features.png"
    command = ["explain", "features", str(image), "--crop", "16", "--model", str(models[0]), "-o", str(out)]
    assert run(command) == 0
    before = out.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        assert run(command) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{out} cannot be written" in capsys.readouterr().err
    assert out.read_bytes() == before
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_hides_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drct_light").mkdir()
    assert load_or_create("drct_light", 2).scale == 2


def test_names_are_drawn_as_they_are(image: Path, models: list[Path], tmp_path: Path) -> None:
    odd = [tmp_path / "m$_$.safetensors", tmp_path / "_best.safetensors"]
    for path in odd:
        path.write_bytes(models[0].read_bytes())
    out = tmp_path / "flow.svg"
    args = [str(image), "--crop", "16", "--model", *map(str, odd)]
    assert run(["explain", "flow", *args, "-o", str(out)]) == 0
    assert "m$_$" in out.read_text()
    assert "_best" in out.read_text()
    assert run(["explain", "features", *args, "-o", str(tmp_path / "features.png")]) == 0


@pytest.mark.parametrize("verb", ["features", "field", "lam"])
def test_too_little_memory_is_one_line(
    verb: str,
    image: Path,
    models: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(SuperResolutionNetwork, "forward", full)
    more = ["--at", "10,12", "--window", "8"] if verb == "lam" else []
    assert run(["explain", verb, str(image), *more, "--model", str(models[0]), "-o", str(tmp_path / "x.png")]) == 1
    said = capsys.readouterr().err
    assert "not enough memory for an LR image" in said
    assert ("--crop" in said) == (verb != "lam")  # only advice that can be followed


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    image: Path, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SuperResolutionNetwork, "forward", lambda *_: pytest.fail("the work began"))
    (tmp_path / "file").touch()
    for verb, name in (("features", "x.png"), ("report", "x.html")):
        assert run(["explain", verb, str(image), "--model", str(models[0]), "-o", str(tmp_path / "file" / name)]) == 2
        assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(("verb", "suffix"), [("lam", ".npz"), ("flow", ".csv")])
def test_files_beside_the_figure_replace_their_own_kind_only(
    image: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, suffix: str
) -> None:
    out, beside = tmp_path / "mine.png", tmp_path / f"mine{suffix}"
    beside.write_text("my own data")
    more = ["--at", "10,12", "--fold", "2"] if verb == "lam" else ["--crop", "16"]
    command = ["explain", verb, str(image), *more, "--model", str(models[0]), "-o", str(out)]
    assert run(command) == 2
    assert "choose another output" in capsys.readouterr().err
    assert beside.read_text() == "my own data"
    assert not out.exists()
    beside.unlink()
    assert run(command) == run(command) == 0


def test_hints_on_windows_are_about_what_models_leave_of_an_image(
    models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "odd.png", np.random.default_rng(0).integers(0, 256, (41, 43, 3), np.uint8))

    def attribute(at: str) -> int:
        arguments = ["explain", "lam", str(tmp_path / "odd.png"), "--at", at, "--window", "8", "--fold", "2"]
        return run([*arguments, "--model", str(models[0]), "-o", str(tmp_path / "a.png")])

    assert attribute("36,36") == 2
    said = capsys.readouterr().err
    hint = re.search(r"X may be at most (\d+), Y at most (\d+)", said)
    assert hint is not None, said
    assert attribute(f"{hint[1]},{hint[2]}") == 0, capsys.readouterr().err
    assert attribute("43,0") == 2
    assert "outside the image of 43 x 41" in capsys.readouterr().err

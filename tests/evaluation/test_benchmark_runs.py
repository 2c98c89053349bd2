"""Test runs: figures, bad input, saved images, interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drct.errors import CheckpointError, DataError, ModelNotFoundError, OptionError
from drct.evaluation import EvaluationOptions, evaluate
from drct.evaluation.enlargers import locate, open_enlarger
from drct.imaging import read, write

Picture = Callable[..., np.ndarray]

pytestmark = pytest.mark.usefixtures("own_cache")


def quiet(_: str) -> None:
    """For runs whose words are not looked at."""


@pytest.fixture
def data(tmp_path: Path, picture: Picture) -> Path:
    """A set of three small images, LR to be made."""
    folder = tmp_path / "data" / "Small" / "HR"
    folder.mkdir(parents=True)
    for i, name in enumerate("abc"):
        write(folder / f"{name}.png", picture(48, 40 + 4 * i, seed=i))
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("convention", "expected"),
    [
        # published for bicubic x4: 28.42 / 0.8104 and 26.00 / 0.7027, rounded luma, luma resized on its own
        ("float", {"Set5": (28.43, 0.8113), "Set14": (26.00, 0.7030)}),
        ("matlab", {"Set5": (28.42, 0.8102), "Set14": (25.99, 0.7024)}),
        ("basicsr", {"Set5": (28.43, 0.8113), "Set14": (26.09, 0.7049)}),
    ],
)
def test_bicubic_has_the_known_figures(shared: Path, convention: str, expected: dict[str, tuple[float, float]]) -> None:
    options = EvaluationOptions(models=["bicubic"], data=shared / "data/benchmarks", sets=list(expected), convention=convention)
    report = evaluate(options, say=quiet)
    published = {"Set5": (28.42, 0.8104), "Set14": (26.00, 0.7027)}
    for suite, (psnr, ssim) in expected.items():
        found = report.mean("bicubic", suite, "psnr"), report.mean("bicubic", suite, "ssim")
        assert found[0] == pytest.approx(psnr, abs=0.005)
        assert found[1] == pytest.approx(ssim, abs=5e-5)  # conventions are a thousandth apart
        if convention != "basicsr":
            assert found[0] == pytest.approx(published[suite][0], abs=0.011)
            assert found[1] == pytest.approx(published[suite][1], abs=0.001)
    assert [(notice.suite, notice.image) for notice in report.notices] == [("Set14", "bridge")]
    assert "grey" in report.notices[0].text


@pytest.mark.slow
def test_bicubic_on_bsd100(shared: Path) -> None:
    report = evaluate(EvaluationOptions(models=["bicubic"], data=shared / "data/benchmarks", sets=["BSD100"]), say=quiet)
    assert report.mean("bicubic", "BSD100", "psnr") == pytest.approx(25.96, abs=0.005)
    assert report.mean("bicubic", "BSD100", "ssim") == pytest.approx(0.6675, abs=0.001)


@pytest.mark.parametrize(
    ("metrics", "expected"),
    [
        (("psnr", "ssim"), ["PSNR and SSIM on Y (convention float), 4 pixels cut from each side."]),
        (("ssim",), ["SSIM on Y (convention float), 4 pixels cut from each side."]),
        (("psnr_rgb",), ["4 pixels cut from each side."]),
    ],
)
def test_the_table_tells_what_was_measured(data: Path, metrics: tuple[str, ...], expected: list[str]) -> None:
    report = evaluate(EvaluationOptions(models=["bicubic"], data=data, metrics=metrics), say=quiet)
    assert [line for line in report.footnotes() if "cut" in line] == expected


def test_a_network_beside_interpolation(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    options = EvaluationOptions(
        models=["bicubic", str(tiny_model)],
        data=data,
        json_file=tmp_path / "out" / "r.json",
        markdown=tmp_path / "r.md",
        save=tmp_path / "sr",
    )
    report = evaluate(options, say=quiet)
    bicubic, network = report.models
    assert (bicubic.parameters, bicubic.multiply_adds) == (None, None)
    assert network.label == "tiny"
    assert network.parameters is not None
    assert network.parameters > 1000
    assert network.multiply_adds is not None
    assert network.peak_memory is None or network.peak_memory > 2**20
    assert report.seconds("tiny") > 0  # type: ignore[operator]
    table = report.table()
    assert "Small (3)" in table
    assert "tiny" in table
    assert (tmp_path / "r.md").read_text().startswith(table.splitlines()[0])
    figures = json.loads((tmp_path / "out" / "r.json").read_text())
    assert figures["models"][0]["means"]["Small"]["psnr"] == pytest.approx(report.mean("bicubic", "Small", "psnr"))
    assert len(figures["images"]) == 6
    # what was saved is what was measured
    saved = read(tmp_path / "sr" / "tiny" / "Small" / "b.png").pixels
    hr = read(data / "Small/HR/b.png").pixels[:48, :44]
    mse = np.square(saved.astype(float) - hr).mean()
    rgb = evaluate(EvaluationOptions(models=[str(tiny_model)], data=data, metrics=["psnr_rgb"], crop=0), say=quiet)
    value = next(r.values["psnr_rgb"] for r in rgb.results if r.image == "b")
    assert value == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-6)


def test_tiles_and_ensemble_change_the_result(tmp_path: Path, picture: Picture, tiny_model: Path) -> None:
    (tmp_path / "Large").mkdir()
    write(tmp_path / "Large" / "a.png", picture(160, 160))

    def value(**options: object) -> float:
        report = evaluate(EvaluationOptions(models=[str(tiny_model)], data=tmp_path, sets=["Large"], **options), say=quiet)
        assert report.ensemble == bool(options.get("ensemble"))
        found = report.mean("tiny", "Large", "psnr")
        assert found is not None
        return found

    whole = value()
    assert value(tile=16, overlap=4) != whole
    assert value(tile="auto") == pytest.approx(whole, abs=1e-6)
    assert value(ensemble=True) != whole


def test_bad_images_are_named_and_the_others_count(data: Path, picture: Picture) -> None:
    hr, lr = data / "Small/HR", data / "Small/LRbicx4"
    lr.mkdir()
    write(hr / "d.png", picture(48, 40, channels=1))
    write(hr / "e.png", picture(48, 40))
    (hr / "f.png").write_bytes(b"broken")
    for i, name in enumerate("acdf"):
        write(
            lr / f"{name}.png", picture(12, 10 + (i == 1), channels=1 if name == "d" else 3)
        )  # c has another width: 11 = 48 // 4 - 1
    write(lr / "e.png", picture(12, 10).astype(np.uint16) * 257)
    report = evaluate(EvaluationOptions(models=["bicubic", "nearest"], data=data), say=quiet)
    assert report.images("Small") == ["a", "d"]
    causes = {left.image: left.cause for left in report.left_out}
    assert causes.keys() == {"b.png", "c", "e", "f"}
    assert "no LR image" in causes["b.png"]
    assert "needs 12 x 12" in causes["c"]
    assert "16 bits" in causes["e"]
    assert "f.png" in causes["f"]
    table = report.table()
    assert "Small (2, 4 left out)" in table
    assert all(cause in table for cause in causes.values())
    assert "grey" in table


def test_a_set_without_ground_truth_beside_another(data: Path, tmp_path: Path, picture: Picture) -> None:
    """Its dash is explained, and a line break in a name tears no table."""
    (data / "Blind" / "LR").mkdir(parents=True)
    name = "two\nlines"
    write(data / "Blind" / "LR" / f"{name}.png", picture(12, 12))
    options = EvaluationOptions(models=["nearest"], data=data, sets=["Small", "Blind"], html=tmp_path / "p.html")
    report = evaluate(options, say=quiet)
    assert f"note on Blind, {name}: not measured without ground truth: PSNR, SSIM" in report.footnotes()
    assert "| Blind | two lines |" in report.image_table().replace("  ", "")
    assert {line[-1] for line in report.image_table().splitlines()} == {"|"}


def test_nothing_to_test_on(data: Path) -> None:
    for path in (data / "Small/HR").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DataError, match=r"no image could be tested: .*a\.png"):
        evaluate(EvaluationOptions(models=["bicubic"], data=data), say=quiet)


def test_metrics_that_do_not_fit_are_noted(data: Path) -> None:
    report = evaluate(EvaluationOptions(models=["bicubic"], data=data, metrics=["psnr", "ms_ssim"]), say=quiet)
    assert report.mean("bicubic", "Small", "psnr") is not None
    assert report.mean("bicubic", "Small", "ms_ssim") is None
    assert "MS-SSIM needs 161 x 161" in report.table()
    assert "–" in report.means_table()


def test_identical_images_are_infinite(data: Path, tmp_path: Path, picture: Picture) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    write(flat / "a.png", np.full((32, 32, 3), 90, np.uint8))
    report = evaluate(EvaluationOptions(models=["nearest"], data=flat, json_file=tmp_path / "r.json"), say=quiet)
    assert report.mean("nearest", "flat", "psnr") == float("inf")
    assert json.loads((tmp_path / "r.json").read_text())["images"][0]["values"]["psnr"] == "inf"


def test_an_interrupted_run_goes_on(data: Path, tiny_model: Path, own_cache: Path) -> None:
    options = EvaluationOptions(models=["bicubic", str(tiny_model)], data=data)
    calls = 0

    def interrupt(label: str, done: int, total: int) -> None:
        nonlocal calls
        calls += label.startswith("tiny")
        if calls == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(options, say=quiet, advance=interrupt)
    # a line that was cut off while it was written does no harm
    newest = max(own_cache.rglob("results.jsonl"), key=lambda path: path.stat().st_mtime_ns)
    with newest.open("a") as file:
        file.write('{"result": {"mod')
    said: list[str] = []
    report = evaluate(options, say=said.append)
    assert said == [
        "bicubic: going on with an interrupted run, 3 of 3 images are done",
        "tiny: going on with an interrupted run, 2 of 3 images are done",
    ]
    fresh = evaluate(options, say=said.append)
    assert len(said) == 2  # a finished run leaves nothing to go on with
    assert [(r.model, r.image, r.values) for r in report.results] == [(r.model, r.image, r.values) for r in fresh.results]
    assert not list(own_cache.rglob("results.jsonl"))


def test_what_changed_is_measured_again(data: Path, picture: Picture) -> None:
    options = EvaluationOptions(models=["bicubic"], data=data)

    def interrupt(label: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(options, say=quiet, advance=interrupt)
    write(data / "Small/HR/a.png", picture(48, 48, seed=7))
    said: list[str] = []
    report = evaluate(options, say=said.append)
    assert said == ["bicubic: going on with an interrupted run, 1 of 3 images are done"]
    assert report.results[0].width == 48
    with pytest.raises(KeyboardInterrupt):
        evaluate(options, say=quiet, advance=interrupt)
    said.clear()
    evaluate(options.model_copy(update={"resume": False}), say=said.append)
    assert said == []


def test_images_of_another_run_are_not_those_of_an_interrupted_one(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    options = EvaluationOptions(models=[str(tiny_model)], data=data, save=tmp_path / "sr")
    folder = tmp_path / "sr" / "tiny" / "Small"

    def interrupt(label: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    evaluate(options, say=quiet)
    expected = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        evaluate(options, say=quiet, advance=interrupt)
    evaluate(options.model_copy(update={"ensemble": True}), say=quiet)
    assert all(path.read_bytes() != expected[path.name] for path in folder.iterdir())
    said: list[str] = []
    evaluate(options, say=said.append)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == expected
    assert said == []  # nothing to go on with
    # with images that nobody touched it goes on
    with pytest.raises(KeyboardInterrupt):
        evaluate(options, say=quiet, advance=interrupt)
    evaluate(options, say=said.append)
    assert said == ["tiny: going on with an interrupted run, 2 of 3 images are done"]


@pytest.mark.parametrize("change", [{"crop": 2}, {"convention": "matlab"}])
def test_what_is_measured_in_another_way_does_not_go_on(data: Path, change: dict[str, object]) -> None:
    options = EvaluationOptions(models=["nearest"], data=data)
    other = options.model_copy(update=change)
    whole = evaluate(other, say=quiet)

    def interrupt(label: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(options, say=quiet, advance=interrupt)
    said: list[str] = []
    report = evaluate(other, say=said.append)
    assert said == []
    assert [r.values for r in report.results] == [r.values for r in whole.results]
    assert [r.values for r in report.results] != [r.values for r in evaluate(options, say=quiet).results]


def test_two_runs_at_once_do_not_disturb_each_other(data: Path, tmp_path: Path, own_cache: Path) -> None:
    options = EvaluationOptions(models=["nearest"], data=data, html=tmp_path / "page.html")

    def run_again(label: str, done: int, total: int) -> None:
        if done == 2:  # while the first is under way, a second one starts and finishes
            evaluate(options.model_copy(update={"html": tmp_path / "other.html"}), say=quiet)

    evaluate(options, say=quiet, advance=run_again)
    pages = [(tmp_path / name).read_text() for name in ("page.html", "other.html")]
    assert [page.count("<figure ") for page in pages] == [3, 3]
    assert list(own_cache.iterdir()) == []


def test_old_unfinished_runs_are_forgotten(data: Path, own_cache: Path) -> None:
    for name, age in (("old", 31), ("new", 29)):
        (own_cache / name).mkdir(parents=True)
        (own_cache / name / "results.jsonl").write_text("")
        when = time.time() - age * 24 * 3600
        os.utime(own_cache / name / "results.jsonl", (when, when))
    evaluate(EvaluationOptions(models=["bicubic"], data=data), say=quiet)
    assert [path.name for path in own_cache.iterdir()] == ["new"]


def test_the_page_of_an_interrupted_run_is_whole(data: Path, tmp_path: Path) -> None:
    options = EvaluationOptions(models=["nearest"], data=data, html=tmp_path / "page.html")

    def interrupt(label: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(options, say=quiet, advance=interrupt)
    assert not (tmp_path / "page.html").exists()
    evaluate(options, say=quiet)
    assert (tmp_path / "page.html").read_text().count("<figure ") == 3


def test_models_are_checked_before_the_run(data: Path, tiny_model: Path) -> None:
    advanced: list[str] = []

    def advance(label: str, done: int, total: int) -> None:
        advanced.append(label)

    with pytest.raises(ModelNotFoundError, match="'drct-lihgt' is unknown"):
        evaluate(EvaluationOptions(models=["bicubic", "drct-lihgt"], data=data), say=quiet, advance=advance)
    assert advanced == []
    with pytest.raises(CheckpointError, match="x4, but x2"):
        evaluate(EvaluationOptions(models=[str(tiny_model)], data=data, scale=2), say=quiet)


def test_two_models_of_one_name(data: Path, tiny_model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "tiny.safetensors"
    other.parent.mkdir()
    other.write_bytes(tiny_model.read_bytes())
    report = evaluate(EvaluationOptions(models=[str(tiny_model), str(other)], data=data), say=quiet)
    assert [model.label for model in report.models] == ["tiny", "tiny (2)"]
    assert report.mean("tiny", "Small", "psnr") == report.mean("tiny (2)", "Small", "psnr")


def test_a_single_name_is_as_good_as_a_list_of_one() -> None:
    options = EvaluationOptions(models="bicubic", data="sets", sets="Set5", metrics="psnr")
    assert (options.models, options.sets, options.metrics) == (("bicubic",), ("Set5",), ("psnr",))


def test_wrong_options_are_named(data: Path, tmp_path: Path) -> None:
    def run(**options: object) -> None:
        evaluate(EvaluationOptions(**{"models": ["bicubic"], "data": data, **options}), say=quiet)

    with pytest.raises(OptionError, match=r"option 'modles' is unknown \(did you mean 'models'\?\)"):
        run(modles=1)
    with pytest.raises(OptionError, match=r"metric 'pnsr' is unknown \(did you mean 'psnr'\?\)"):
        run(metrics=["pnsr"])
    with pytest.raises(OptionError, match="tile is 'some'"):
        run(tile="some")
    with pytest.raises(OptionError, match="scale is 0"):
        run(scale=0)
    with pytest.raises(OptionError, match="convention is 'x'"):
        run(convention="x")
    with pytest.raises(OptionError, match="same name"):
        run(sets=["Small", "Small"])
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot be written"):
        run(save=tmp_path / "file")


def test_nearest_repeats_pixels(picture: Picture) -> None:
    lr = picture(5, 6)
    sr = open_enlarger("nearest", 3)(lr)
    assert sr.shape == (15, 18, 3)
    assert np.array_equal(sr[1::3, 1::3], lr)


def test_peak_memory_sees_an_allocation() -> None:
    """In a process of its own: the memory that earlier tests gave back would hide it."""
    lines = """
        import numpy as np
        from drct.evaluation.enlargers import PeakMemory
        watch = PeakMemory("cpu")
        before = watch.read()
        block = np.ones(64 * 2**20, np.uint8)
        print(before, watch.read())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(lines)], capture_output=True, text=True, check=True)
    if "None" in done.stdout:
        pytest.skip("this system does not tell a process's memory")
    before, after = map(int, done.stdout.split())
    assert 32 * 2**20 < after - before < 256 * 2**20


def test_a_folder_hides_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drct-light").mkdir()
    for name in ("drct-light", "drct_light", "DRCT-Light"):
        assert Path(locate(name, 4)).stem == "drct-light-x4"
    with pytest.raises(ModelNotFoundError, match="is unknown"):
        locate("x" * 300, 4)


def test_results_are_never_written_over_what_is_tested(data: Path, tmp_path: Path) -> None:
    """Results of an earlier run lie where this run would write its own."""
    folder = tmp_path / "out" / "bicubic" / "Small"
    folder.parent.mkdir(parents=True)
    (data / "Small" / "HR").rename(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OptionError, match=r"a\.png is tested on and would be written over: choose another folder with --save"):
        evaluate(EvaluationOptions(models=["bicubic"], data=folder, save=tmp_path / "out"), say=quiet)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    evaluate(EvaluationOptions(models=["bicubic"], data=folder, save=tmp_path / "new"), say=quiet)


def test_saved_images_whose_names_files_cannot_have_stay_apart(tmp_path: Path, picture: Picture) -> None:
    folder = tmp_path / "Set"
    folder.mkdir()
    for i, name in enumerate(("a:b", "a?b", "a_b")):
        write(folder / f"{name}.png", picture(24, 24, seed=i))
    evaluate(EvaluationOptions(models=["bicubic"], data=folder, save=tmp_path / "out"), say=quiet)
    names = sorted(path.name for path in (tmp_path / "out").rglob("*.png"))
    assert len(names) == 3
    assert names[0] == "a_b.png"
    assert all(name.startswith("a_b~") for name in names[1:])


def test_names_of_sets_are_taken_as_they_are(data: Path) -> None:
    (data / "Small").rename(data / "w{1}")
    assert evaluate(EvaluationOptions(models=["bicubic"], data=data, sets=["w{1}"]), say=quiet).suites == ["w{1}"]
    with pytest.raises(DataError, match="has no set"):
        evaluate(EvaluationOptions(models=["bicubic"], data=data, sets=["{"]), say=quiet)

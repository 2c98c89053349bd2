"""``drct bench`` and ``drct doctor``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from drct.cli import bench, doctor, run
from drct.errors import OptionError
from drct.evaluation.benchmark import check_writable


def test_bench_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    target = tmp_path / "bench.json"
    arguments = ["drct_light", "--size", "16", "--device", "cpu", "--precision", "fp32", "--turns", "1", "--json", str(target)]
    result = CliRunner().invoke(bench.command, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "plain network" in result.output
    assert "GFLOP/s" in result.output
    document = json.loads(target.read_text())
    assert document["environment"]["torch"]
    assert document["results"][0]["size"] == [1, 16, 16]


@pytest.mark.parametrize(("text", "size"), [("128", (128, 128)), ("640x480", (480, 640))])
def test_sizes(text: str, size: tuple[int, int]) -> None:
    assert bench.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "0", "12x", "axb", "-5", "640x0"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(OptionError, match="WIDTHxHEIGHT"):
        bench.parse_size(text)


def test_a_missing_device_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "drct_light", "--size", "16", "--device", "cuda:77"]) == 2
    assert "cuda:77" in capsys.readouterr().err


def test_doctor_says_what_it_found_and_why() -> None:
    facts = json.loads(CliRunner().invoke(doctor.command, ["--json"], catch_exceptions=False).output)
    assert facts["what 'auto' chooses"]["device"]
    assert set(facts["CPU kernels"]) == {"linear layers", "window attention", "Swin blocks", "training", "kept in", "bf16"}
    assert facts["GPUs"]
    plain = CliRunner().invoke(doctor.command, [], catch_exceptions=False).output
    assert "window attention" in plain


def test_doctor_reports_a_missing_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from drct.engine import native

    monkeypatch.setattr(native, "available", lambda: "native kernels need a C compiler")
    assert doctor.examine()["CPU kernels"]["window attention"].startswith("plain torch, slower: native kernels need")


def test_bench_looks_at_its_output_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "measure", lambda *_, **__: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    assert run(["bench", "--json", str(tmp_path / "file" / "x.json")]) == 2
    assert "choose another" in capsys.readouterr().err
    assert run(["bench", "--json", str(tmp_path / f"{'x' * 300}.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_file_that_can_be_written_is_not_left_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "x.json")
    assert (tmp_path / "new").is_dir()
    assert not list((tmp_path / "new").iterdir())


def test_doctor_knows_every_extra_that_users_install() -> None:
    assert set(doctor.EXTRAS) == {"train", "explain", "video", "heic"}

"""drct test and drct compare from the command line."""

from __future__ import annotations

import errno
import html
import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drct.cli import run
from drct.errors import Error, OptionError
from drct.evaluation.benchmark import write_text
from drct.imaging import write

Picture = Callable[..., np.ndarray]

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def data(tmp_path: Path, picture: Picture) -> Path:
    for i, name in enumerate("ab"):
        (tmp_path / "data/Two/HR").mkdir(parents=True, exist_ok=True)
        write(tmp_path / f"data/Two/HR/{name}.png", picture(48, 40, seed=i))
    return tmp_path / "data"


def test_tables_and_files(data: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--json", str(tmp_path / "r.json"), "--html", str(tmp_path / "p.html"), "--markdown", str(tmp_path / "t.md")]
    models = ["-m", "bicubic", "-m", str(tiny_model)]
    assert run(["test", *models, "-d", str(data), "--sets", "Two", "--per-image", "--save", str(tmp_path / "sr"), *files]) == 0
    out = capsys.readouterr().out
    assert "x4, PSNR/SSIM" in out
    assert "Two (2)" in out
    assert out.count("| Two ") == 2
    assert json.loads((tmp_path / "r.json").read_text())["models"][1]["name"] == "tiny"
    page = (tmp_path / "p.html").read_text()
    assert page.count("<figure ") == 2
    assert '"labels": ["HR", "bicubic", "tiny"]' in html.unescape(page)
    assert (tmp_path / "sr/bicubic/Two/a.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to test"),
        (["-m", "bicubic"], "nothing to test on"),
        (["-m", "bicubic", "-d", "DATA", "--scale", "0"], "scale is 0"),
        (["-m", "drct-ligth-x4", "-d", "DATA"], "did you mean 'drct-light-x4'"),
        (["-m", "drct-light", "-d", "DATA", "--scale", "5"], "drct-light has networks for x2, x3, x4, not for x5"),
        (["-m", "bicubic", "-d", "DATA", "--metrics", "psnr,sism"], "did you mean 'ssim'"),
        (["-m", "bicubic", "-d", "DATA", "--tile", "big"], "tile is 'big'"),
        (["-opt", "DATA/none.yml", "-m", "bicubic"], "--model does not go with -opt"),
        (["-opt", "DATA/none.yml"], "cannot be read"),
    ],
)
def test_wrong_usage_is_one_line(data: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert run(["test", *(a.replace("DATA", str(data)) for a in arguments)]) == 2
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == 1


def test_a_model_without_a_single_value_is_a_failure(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["test", "-m", "bicubic", "-d", str(data), "--crop", "24"]) == 1
    assert "note on Two, a, b: " in capsys.readouterr().out
    assert run(["test", "-m", "bicubic", "-d", str(data), "--crop", "4"]) == 0


def test_compare(data: Path, tmp_path: Path, picture: Picture, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = data / "Two/HR/a.png", tmp_path / "other.png"
    write(second, picture(48, 40, seed=3))
    assert run(["compare", str(first), str(second), "-o", str(tmp_path / "out")]) == 0
    assert "other.png" in capsys.readouterr().out
    assert (tmp_path / "out/a.png").is_file()
    assert run(["compare", str(first), str(second), "-o", str(tmp_path / "out"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"]["a"]["other.png"]["psnr"] > 0
    assert run(["compare", str(first)]) == 2
    assert "at least two" in capsys.readouterr().err


def test_reports_replace_no_image_and_appear_whole(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    image = next(path for path in data.rglob("*") if path.suffix == ".png")
    before = image.read_bytes()
    arguments = ["test", "--model", "bicubic", "--data", str(data)]
    for option in ("--json", "--markdown", "--html"):
        assert run([*arguments, option, str(image)]) == 2
        assert "is called like an image" in capsys.readouterr().err
    assert image.read_bytes() == before
    (tmp_path / "t.md").write_text("the table of before")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", opened_on_a_full_disk)
        with pytest.raises(Error, match=r"t\.md cannot be written \(No space") as caught:
            write_text(tmp_path / "t.md", "new")
    assert not isinstance(caught.value, OptionError)  # the place is a possible one
    assert (tmp_path / "t.md").read_bytes() == b"the table of before"


class FullDisk(io.TextIOWrapper):
    def write(self, text: str) -> int:
        super().write(text[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def opened_on_a_full_disk(path: Path, mode: str, **how: str) -> FullDisk:
    return FullDisk(open(path, mode + "b"), **how)


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    write_text(tmp_path / "t.md", os.fsdecode(b"a\xff.png"))
    assert (tmp_path / "t.md").read_text() == "a\\udcff.png"

"""The page with everything."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from drct.cli import run
from drct.explain.cost import network_cost
from drct.explain.report import TEXTS, _cost_table
from drct.networks import create_network
from drct.weights import save_network


def test_report_is_one_page_with_all_sections(
    image: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report.html"
    assert run(["explain", "report", str(image), "--fold", "2", "--model", *map(str, models), "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert "tiny-drct: diffusion index" in said
    assert "tiny-swinir: diffusion index" in said
    page = out.read_text(encoding="utf-8")
    assert all(f"<h2>{heading}</h2>" in page for heading, _ in TEXTS.values())
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) == 5
    for source in sources:
        head, data = source.split(",", 1)
        assert head == "data:image/png;base64"
        assert base64.b64decode(data).startswith(b"\x89PNG")
    assert "http" not in re.sub(r"base64,[^\"]+", "", page)
    assert '<th scope="col">tiny-drct</th><th scope="col">tiny-swinir</th>' in page
    assert '<th scope="row">Enlarges</th><td>4 times</td><td>2 times</td>' in page
    scans = [
        network_cost(name, create_network(name, scale=2, embed_dim=12, depths=[1], **heads))
        for name, heads in (("mamba_drct", {}), ("drct", {"num_heads": [2]}))
    ]
    table = _cost_table(scans)
    assert re.search(r"scan</th><td>[\d.]+ G</td><td>0</td></tr>", table)
    assert table.count("<tr>") == table.count("</tr>") == 1 + 3 + 4 + 2


def test_all_models_of_a_scale_and_a_window_in_what_they_leave(
    image: Path, models: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scales 4 and 3 leave 24 of 35 pixels, in whose middle the window fits; the first paragraph names each model."""
    monkeypatch.setattr("drct.explain.report._image", lambda figure, description: "")  # takes most of the time
    third = tmp_path / "third.safetensors"
    options = {"embed_dim": 8, "gc": 4, "depths": [1], "num_heads": [2], "window_size": 4}
    save_network(create_network("drct", scale=3, **options), third)
    again = tmp_path / "again.safetensors"
    again.write_bytes(models[0].read_bytes())
    out = tmp_path / "report.html"
    command = ["explain", "report", str(image), "--crop", "35", "--fold", "1", "-o", str(out)]
    assert run([*command, "--model", str(models[0]), str(again), str(third)]) == 0
    page = out.read_text(encoding="utf-8")
    assert "24 x 24 pixels, was made small (6 x 6 pixels for tiny-drct, again; 8 x 8 pixels for third)" in page


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-o", "page.txt"], "no name of a page"),
        (["--at", "99,0"], "outside the image"),
        (["--window", "60"], "choose a smaller window"),
    ],
)
def test_bad_reports_are_named(
    args: list[str], message: str, image: Path, models: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["explain", "report", str(image), "--model", str(models[0]), *args]) == 2
    assert re.search(message, capsys.readouterr().err)

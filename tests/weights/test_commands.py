"""``drct models`` and ``drct export``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from drct.cli import run
from drct.cli.export import command as export
from drct.cli.models import command as models_command
from drct.networks import SuperResolutionNetwork
from drct.networks.window_attention import relative_position_index
from drct.weights import load_network, read_weights, save_network


def test_models_table(tiny: SuperResolutionNetwork, models: Path) -> None:
    save_network(tiny, models / "mine.safetensors", training="at [bold]night[/bold] \x1b[31mtoday")
    result = CliRunner().invoke(models_command)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    (mine,) = [line for line in lines if line.startswith("mine ")]
    assert mine.split()[:4] == ["mine", "local", "drct", "x2"]
    assert "mine: at [bold]night[/bold] [31mtoday" in lines
    assert any(line.startswith("drct-l-x4") and "downloadable" in line and "27.6 M" in line and "33.37" in line for line in lines)
    assert "https://github.com/Phhofm/models/releases/tag/4xRealWebPhoto_v4_drct-l" in result.output
    assert str(models) in result.output


def test_models_json(tiny: SuperResolutionNetwork, models: Path) -> None:
    save_network(tiny, models / "mine.safetensors")
    cards = {card["name"]: card for card in json.loads(CliRunner().invoke(models_command, ["--json"]).output)}
    assert cards["mine"]["path"] == str(models / "mine.safetensors")
    assert cards["4xRealWebPhoto_v4_drct-l"]["size"] == 242_789_758
    assert cards["real-drct-gan-x4"]["state"] == "by hand"


def test_export_to_safetensors_and_back(tiny: SuperResolutionNetwork, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"params": {}, "params_ema": tiny.state_dict()}, "net.pth")
    result = CliRunner().invoke(export, ["net.pth", "--to", "safetensors", "--licence", "CC0-1.0", "--training", "none"])
    assert (result.exit_code, result.output) == (0, "net.safetensors\n")
    metadata = read_weights("net.safetensors").metadata
    assert (metadata["architecture"], metadata["licence"], metadata["training"]) == ("drct", "CC0-1.0", "none")
    assert CliRunner().invoke(export, ["net.safetensors", "--to", "compat"]).output == "net_compat.pth\n"
    x = torch.rand(1, 3, 6, 7)
    with torch.inference_mode():
        assert torch.equal(load_network("net_compat.pth")(x), tiny(x))


@pytest.mark.filterwarnings("error")
def test_export_notes_what_is_doubtful(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    weights = tiny.state_dict()
    weights["layers.0.swin1.attn.relative_position_index"] = relative_position_index(4)  # but no masks of shifted windows
    torch.save({"params": weights}, tmp_path / "net.pth")
    result = CliRunner().invoke(export, [str(tmp_path / "net.pth"), "--to", "safetensors", "-o", str(tmp_path / "a.safetensors")])
    assert result.exit_code == 0
    assert "drct: note: " in result.output
    assert "shifted" in result.output


def test_export_keeps_precision_and_notes(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    save_network(tiny, tmp_path / "half.safetensors", dtype=torch.float16, licence="CC0-1.0", training="at night")
    arguments = [str(tmp_path / "half.safetensors"), "--to", "safetensors", "-o"]
    assert CliRunner().invoke(export, [*arguments, str(tmp_path / "copy.safetensors")]).exit_code == 0
    assert (tmp_path / "copy.safetensors").read_bytes() == (tmp_path / "half.safetensors").read_bytes()
    assert CliRunner().invoke(export, [*arguments, str(tmp_path / "full.safetensors"), "--dtype", "fp32"]).exit_code == 0
    assert read_weights(tmp_path / "full.safetensors").dtype == torch.float32


def test_export_of_a_chosen_key(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    other = {k: v + 1 for k, v in tiny.state_dict().items()}
    torch.save({"params": tiny.state_dict(), "params_ema": other}, tmp_path / "net.pth")
    target = tmp_path / "net.safetensors"
    assert (
        CliRunner()
        .invoke(export, [str(tmp_path / "net.pth"), "--to", "safetensors", "--key", "params", "-o", str(target)])
        .exit_code
        == 0
    )
    assert torch.equal(read_weights(target).tensors["norm.weight"], tiny.norm.weight)


def test_export_overwrites_only_when_told(tiny: SuperResolutionNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "net.safetensors", tmp_path / "out.pth"
    save_network(tiny, source)
    target.write_text("precious")
    assert run(["export", str(source), "--to", "compat", "-o", str(target)]) == 2
    assert "out.pth exists: give another output, or overwrite it (--overwrite)" in capsys.readouterr().err
    assert target.read_text() == "precious"
    assert run(["export", str(source), "--to", "safetensors", "-o", str(source), "--overwrite"]) == 2
    assert "net.safetensors is the input: give another output" in capsys.readouterr().err
    assert run(["export", str(source), "--to", "safetensors", "-o", str(target), "--overwrite"]) == 2
    assert "out.pth: safetensors is written to files that end in .safetensors" in capsys.readouterr().err
    assert run(["export", str(source), "--to", "compat", "-o", str(target), "--overwrite"]) == 0
    assert load_network(target).scale == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["empty.pth", "--to", "compat"], 1, "empty.pth is empty"),
        (["missing.pth", "--to", "compat"], 2, "missing.pth does not exist"),
        (["nonsense", "--to", "compat"], 2, "model 'nonsense' is unknown"),
        (["net.safetensors", "--to", "compat", "--dtype", "fp16"], 2, "dtype 'fp16' is not possible"),
        (["net.safetensors", "--to", "onnx"], 2, "'onnx' is not one of"),
        (["net.safetensors", "--to", "compat", "-o", "empty.pth/net.pth"], 1, "net.pth cannot be written"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    code: int,
    message: str,
    tiny: SuperResolutionNetwork,
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    save_network(tiny, tmp_path / "net.safetensors")
    (tmp_path / "empty.pth").touch()
    before = sorted(tmp_path.iterdir())
    assert run(["export", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before

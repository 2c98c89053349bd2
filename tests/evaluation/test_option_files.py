"""Published test option files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from drct.errors import CheckpointError, DataError, ModelNotFoundError, OptionError
from drct.evaluation import Report, RunOptions, evaluate_file, evaluation
from drct.evaluation.enlargers import Enlarger, open_enlarger
from drct.evaluation.options import OVERLAP, read_test_file
from drct.imaging import read, resize, write
from drct.networks import create_network
from drct.weights import load_network

Picture = Callable[..., np.ndarray]

pytestmark = pytest.mark.usefixtures("own_cache")

NETWORK = {
    "type": "DRCT",
    "upscale": 4,
    "in_chans": 3,
    "img_size": 64,
    "window_size": 4,
    "compress_ratio": 3,
    "squeeze_factor": 30,
    "conv_scale": 0.01,
    "overlap_ratio": 0.5,
    "img_range": 1.0,
    "depths": [1],
    "embed_dim": 12,
    "num_heads": [2],
    "gc": 4,
    "mlp_ratio": 2,
    "upsampler": "pixelshuffle",
    "resi_connection": "1conv",
}


@pytest.fixture
def options(tmp_path: Path, picture: Picture, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Values of an option file with the keys of the published ones, in a folder of its own with images."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a", "b")):
        hr = picture(64, 48, seed=i, channels=3 - 2 * i)
        write_in(tmp_path / "GTmod4" / f"{name}.png", hr)
        write_in(tmp_path / "LRbicx4" / f"{name}x4.png", resize(hr, scale=0.25, rounding="uint8_per_pass"))
    metrics = {name: {"type": f"calculate_{name}", "crop_border": 4, "test_y_channel": True} for name in ("psnr", "ssim")}
    return {
        "name": "DRCT_tiny",
        "model_type": "DRCTModel",
        "scale": 4,
        "num_gpu": 1,
        "manual_seed": 0,
        "datasets": {
            "test_1": {
                "name": "Set2",
                "type": "PairedImageDataset",
                "dataroot_gt": "GTmod4",
                "dataroot_lq": "LRbicx4",
                "io_backend": {"type": "disk"},
            }
        },
        "network_g": NETWORK,
        "path": {"pretrain_network_g": str(tiny_model), "strict_load_g": True},
        "val": {"save_img": True, "suffix": None, "metrics": metrics},
    }


def write_in(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    write(path, pixels)


def run(options: dict[str, Any], said: list[str] | None = None, **more: Any) -> Report:
    path = Path("options.yml")
    path.write_text(yaml.safe_dump(options, sort_keys=False))
    return evaluate_file(path, RunOptions(**more), say=(said if said is not None else []).append)


def test_with_ground_truth(options: dict[str, Any], tiny_model: Path) -> None:
    said: list[str] = []
    report = run(options, said)
    assert report.images("Set2") == ["a", "b"]
    assert (report.crop, report.convention, report.metrics) == (4, "basicsr", ("psnr", "ssim"))
    assert report.models[0].label == "DRCT_tiny"
    assert report.models[0].parameters == sum(p.numel() for p in load_network(tiny_model).parameters())
    assert report.mean("DRCT_tiny", "Set2", "psnr") is not None
    assert read("results/DRCT_tiny/visualization/Set2/a_DRCT_tiny.png").pixels.shape == (64, 48, 3)
    warned = [line.split("'")[1] for line in said]
    expected = ["compress_ratio", "squeeze_factor", "conv_scale", "overlap_ratio"]
    assert warned == ["model_type", "num_gpu", "manual_seed", "io_backend", *(f"network_g.{key}" for key in expected)]
    assert all("has no effect" in line for line in said)


def test_lr_only_in_tiles(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[tuple[object, object]] = []

    def note(*args: Any, **named: Any) -> Enlarger:
        opened.append((named["tile"], named["overlap"]))
        return open_enlarger(*args, **named)

    monkeypatch.setattr(evaluation, "open_enlarger", note)
    options["datasets"] = {"test_1": {"name": "custom", "type": "SingleImageDataset", "dataroot_lq": "LRbicx4"}}
    options["tile"] = {"tile_size": 16, "tile_pad": 2}
    options["val"] = {"save_img": True, "suffix": "x{4}"}
    report = run(options)
    assert opened == [(16, 4)]  # either of two neighbours is padded
    assert report.metrics == ()
    assert "no metrics" in report.table()
    assert read("results/DRCT_tiny/visualization/custom/a_x{4}.png").pixels.shape == (64, 48, 3)
    run(options, overlap=2)
    run(options, tile="off")
    run(options, tile=20, overlap=5)
    assert opened[1:] == [(16, 2), ("off", OVERLAP), (20, 5)]  # what was said goes before the file


def test_options_of_the_command_line_add_to_the_file(options: dict[str, Any], tmp_path: Path) -> None:
    run(options, save=tmp_path / "elsewhere", json_file=tmp_path / "r.json")
    assert (tmp_path / "elsewhere" / "DRCT_tiny" / "Set2" / "b.png").is_file()
    assert (tmp_path / "r.json").is_file()
    assert not Path("results").exists()


def test_the_template_says_which_lr_belongs_to_which_hr(options: dict[str, Any]) -> None:
    for name in ("a", "b"):
        (path,) = Path("LRbicx4").glob(f"{name}*")
        path.rename(path.with_name(f"lr_{name}_small{path.suffix}"))
    options["datasets"]["test_1"]["filename_tmpl"] = "lr_{}_small"
    assert run(options).images("Set2") == ["a", "b"]
    options["datasets"]["test_1"]["filename_tmpl"] = "{}_small"
    with pytest.raises(DataError, match=r"a\.png: .* has no LR image for it, which filename_tmpl calls a_small"):
        run(options)


def test_rgb_metrics(options: dict[str, Any]) -> None:
    options["val"]["metrics"]["psnr"]["test_y_channel"] = False
    assert run(options).metrics == ("psnr_rgb", "ssim")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"sclae": 4}, OptionError, r"'sclae' is unknown \(did you mean 'scale'\?\)"),
        ({"val": {"metircs": {}}}, OptionError, r"'val.metircs' is unknown \(did you mean 'metrics'\?\)"),
        ({"suffix": None}, OptionError, r"option 'suffix' stands in the wrong place \(did you mean val\.suffix\?\)"),
        ({"val": {"scale": 4}}, OptionError, r"option 'val\.scale' stands in the wrong place"),
        ({"network_g": {**NETWORK, "embed_dims": 3}}, OptionError, r"'embed_dims' is unknown.*did you mean 'embed_dim'"),
        ({"network_g": {**NETWORK, "type": "DCRT"}}, OptionError, "'dcrt' is unknown"),
        ({"network_g": {"upscale": 4}}, OptionError, "no 'type'"),
        ({"datasets": {"t": {"name": "t", "dataroot_gt": "GTmod4", "filename_tmpl": "{}{}"}}}, OptionError, "must hold {} once"),
        ({"network_g": {**NETWORK, "upscale": 2}}, OptionError, "scale is 4 but upscale is 2"),
        ({"network_g": {**NETWORK, "embed_dim": 24}}, CheckpointError, "embed_dim|shape"),
        ({"path": {}}, OptionError, "'path.pretrain_network_g' is missing"),
        ({"path": {"pretrain_network_g": "nowhere.pth"}}, ModelNotFoundError, r"nowhere\.pth"),
        ({"scale": "four"}, OptionError, "scale is 'four'"),
        ({"datasets": {"test_1": {"name": "x"}}}, OptionError, "neither dataroot_gt nor dataroot_lq"),
        ({"datasets": {"test_1": {"name": "x", "dataroot_gt": "nowhere"}}}, DataError, "nowhere is not a folder"),
        (
            {"datasets": {"s": {"name": "x", "type": "SingleImageDataset", "dataroot_gt": "GTmod4"}}},
            OptionError,
            "needs dataroot_lq",
        ),
        ({"train": {}}, OptionError, "drct train -opt"),
        ({"name": "../../elsewhere"}, OptionError, "name is '../../elsewhere': must be the name of a folder"),
        ({"val": None}, OptionError, "val is empty: leave it out, or fill it"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        run({**options, **change})


def test_metrics_with_different_borders(options: dict[str, Any]) -> None:
    options["val"]["metrics"]["psnr"]["crop_border"] = 2
    with pytest.raises(OptionError, match="same crop_border"):
        run(options)


@pytest.mark.parametrize(
    ("content", "words"), [(b"[1, 2]", "mapping"), (b"a: [", "not valid YAML"), (b"\xff\xfe\xfa", "not valid YAML")]
)
def test_broken_files_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "o.yml"
    path.write_bytes(content)
    with pytest.raises(OptionError, match=words):
        read_test_file(path)
    with pytest.raises(OptionError, match=r"none\.yml cannot be read"):
        read_test_file(tmp_path / "none.yml")


def test_the_tiny_network_is_what_the_file_says(tiny_model: Path) -> None:
    dead = ("type", "compress_ratio", "squeeze_factor", "conv_scale", "overlap_ratio")
    built = create_network("drct", **{key: value for key, value in NETWORK.items() if key not in dead})
    assert {k: v.shape for k, v in built.state_dict().items()} == {
        k: v.shape for k, v in load_network(tiny_model).state_dict().items()
    }


def test_results_do_not_replace_what_they_come_from(options: dict[str, Any], tiny_model: Path) -> None:
    before = tiny_model.read_bytes()
    for more in ({"json_file": Path("options.yml")}, {"markdown": tiny_model}, {"html": Path("./") / "options.yml"}):
        with pytest.raises(OptionError, match="is an input: choose another name"):
            run(options, **more)
    assert tiny_model.read_bytes() == before
    assert yaml.safe_load(Path("options.yml").read_text()) == options


def test_without_ground_truth_nothing_is_missing(options: dict[str, Any]) -> None:
    options["datasets"] = {"test_1": {"name": "custom", "type": "SingleImageDataset", "dataroot_lq": "LRbicx4"}}
    said: list[str] = []
    report = run(options, said)
    assert said[-1] == "not measured without ground truth: PSNR, SSIM"
    assert report.complete
    assert report.metrics == ()


def test_where_basicsr_would_measure_otherwise_is_told(options: dict[str, Any]) -> None:
    del options["val"]["metrics"]["psnr"]["test_y_channel"]
    said: list[str] = []
    run(options, said)
    assert "options.yml: 'val.metrics.psnr.test_y_channel' is not given: it is measured on Y, where BasicSR takes RGB" in said
    assert sum("is not given" in line for line in said) == 1


@pytest.mark.parametrize("change", [{"depths": [1, 1], "num_heads": [2, 2]}, {"in_chans": 1}, {"upscale": 8}, {"embed_dim": 24}])
def test_a_network_that_the_weights_do_not_fill_is_not_measured(options: dict[str, Any], change: dict[str, Any]) -> None:
    options["network_g"] = {**NETWORK, **change}
    options["scale"] = options["network_g"]["upscale"]
    options["path"]["strict_load_g"] = False
    with pytest.raises(
        CheckpointError, match=r"does not fit the network_g of options\.yml: .*(missing|of another shape)"
    ) as caught:
        run(options)
    assert "\n" not in str(caught.value)
    assert not Path("results").exists()


def test_weights_that_the_network_has_no_place_for_are_told(options: dict[str, Any], tiny_model: Path) -> None:
    options["path"]["strict_load_g"] = False
    complete: list[str] = []
    expected = run(options, complete).mean("DRCT_tiny", "Set2", "psnr")
    assert all("has no effect" in line for line in complete)
    torch.save(load_network(tiny_model).state_dict() | {"head.weight": torch.ones(2)}, "more.pth")
    options["path"]["pretrain_network_g"] = "more.pth"
    said: list[str] = []
    assert run(options, said).mean("DRCT_tiny", "Set2", "psnr") == expected
    assert [line for line in said if line not in complete] == [
        "more.pth: 1 unexpected (head.weight), left out as strict_load_g is false"
    ]


def test_what_is_doubtful_about_the_weights_is_told(options: dict[str, Any], tiny_model: Path) -> None:
    network = load_network(tiny_model)
    indices = {name: buffer for name, buffer in network.named_buffers() if name.endswith("relative_position_index")}
    torch.save(network.state_dict() | indices, "unmasked.pth")
    options["path"]["pretrain_network_g"] = "unmasked.pth"
    said: list[str] = []
    run(options, said)
    (line,) = [line for line in said if "no effect" not in line]
    assert line.startswith("unmasked.pth stores position indices but no shift masks")

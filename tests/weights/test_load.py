"""Loading: the right network, and a clear line when file and network do not fit."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from drct.errors import CheckpointError, ModelNotFoundError, OptionError
from drct.networks import SuperResolutionNetwork, create_network
from drct.weights import detect, load_into, load_network, read_weights, save_network
from drct.weights.save import compat_state_dict

from .strategies import TINY


def saved(state: dict, folder: Path) -> Path:
    torch.save(state, folder / "net.pth")
    return folder / "net.pth"


@pytest.mark.parametrize("name", ["drct", "drct_l", "drct_xl", "drct_light"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_named_sizes(name: str, scale: int) -> None:
    network = create_network(name, scale=scale)
    found, options = detect(network.state_dict())
    assert found == name
    assert create_network(found, **options).option_dict == network.option_dict


@pytest.mark.parametrize(("window", "ratio"), [(16, 0.25), (8, 0.25), (16, 0.75), (8, 0.5)])
def test_overlaps_that_round_to_the_same_window(tmp_path: Path, window: int, ratio: float) -> None:
    """Tensors show how many pixels overlap, not the ratio that was rounded to them."""
    sizes = {"embed_dim": 16, "depths": [1], "num_heads": [2], "compress_ratio": 4, "squeeze_factor": 4}
    network = create_network("hat", scale=2, window_size=window, overlap_ratio=ratio, **sizes)
    save_network(network, tmp_path / "net.safetensors")
    assert load_network(tmp_path / "net.safetensors").option_dict == network.option_dict


def test_the_size_is_read_from_the_mask(tiny: SuperResolutionNetwork) -> None:
    assert detect(compat_state_dict(tiny))[1]["img_size"] == 64


def test_another_architecture_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"net\.pth: the weights belong to no known architecture .*conv1\.weight"):
        load_network(saved({"conv1.weight": torch.zeros(3, 3)}, tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.1.swin3.attn.relative_position_bias_table": None}, "look like drct but lack layers.1.swin3.attn"),
        ({"conv_last.weight": None}, "no upsampler that is known|no 3 x scale"),
        ({"layers.0.swin1.attn.relative_position_bias_table": torch.zeros(50, 2)}, r"50 rows, which is no \(2w - 1\)\^2"),
        ({"layers.0.swin1.mlp.fc1.weight": torch.zeros(100, 12)}, "no common ratio"),
        ({"layers.0.swin2.attn.relative_position_bias_table": torch.zeros(49, 3)}, "attention heads of its blocks follow no rule"),
        ({"norm.weight": None}, r"does not fit the network \(drct x2\): 1 missing \(norm\.weight\)"),
        ({"surprise": torch.zeros(1)}, r"1 unexpected \(surprise\)"),
        ({"norm.weight": torch.zeros(13)}, r"1 of another shape \(norm\.weight: 13 in the file, 12 in the network\)"),
        ({"norm.weight": torch.zeros(12, dtype=torch.int8)}, "norm.weight: 12 int8 in the file, 12 in the network"),
        ({"norm.weight": torch.full((12,), torch.nan)}, r"values that are not finite \(norm\.weight\)"),
    ],
)
def test_what_does_not_fit_is_listed(change: dict, message: str, tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    state = {k: v for k, v in (tiny.state_dict() | change).items() if v is not None}
    with pytest.raises(CheckpointError, match=message) as error:
        load_network(saved(state, tmp_path))
    assert "net.pth" in str(error.value)
    assert "\n" not in str(error.value)


def test_long_lists_are_shortened(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    state = {k: v for k, v in tiny.state_dict().items() if "mlp.fc2" not in k}
    with pytest.raises(CheckpointError, match=r"20 missing \((.*, ){4}and 16 more\)"):
        load_network(saved(state, tmp_path))


def test_scale_mismatch(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    path = saved(tiny.state_dict(), tmp_path)
    assert load_network(path, scale=2).scale == 2
    with pytest.raises(CheckpointError, match=r"net\.pth upscales x2, but x4 was asked for"):
        load_network(path, scale=4)
    for scale in ("2", 2.5, True):
        with pytest.raises(OptionError, match=f"scale is {scale!r}, but must be a whole number"):
            load_network(path, scale=scale)  # type: ignore[arg-type]


def test_other_numbering_of_positions_is_refused(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    state = compat_state_dict(tiny)
    name = "layers.0.swin1.attn.relative_position_index"
    state[name] = state[name].t().contiguous()
    with pytest.raises(CheckpointError, match="numbers relative positions in its own way"):
        load_network(saved(state, tmp_path))


def test_missing_masks_beside_indices_are_reported(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    state = {k: v for k, v in compat_state_dict(tiny).items() if not k.endswith("attn_mask")}
    with pytest.warns(UserWarning, match="stores position indices but no shift masks"):
        load_network(saved(state, tmp_path))
    notices: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_network(saved(state, tmp_path), notices=notices)
    assert len(notices) == 1
    assert notices[0].startswith(f"{tmp_path / 'net.pth'} stores position indices but no shift masks")


def test_options_without_trace_come_from_metadata(tmp_path: Path) -> None:
    network = create_network("drct", scale=2, **(TINY | {"img_range": 255.0, "qk_scale": 0.7, "drop_path_rate": 0.05}))
    save_network(network, tmp_path / "net.safetensors")
    loaded = load_network(tmp_path / "net.safetensors")
    assert (loaded.img_range, loaded.options.qk_scale, loaded.options.drop_path_rate) == (255.0, 0.7, 0.05)


def tampered(path: Path, **changes: object) -> None:
    """Rewrite the metadata of one of our files; an option given as None is removed."""
    metadata = dict(read_weights(path).metadata)
    options = json.loads(metadata["options"])
    for name, value in changes.items():
        if name in ("architecture", "options"):
            metadata[name] = str(value)
        else:
            options[name] = value
    if "options" not in changes:
        metadata["options"] = json.dumps(options)
    save_file(load_file(path), path, metadata)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 4000}, "embed_dim is 4000, but the tensors show 12"),
        ({"upscale": 3}, "upscale is 3, but the tensors show 2"),
        ({"depths": [2] * 60000, "num_heads": [2] * 60000}, "depths is 60000, but the tensors show 2"),
        ({"depths": [10**9, 2]}, r"depths is \[1000000000, 2\]"),
        ({"mlp_ratio": 1000.0}, r"mlp_ratio is 1000\.0, but the tensors show 2\.0"),
        ({"mlp_ratio": 2.5}, "of another shape"),
        ({"num_heads": [3, 3]}, "of another shape|do not divide"),
        ({"window": 4}, r"option 'window' is unknown to network 'drct' \(did you mean 'window_size'\?\)"),
        ({"img_range": "wide"}, "img_range"),
        ({"img_range": float("nan")}, "img_range is nan"),
        ({"img_range": 0.0}, r"img_range is 0\.0, but must be above 0"),
        ({"head_dim": 0}, "head_dim is 0, but must be at least 1"),
        ({"architecture": "hat_xxl"}, "network 'hat_xxl' is unknown"),
        ({"options": "[1, 2]"}, "metadata that do not describe a network"),
        ({"options": "{"}, "metadata that do not describe a network"),
    ],
)
def test_metadata_that_contradict_the_tensors(changes: dict, message: str, tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_network(tiny, path)
    tampered(path, **changes)
    with pytest.raises(CheckpointError, match=message) as error:
        load_network(path)
    assert "net.safetensors" in str(error.value)


def test_x4_from_x2(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    file = read_weights(saved({"params": tiny.state_dict()}, tmp_path))
    larger = create_network("drct", scale=4, **TINY)
    before = {k: v.clone() for k, v in larger.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"2 missing \(upsample\.2\.weight, upsample\.2\.bias\)"):
        load_into(larger, file)
    assert all(torch.equal(v, before[k]) for k, v in larger.state_dict().items())

    report = load_into(larger, file, skip_upsampler=True)
    assert report.complete
    assert report.skipped == ("upsample.0.weight", "upsample.0.bias", "upsample.2.weight", "upsample.2.bias")
    for name, tensor in larger.state_dict().items():
        expected = before[name] if name.startswith("upsample.") else tiny.state_dict()[name]
        assert torch.equal(tensor, expected), name
    assert str(report).startswith(f"loaded {len(report.loaded)} tensors; skipped 4 (upsample.0.weight")


@pytest.mark.parametrize(
    ("options", "left"),
    [
        ({"upsampler": "pixelshuffledirect"}, {"upsample", "conv_before_upsample", "conv_last"}),
        ({"upsampler": "nearest+conv"}, {"upsample", "conv_before_upsample", "conv_up1", "conv_hr", "conv_last"}),
        ({"scale": 1}, {"upsample"}),
    ],
)
def test_of_another_tail_nothing_is_taken(options: dict[str, Any], left: set[str], tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"embed_dim": 12, "depths": [2], "num_heads": [2], "window_size": 4}
    save_network(create_network("swinir", **({"scale": 2} | sizes | options)), tmp_path / "other.safetensors")
    network = create_network("swinir", scale=4, **sizes)
    report = load_into(network, read_weights(tmp_path / "other.safetensors"), skip_upsampler=True)
    assert {name.partition(".")[0] for name in report.skipped} == left


def test_options_that_a_network_lacks_are_not_compared(tmp_path: Path) -> None:
    save_network(create_network("drct", scale=2, **TINY), tmp_path / "drct.safetensors")
    mamba = create_network("mamba_drct", scale=2, embed_dim=12, depths=[1], gc=4)
    assert load_into(mamba, read_weights(tmp_path / "drct.safetensors"), strict=False).loaded


def test_loading_what_fits(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    state = tiny.state_dict() | {"norm.weight": torch.zeros(5), "extra": torch.zeros(1)}
    del state["norm.bias"]
    network = create_network("drct", scale=2, **TINY)
    report = load_into(network, read_weights(saved(state, tmp_path)), strict=False)
    assert (report.missing, report.unexpected) == (("norm.bias",), ("extra",))
    assert report.mismatched == ("norm.weight: 5 in the file, 12 in the network",)
    assert torch.equal(network.conv_first.weight, tiny.conv_first.weight)
    assert "1 missing (norm.bias)" in str(report)
    nothing = read_weights(saved({"w": torch.zeros(1)}, tmp_path))
    with pytest.raises(CheckpointError, match="does not fit the network"):
        load_into(network, nothing, strict=False)


def test_loading_into_half_precision(tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    network = create_network("drct", scale=2, **TINY).to(torch.bfloat16)
    load_into(network, read_weights(saved(tiny.state_dict(), tmp_path)))
    assert torch.equal(network.conv_first.weight, tiny.conv_first.weight.bfloat16())


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"net\.pth does not exist"):
        load_network(tmp_path / "net.pth")


@pytest.mark.parametrize("given", [None, 3, b"net.pth"])
def test_what_is_no_name_is_refused(given: object) -> None:
    with pytest.raises(OptionError, match=f"path_or_name is {given!r}, but must be the name of a model or a file"):
        load_network(given)


def test_ratios_that_give_the_same_tensors_load(tmp_path: Path) -> None:
    """6 channels squeezed by 4 or by 6 are one channel either way; which it was is the metadata's to say."""
    body = {"embed_dim": 6, "depths": [1], "num_heads": [1], "window_size": 4}
    network = create_network("hat", scale=2, **body, compress_ratio=4, squeeze_factor=4)
    save_network(network, tmp_path / "hat.safetensors")
    assert load_network(tmp_path / "hat.safetensors").options == network.options


def test_a_file_cast_whole_to_half_precision(tmp_path: Path) -> None:
    """bf16 holds no index above 256 exactly; window 16 has 961 of them."""
    network = create_network("drct", scale=2, **(TINY | {"window_size": 16}))
    state = {key: value.bfloat16() for key, value in compat_state_dict(network).items()}
    loaded = load_network(saved(state, tmp_path))
    assert torch.equal(loaded.conv_first.weight, network.conv_first.weight.bfloat16().float())
    name = "layers.0.swin1.attn.relative_position_index"
    state[name] = state[name].t().contiguous()
    with pytest.raises(CheckpointError, match="numbers relative positions in its own way"):
        load_network(saved(state, tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm.weight": torch.zeros(1).expand(300_000_000_000_000)}, "is damaged: its weights are .* bytes by their shapes"),
        ({"conv_first.weight": torch.zeros(20_000, 3, 3, 3)}, "more weights than the file has|do not fit together"),
        ({"norm.weight": torch.empty(12, device="meta")}, r"shapes without values \(norm\.weight\)"),
    ],
)
def test_crafted_sizes_take_no_memory(change: dict, message: str, tiny: SuperResolutionNetwork, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        load_network(saved(tiny.state_dict() | change, tmp_path))
    assert "net.pth" in str(error.value)


def test_wider_than_the_file(tmp_path: Path) -> None:
    """Few large tensors decide the widths of all others."""
    state = create_network("mamba_drct", scale=2, embed_dim=16, depths=[1], gc=4, d_state=4).state_dict()
    state["conv_first.weight"] = torch.zeros(20_000, 3, 3, 3)
    for j in range(5):
        state[f"layers.0.mamba{j + 1}.mlp.fc1.weight"] = torch.zeros(20_000 + 4 * j, 1)
        state[f"layers.0.mamba{j + 1}.ss2d.conv2d.weight"] = torch.zeros(20_000 + 4 * j, 1)
    with pytest.raises(CheckpointError, match=r"net\.pth describes a network with more weights than the file has"):
        load_network(saved(state, tmp_path))
    state["layers.999999999.x"] = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"net\.pth: .*it numbers \d+ tensors up to 999999999"):
        load_network(saved(state, tmp_path))


def test_options_that_cannot_be_name_the_file(tmp_path: Path) -> None:
    state = create_network("swinir", scale=2, embed_dim=12, depths=[1], num_heads=[2], window_size=4).state_dict()
    state["layers.0.residual_group.blocks.0.attn.relative_position_bias_table"] = torch.zeros(49, 5)
    with pytest.raises(CheckpointError, match=r"net\.pth .*5 heads do not divide 12 channels"):
        load_network(saved(state, tmp_path))


def test_windows_without_end_are_refused(tmp_path: Path) -> None:
    state = create_network("swinir", scale=2, embed_dim=2, depths=[1], num_heads=[1], window_size=2).state_dict()
    state["layers.0.residual_group.blocks.0.attn.relative_position_bias_table"] = torch.zeros(999**2, 1)
    with pytest.raises(CheckpointError, match=r"net\.pth has windows of 500 pixels"):
        load_network(saved(state, tmp_path))

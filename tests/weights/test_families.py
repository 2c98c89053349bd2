"""SwinIR, HAT and MambaDRCT through the checkpoint room: detection, named sizes, round trips of random small networks."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drct.errors import CheckpointError
from drct.networks import create_network, list_networks
from drct.networks.hat import HATOptions
from drct.networks.registry import find_family
from drct.weights import detect, load_network, save_network, weights_sha256

often = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def window_options(draw: st.DrawFn, family: str) -> dict[str, Any]:
    """Options for ``create_network(family, **options)``."""
    groups = draw(st.integers(1, 3))
    width, heads = draw(st.integers(1, 4)), draw(st.lists(st.sampled_from([1, 2, 3, 6]), min_size=groups, max_size=groups))
    d = 6 * width
    options: dict[str, Any] = {
        "in_chans": draw(st.sampled_from([1, 3, 4])),
        "embed_dim": d,
        "depths": draw(st.lists(st.integers(1, 3), min_size=groups, max_size=groups)),
        "num_heads": heads,
        "window_size": draw(st.integers(1, 5)),
        "mlp_ratio": draw(st.one_of(st.sampled_from([1.0, 2.0, 4.0]), st.floats(0.25, 4.0))),
        "img_range": draw(st.sampled_from([1.0, 255.0])),
        "qkv_bias": draw(st.booleans()),
        "ape": draw(st.sampled_from([False, False, True])),
        "patch_norm": draw(st.booleans()),
    }
    if family == "swinir":
        options["upsampler"] = draw(st.sampled_from(["pixelshuffle", "pixelshuffledirect", "nearest+conv"]))
        options["resi_connection"] = draw(st.sampled_from(["1conv", "3conv"]))
    else:
        options["window_size"] = draw(st.sampled_from([2, 4, 8]))
        options["overlap_ratio"] = draw(st.sampled_from([0.0, 1.0] if options["window_size"] == 2 else [0.0, 0.5, 1.0]))
        # of all ratios that leave n channels, the tensors show the largest
        options["compress_ratio"] = d // draw(st.integers(1, d))
        options["squeeze_factor"] = d // draw(st.integers(1, d))
        options["resi_connection"] = draw(st.sampled_from(["1conv", "identity"]))
    options["img_size"] = options["window_size"] * draw(st.sampled_from([1, 2, 8]))
    scales = {"pixelshuffle": [1, 2, 3, 4, 8], "pixelshuffledirect": [1, 2, 3, 5], "nearest+conv": [2, 4]}
    options["upscale"] = draw(st.sampled_from(scales[options.get("upsampler", "pixelshuffle")]))
    return options


@st.composite
def mamba_options(draw: st.DrawFn) -> dict[str, Any]:
    """Options for ``create_network("mamba_drct", **options)``."""
    return {
        "upscale": draw(st.integers(1, 4)),
        "embed_dim": draw(st.integers(4, 20)),
        "depths": [6] * draw(st.integers(1, 2)),
        "gc": draw(st.integers(1, 8)),
        "mlp_ratio": draw(st.sampled_from([0.5, 1.0, 2.0])),
        "expand": draw(st.sampled_from([0.5, 1.0, 2.0])),
        "d_state": draw(st.integers(1, 16)),
        "upsampler": "pixelshuffledirect",
        "resi_connection": draw(st.sampled_from(["1conv", "identity"])),
    }


def check(family: str, options: dict[str, Any]) -> None:
    network = create_network(family, **options)
    with tempfile.TemporaryDirectory() as folder:
        ours, bare = Path(folder) / "net.safetensors", Path(folder) / "net.pth"
        save_network(network, ours, licence="CC0-1.0", training="none")
        torch.save(network.state_dict(), bare)
        loaded, guessed = load_network(ours), load_network(bare)
    assert loaded.options == network.options
    wanted = weights_sha256(network.state_dict())
    assert weights_sha256(loaded.state_dict()) == wanted == weights_sha256(guessed.state_dict())
    # what leaves no trace or can be said in several ways aside, the tensors alone show the options
    untold = {"img_range", "mlp_ratio"} | (set() if options.get("ape") else {"img_size"})
    assert {k: v for k, v in guessed.option_dict.items() if k not in untold} == {
        k: v for k, v in network.option_dict.items() if k not in untold
    }


@often
@given(options=window_options("swinir"))
def test_swinir_round_trip(options: dict[str, Any]) -> None:
    check("swinir", options)


@often
@given(options=window_options("hat"))
def test_hat_round_trip(options: dict[str, Any]) -> None:
    check("hat", options)


@often
@given(options=mamba_options())
def test_mamba_round_trip(options: dict[str, Any]) -> None:
    check("mamba_drct", options)


@pytest.mark.parametrize("name", list_networks())
def test_named_sizes_are_recognised(name: str) -> None:
    scale = 4 if name.startswith("swinir_real") else 2
    network = create_network(name, scale=scale)
    found, options = detect(network.state_dict())
    assert found == name
    assert options["upscale"] == scale


def test_other_depths_are_the_family() -> None:
    with torch.device("meta"):
        network = create_network("swinir_light", depths=[6, 6, 6, 5])
    assert detect(network.state_dict())[0] == "swinir"


def test_published_files_of_hat_with_their_buffers(tmp_path: Path) -> None:
    options: dict[str, Any] = {"embed_dim": 12, "depths": [2], "num_heads": [2], "compress_ratio": 3, "squeeze_factor": 4}
    network = create_network("hat", **options)
    path = tmp_path / "hat.pth"
    state = network.state_dict()
    for name in ("relative_position_index_SA", "relative_position_index_OCA"):
        state[name] = network.get_buffer(name)
    torch.save({"params_ema": state}, path)
    assert load_network(path).architecture == "hat"
    state["relative_position_index_OCA"] = state["relative_position_index_OCA"].flip(0)
    torch.save({"params_ema": state}, path)
    with pytest.raises(CheckpointError, match="numbers relative positions in its own way"):
        load_network(path)


def test_a_table_that_fits_no_overlap() -> None:
    state = create_network("hat", embed_dim=12, depths=[1], num_heads=[2], compress_ratio=3, squeeze_factor=4).state_dict()
    name = "layers.0.residual_group.overlap_attn.relative_position_bias_table"
    state[name] = state[name][:-1]
    with pytest.raises(CheckpointError, match="has 1520 rows, which does not go with window 16"):
        detect(state)


def test_published_defaults_of_hat() -> None:
    options = find_family("hat").options()
    assert isinstance(options, HATOptions)
    assert options.overlap_window == 24

"""Random networks through every format: the same options and the same tensors come back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from drct.errors import CheckpointError
from drct.networks import SuperResolutionNetwork, create_network
from drct.weights import detect, export_compat, load_network, read_weights, save_network, weights_sha256

from .strategies import drct_options, shape_of

often = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def same_tensors(a: SuperResolutionNetwork, b: SuperResolutionNetwork) -> bool:
    return weights_sha256(a.state_dict()) == weights_sha256(b.state_dict())


@often
@given(options=drct_options())
def test_safetensors(options: dict[str, Any]) -> None:
    network = create_network("drct", **options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.safetensors"
        written = save_network(network, path, licence="CC0-1.0", training="none")
        loaded = load_network(path, scale=options["upscale"])
        file = read_weights(path)
    assert loaded.options == network.options
    assert same_tensors(loaded, network)
    assert file.buffers == {}
    assert file.metadata["sha256"] == written == weights_sha256(network.state_dict())
    assert (file.metadata["scale"], file.metadata["licence"]) == (str(network.scale), "CC0-1.0")


@often
@given(options=drct_options())
def test_bare_state_dict(options: dict[str, Any]) -> None:
    network = create_network("drct", **options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pth"
        torch.save(network.state_dict(), path)
        loaded = load_network(path)
    assert shape_of(loaded.options) == shape_of(network.options)
    assert same_tensors(loaded, network)


@often
@given(options=drct_options())
def test_compat(options: dict[str, Any]) -> None:
    network = create_network("drct", **options)
    expressible = network.options.follows_published_rule and options["img_range"] == 1 and options["qk_scale"] is None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pth"
        if not expressible:
            with pytest.raises(CheckpointError, match=r"net\.pth was not written: other programs cannot rebuild this network"):
                export_compat(network, path)
            assert not list(Path(folder).iterdir())
            return
        export_compat(network, path)
        loaded, file = load_network(path), read_weights(path)
    assert file.layout == "params_ema"
    assert shape_of(loaded.options) == shape_of(network.options)
    assert same_tensors(loaded, network)
    assert detect(file.tensors | file.buffers)[1]["num_heads"] == network.options.num_heads
    groups, shifted = len(options["depths"]), options["window_size"] > 1
    assert len(file.buffers) == groups * (5 + 2 * shifted)

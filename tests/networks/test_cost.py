"""Counted parameters and multiply-adds."""

from __future__ import annotations

import pytest
import torch

from drct.networks import create_network
from drct.networks.cost import count_cost, count_parameters

TINY = {"embed_dim": 24, "depths": [1], "num_heads": [2], "window_size": 8, "gc": 8}


def test_drct_costs_what_was_measured() -> None:
    with torch.device("meta"):
        network = create_network("drct", scale=4)
    cost = count_cost(network)
    assert cost.parameters == 14_139_579
    assert cost.multiply_adds == pytest.approx(74.3e9, rel=1e-3)
    assert sum(cost.by_kind.values()) == cost.multiply_adds == cost.by_module[""]


def test_one_convolution_by_hand() -> None:
    cost = count_cost(create_network("drct", scale=2, **TINY), 16, 24)
    assert cost.by_module["conv_first"] == 16 * 24 * 9 * 3 * 24
    # two 64-token products per window and head dimension, in each of the five blocks
    dims = [24 + 8 * j for j in range(5)]
    assert cost.by_kind["attention"] == sum(2 * 16 * 24 * 64 * d for d in dims)
    assert cost.by_module["layers.0.swin1"] > cost.by_module["layers.0.swin1.attn"] > 0


def test_sizes_are_padded_to_windows() -> None:
    network = create_network("drct", scale=2, **TINY)
    assert count_cost(network, 9, 9).multiply_adds == count_cost(network, 16, 16).multiply_adds


def test_counting_leaves_the_network_alone() -> None:
    network = create_network("drct", scale=2, **TINY).eval()
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        before = network(x)
        count_cost(network)
        assert torch.equal(network(x), before)
    assert all(p.device.type == "cpu" for p in network.parameters())
    assert count_parameters(network) == sum(p.numel() for p in network.parameters())


def test_scans_are_counted_and_need_no_time() -> None:
    options = {"embed_dim": 24, "depths": [1], "gc": 8, "scale": 2}
    network = create_network("mamba_drct", **options)
    cost = count_cost(network, 100, 200)
    dims = [24 + 8 * j for j in range(5)]
    pixels = 100 * 200
    assert cost.by_kind["scan"] == pixels * sum(2 * 4 * 16 * d for d in dims)
    assert cost.by_kind["attention"] == 0
    block = network.get_submodule("layers.0.mamba1.ss2d")
    products = 2 * 24 * 24 + 24 * 24 + 4 * 24 * (block.dt_rank + 32) + 4 * 24 * block.dt_rank + 9 * 24
    assert cost.by_module["layers.0.mamba1.ss2d"] == pixels * (products + 2 * 4 * 16 * 24)
    assert sum(cost.by_kind.values()) == cost.multiply_adds == cost.by_module[""]
    assert not any(module._forward_hooks for module in network.modules())

"""Measurements: what is counted, and that every contestant gets its turn."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from drct import engine
from drct.engine.measure import benchmark, multiply_adds, ratio, take_turns
from drct.errors import OutOfMemoryError
from drct.networks import SuperResolutionNetwork
from drct.networks.cost import count_cost

CPU = torch.device("cpu")
TINY = {"embed_dim": 24, "depths": [1], "num_heads": [2], "window_size": 8, "gc": 8}


def test_turns_alternate_and_failures_are_reported() -> None:
    calls = []

    def good(x: torch.Tensor) -> torch.Tensor:
        calls.append("good")
        return x

    def other(x: torch.Tensor) -> torch.Tensor:
        calls.append("other")
        return x + 0.5

    def bad(x: torch.Tensor) -> torch.Tensor:
        raise OutOfMemoryError("too large")

    results = take_turns({"good": good, "bad": bad, "other": other}, torch.zeros(1, 3, 4, 4), 3, CPU)
    assert calls == ["good", "other"] * 4
    assert [len(result.seconds) for result in results] == [3, 0, 3]
    assert results[1].failure == "too large"
    assert results[2].difference == 0.5
    assert ratio(results[2], results[0]) > 0


def test_folding_saves_what_the_issue_says(build: Callable[..., SuperResolutionNetwork]) -> None:
    network = build("drct")
    folded = multiply_adds(engine.compile(network), network, 64, 64)
    assert round(count_cost(network, 64, 64).multiply_adds / 1e9, 1) == 74.3
    assert round(folded / 1e9, 1) == 66.0


@pytest.mark.parametrize("name", ["swinir_light", "hat_s"])
def test_relatives_are_counted_in_full(name: str, build: Callable[..., SuperResolutionNetwork]) -> None:
    network = build(name, depths=[2], num_heads=[6])
    assert multiply_adds(engine.compile(network), network, 64, 64, 2) == 2 * count_cost(network, 64, 64).multiply_adds


@pytest.mark.parametrize("name", ["drct", "hat"])
def test_benchmark(name: str, build: Callable[..., SuperResolutionNetwork]) -> None:
    options = TINY if name == "drct" else {"embed_dim": 24, "depths": [1], "num_heads": [2], "squeeze_factor": 6}
    result = benchmark(name, build(name, **options), size=(1, 16, 24), device="cpu", precision="fp32", turns=2)
    document = result.as_dict()
    assert [entry["name"] for entry in document["measurements"]] == ["drct", "plain network, fp32"]
    assert document["measurements"][1]["difference"] <= 1e-4
    assert document["rate"] > 0
    assert 0 < document["share"] < 2

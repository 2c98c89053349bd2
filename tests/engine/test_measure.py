"""Measurements: what is counted, and that every contestant gets its turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from drct import engine
from drct.engine import measure
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
    program = engine.compile(network)
    folded = multiply_adds(program, network, 64, 64)
    assert round(count_cost(network, 64, 64).multiply_adds / 1e9, 1) == 74.3
    assert program.saved_multiply_adds == 688_128  # of an upsampler of 64 channels
    assert round((folded + 64 * 64 * program.saved_multiply_adds) / 1e9, 1) == 66.0


@pytest.mark.parametrize("name", ["swinir_light", "hat_s"])
def test_relatives_are_counted_in_full(name: str, build: Callable[..., SuperResolutionNetwork]) -> None:
    network = build(name, depths=[2], num_heads=[6])
    program, plain = engine.compile(network), count_cost(network, 64, 64).multiply_adds
    assert program.saved_multiply_adds == (0 if name == "swinir_light" else 688_128)
    assert multiply_adds(program, network, 64, 64, 2) == 2 * (plain - 64 * 64 * program.saved_multiply_adds)


def test_an_image_too_large_for_the_computer_is_told(build: Callable[..., SuperResolutionNetwork]) -> None:
    with pytest.raises(OutOfMemoryError, match="no memory for 1 images of 90000000 x 90000000: measure with smaller ones"):
        benchmark("drct", build("drct", **TINY), size=(1, 90_000_000, 90_000_000), device="cpu", precision="fp32")


@pytest.mark.parametrize("name", ["drct", "hat"])
def test_benchmark(name: str, build: Callable[..., SuperResolutionNetwork], monkeypatch: pytest.MonkeyPatch) -> None:
    """With times that are given, since real ones of so small an image may be anything on a busy machine."""

    def timed_by_hand(*arguments: Any) -> list[measure.Measurement]:
        measurements = take_turns(*arguments)
        for measurement, seconds in zip(measurements, (2.0, 6.0, 0.5), strict=True):
            assert len(measurement.seconds) == 2
            assert min(measurement.seconds) > 0
            measurement.seconds[:] = [seconds] * 2
        return measurements

    monkeypatch.setattr(measure, "take_turns", timed_by_hand)
    options = TINY if name == "drct" else {"embed_dim": 24, "depths": [1], "num_heads": [2], "squeeze_factor": 6}
    network = build(name, **options)
    document = benchmark(name, network, size=(1, 16, 24), device="cpu", precision="fp32", turns=2).as_dict()
    assert [entry["name"] for entry in document["measurements"]] == ["drct", "plain network, fp32"]
    assert document["measurements"][1]["difference"] <= 1e-4
    assert document["measurements"][1]["ours_is_faster_by"] == 3
    program = engine.compile(network, "cpu", "fp32")
    operations = 2 * multiply_adds(program, network, 16, 24)
    assert document["rate"] == operations / 2
    alone = measure.Products(program, operations // 4)
    assert document["ceiling"] == alone.operations / 0.5
    once = sum(2 * measure.ROWS * k * n for k, n in program.products())
    assert alone.operations >= once
    assert alone.operations % once == 0
    assert document["share"] == pytest.approx(document["rate"] / document["ceiling"])


def test_memory_that_runs_out_in_a_later_turn_or_in_a_librarys_words_costs_one_contestant() -> None:
    calls = []

    def later(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        if len(calls) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nof which")
        return x

    def library(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")

    def broken(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("shapes do not fit")

    ours, late, other = take_turns({"ours": torch.neg, "late": later, "library": library}, torch.zeros(1), 3, CPU)
    assert (ours.failure, len(ours.seconds)) == (None, 3)
    assert (late.failure, late.seconds) == ("CUDA out of memory. Tried to allocate 2 GiB", [])
    assert (other.failure, other.seconds) == ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", [])
    with pytest.raises(RuntimeError, match="shapes"):
        take_turns({"broken": broken}, torch.zeros(1), 1, CPU)

"""What the tests of training runs share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from drct.training.checkpoint import list_states, load_state
from drct.training.loop import train
from drct.training.options import parse_options


def run(data: dict[str, Any], folder: Path, **more: Any) -> Path:
    options, _ = parse_options(data)
    return train(options, folder, device="cpu", echo=lambda line: None, **more).folder


def states_equal(a: Path, b: Path) -> bool:
    one, two = load_state(a), load_state(b)

    def same(x: Any, y: Any) -> bool:
        if isinstance(x, torch.Tensor):
            return torch.equal(x, y)
        if isinstance(x, dict):
            return x.keys() == y.keys() and all(same(x[k], y[k]) for k in x)
        if isinstance(x, list):
            return len(x) == len(y) and all(map(same, x, y))
        return bool(x == y)

    return same(vars(one), vars(two))


def assert_resumes_exactly(data: Callable[[], dict[str, Any]], plain: Callable[[], dict[str, Any]], folder: Path) -> None:
    """Ten steps in one go equal five and five; those of the ``plain`` options are others."""
    whole = run(data(), folder / "whole", stop_after=10)
    halves = run(data(), folder / "halves", stop_after=5)
    run(data(), halves, resume="auto", stop_after=5)
    assert states_equal(list_states(whole)[-1], list_states(halves)[-1])
    other = run(plain(), folder / "plain", stop_after=10)
    assert not states_equal(list_states(whole)[-1], list_states(other)[-1])

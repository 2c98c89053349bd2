"""What the tests of training runs share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from drct.training.checkpoint import load_state
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

"""What cards say of training: iterations are added up, run by run."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="module")
def bundle() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bundle", Path(__file__).parents[2] / "tools" / "bundle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_iterations_and_runs_are_added_up(bundle: ModuleType) -> None:
    first = "L1, bicubic LR, 700 iterations after drct-light-x4, options/train/a.yml"
    second = bundle.went_on(first, 1300, "options/train/b.yml")
    assert second == "L1, bicubic LR, 2000 iterations in 2 runs after drct-light-x4, options/train/a.yml, options/train/b.yml"
    third = bundle.went_on(second, 400, "options/train/b.yml")
    assert third == "L1, bicubic LR, 2400 iterations in 3 runs after drct-light-x4, options/train/a.yml, options/train/b.yml"


def test_a_line_without_iterations_is_refused(bundle: ModuleType) -> None:
    with pytest.raises(SystemExit, match="names no iterations"):
        bundle.went_on("by hand", 10, "options/train/a.yml")

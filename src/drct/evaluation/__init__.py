"""Metrics, benchmark suites and the tables and pages that show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from drct.evaluation.metrics import ms_ssim, psnr, quantize, ssim
from drct.evaluation.no_reference import niqe
from drct.evaluation.perceptual import dists, lpips

if TYPE_CHECKING:
    from drct.evaluation.comparison import CompareOptions, compare
    from drct.evaluation.evaluation import evaluate, evaluate_file
    from drct.evaluation.options import EvaluationOptions, RunOptions
    from drct.evaluation.report import Report

__all__ = [
    "CompareOptions",
    "EvaluationOptions",
    "Report",
    "RunOptions",
    "compare",
    "dists",
    "evaluate",
    "evaluate_file",
    "lpips",
    "ms_ssim",
    "niqe",
    "psnr",
    "quantize",
    "ssim",
]

_HOME = {
    "CompareOptions": "comparison",
    "EvaluationOptions": "options",
    "Report": "report",
    "RunOptions": "options",
    "compare": "comparison",
    "evaluate": "evaluation",
    "evaluate_file": "evaluation",
}


def __getattr__(name: str) -> Any:
    """The verbs bring the whole house with them; training takes the metrics alone."""
    import importlib

    if name in _HOME:
        return getattr(importlib.import_module(f"drct.evaluation.{_HOME[name]}"), name)
    raise AttributeError(f"module 'drct.evaluation' has no attribute '{name}'")

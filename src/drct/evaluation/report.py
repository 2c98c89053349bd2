"""What a test run found, and its tables: text and Markdown for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from drct.evaluation.measures import MEASURES, ON_Y

DASH = "–"


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """One model on one image.

    Attributes:
        model, suite, image: labels.
        values: metric to value; None where it has none (no ground truth, image too small).
        seconds: from LR pixels to SR pixels.
        width, height: of the result.
    """

    model: str
    suite: str
    image: str
    values: dict[str, float | None]
    seconds: float
    width: int
    height: int


@dataclasses.dataclass
class ModelResult:
    """One model on all images.

    Attributes:
        label: its name in tables.
        parameters, multiply_adds: counted, the latter for ``cost_size`` LR pixels; None for interpolation.
        peak_memory: bytes while it ran; None if unknown.
        device, precision: where and how it ran.
    """

    label: str
    parameters: int | None
    multiply_adds: int | None
    peak_memory: int | None
    device: str
    precision: str


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """An image that does not count.

    Attributes:
        suite, image: labels; without an image a whole folder is meant.
        cause: one line.
        model: set if only this model failed on it.
    """

    suite: str
    image: str
    cause: str
    model: str | None = None


@dataclasses.dataclass(frozen=True)
class Notice:
    """What a reader of the figures should know about an image.

    Attributes:
        suite, image: labels.
        text: a short sentence.
    """

    suite: str
    image: str
    text: str


@dataclasses.dataclass
class Report:
    """Everything that a test run found.

    Attributes:
        scale: magnification.
        metrics: keys of :data:`drct.evaluation.measures.MEASURES`, in the order of the columns.
        crop: pixels cut from each side before measuring.
        convention: one of :mod:`drct.evaluation.measures`.
        ensemble: whether the eight flips and rotations were averaged.
        suites: names of the sets in order.
        models: in order.
        results: one per model and image.
        left_out: images that do not count, and why.
        notices: what a reader should know.
        cost_size: side in LR pixels of the square image that multiply-adds are counted for.
    """

    scale: int
    metrics: tuple[str, ...]
    crop: int
    convention: str
    ensemble: bool
    suites: list[str]
    models: list[ModelResult] = dataclasses.field(default_factory=list)
    results: list[ImageResult] = dataclasses.field(default_factory=list)
    left_out: list[LeftOut] = dataclasses.field(default_factory=list)
    notices: list[Notice] = dataclasses.field(default_factory=list)
    cost_size: int = 64

    def of(self, model: str, suite: str) -> list[ImageResult]:
        """Results of one model on one set."""
        return [result for result in self.results if (result.model, result.suite) == (model, suite)]

    def mean(self, model: str, suite: str, metric: str) -> float | None:
        """Mean of a metric over the images of a set that have it; None if none has."""
        return mean(result.values.get(metric) for result in self.of(model, suite))

    @property
    def complete(self) -> bool:
        """Whether every model has a value of every metric, were it of a single image; so it is where no metrics were asked for."""
        found = {(r.model, metric) for r in self.results for metric, value in r.values.items() if mean([value]) is not None}
        return all((model.label, metric) in found for model in self.models for metric in self.metrics)

    def seconds(self, model: str) -> float | None:
        """Mean time per image."""
        return mean(result.seconds for result in self.results if result.model == model)

    def excluded(self, suite: str) -> int:
        """How many images of a set do not count for at least one model."""
        return len({left.image for left in self.left_out if left.suite == suite and left.image})

    def images(self, suite: str) -> list[str]:
        """Names of the images of a set that count for some model, in order."""
        return list(dict.fromkeys(result.image for result in self.results if result.suite == suite))

    def as_dict(self) -> dict[str, Any]:
        """JSON values: settings, means per model and set, and every image. Infinite values are the string ``"inf"``."""
        return {
            "scale": self.scale,
            "metrics": list(self.metrics),
            "crop": self.crop,
            "convention": self.convention,
            "ensemble": self.ensemble,
            "suites": [
                {"name": suite, "images": len(self.images(suite)), "left_out": self.excluded(suite)} for suite in self.suites
            ],
            "models": [
                {
                    "name": model.label,
                    "parameters": model.parameters,
                    "multiply_adds": model.multiply_adds,
                    "multiply_adds_size": [self.cost_size, self.cost_size],
                    "seconds_per_image": self.seconds(model.label),
                    "peak_memory": model.peak_memory,
                    "device": model.device,
                    "precision": model.precision,
                    "means": {
                        suite: {metric: json_number(self.mean(model.label, suite, metric)) for metric in self.metrics}
                        for suite in self.suites
                    },
                }
                for model in self.models
            ],
            "images": [
                {**dataclasses.asdict(result), "values": {k: json_number(v) for k, v in result.values.items()}}
                for result in self.results
            ],
            "left_out": [dataclasses.asdict(left) for left in self.left_out],
            "notices": [dataclasses.asdict(notice) for notice in self.notices],
        }

    def table(self) -> str:
        """:meth:`means_table` with its heading and footnotes."""
        names = "/".join(MEASURES[metric].label for metric in self.metrics) or "no metrics"
        title = f"x{self.scale}, {names}" + (", self-ensemble" if self.ensemble else "")
        return "\n".join([title, "", self.means_table(), "", *self.footnotes()]).rstrip()

    def means_table(self) -> str:
        """Models by sets: means, parameters, multiply-adds, time and memory, as a Markdown table that reads well as text."""
        header = ["Model", *(self._heading(suite) for suite in self.suites), "Params", "Mult-adds", "s/image", "Memory"]
        rows = [
            [
                model.label,
                *(self._cell(self.mean(model.label, suite, metric) for metric in self.metrics) for suite in self.suites),
                _short(model.parameters, 1e6, " M", 2),
                _short(model.multiply_adds, 1e9, " G", 1),
                _short(self.seconds(model.label), 1, "", 3),
                _short(model.peak_memory, 2**20, " MiB", 0),
            ]
            for model in self.models
        ]
        return "\n".join(markdown_table(header, rows))

    def image_table(self) -> str:
        """One row per image, one column per model."""
        header = ["Set", "Image", *(model.label for model in self.models)]
        rows = []
        by_key = {(result.model, result.suite, result.image): result for result in self.results}
        for suite in self.suites:
            for image in self.images(suite):
                found = [by_key.get((model.label, suite, image)) for model in self.models]
                cells = [DASH if r is None else self._cell(r.values.get(metric) for metric in self.metrics) for r in found]
                rows.append([suite, image, *cells])
        return "\n".join(markdown_table(header, rows))

    def footnotes(self) -> list[str]:
        """What the table's reader must know: conventions, images that were left out and why, notices."""
        cut = f"{self.crop} pixels cut from each side."
        on_y = [MEASURES[metric].label for metric in self.metrics if metric in ON_Y]
        lines = [f"{' and '.join(on_y)} on Y (convention {self.convention}), {cut}" if on_y else cut] if self.metrics else []
        if any(model.multiply_adds for model in self.models):
            lines.append(
                f"Multiply-adds for an LR image of {self.cost_size} x {self.cost_size}; time and memory on {self._places()}."
            )
        for left in self.left_out:
            only = f" ({left.model} only)" if left.model else ""
            lines.append(f"left out of {left.suite}{only}: {left.cause}")
        grouped: dict[tuple[str, str], list[str]] = {}
        for notice in self.notices:
            grouped.setdefault((notice.suite, notice.text), []).append(notice.image)
        for (suite, text), noted in grouped.items():
            images = list(dict.fromkeys(noted))  # once, however many metrics it is about
            shown = ", ".join(images[:3]) + (f" and {len(images) - 3} more" if len(images) > 3 else "")
            lines.append(f"note on {suite}, {shown}: {text}")
        return lines

    def _places(self) -> str:
        return ", ".join(dict.fromkeys(f"{m.device} ({m.precision})" for m in self.models if m.multiply_adds))

    def _heading(self, suite: str) -> str:
        excluded = self.excluded(suite)
        return f"{suite} ({len(self.images(suite))}" + (f", {excluded} left out)" if excluded else ")")

    def _cell(self, values: Iterable[float | None]) -> str:
        pairs = zip(values, self.metrics, strict=True)
        return " / ".join(number(value, MEASURES[metric].digits) for value, metric in pairs) or DASH


def number(value: float | None, digits: int) -> str:
    """A value with so many decimals; a dash for None."""
    return DASH if value is None or math.isnan(value) else f"{value:.{digits}f}"


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of what is there; None if nothing is."""
    present = [value for value in values if value is not None and not math.isnan(value)]
    return math.fsum(present) / len(present) if present else None


def json_number(value: float | None) -> float | str | None:
    """A value that JSON can hold: infinity as the string "inf", NaN as None."""
    if value is None or math.isnan(value):
        return None
    return value if math.isfinite(value) else "inf"


def _short(value: float | None, unit: float, suffix: str, digits: int) -> str:
    return DASH if value is None else f"{value / unit:.{digits}f}{suffix}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table whose columns are padded, the first left-aligned and the others right-aligned."""
    # a file's name may hold a line break, which would end the row
    cells = [[" ".join(cell.splitlines()).replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]

    def line(row: Sequence[str]) -> str:
        padded = [cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        return "| " + " | ".join(padded) + " |"

    rule = "|" + "|".join("-" * (w + 2) if i == 0 else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
    return [line(cells[0]), rule, *map(line, cells[1:])]

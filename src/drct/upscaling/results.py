"""What became of files: the report of a run, and who hears of it while it goes on."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

from drct.upscaling.jobs import Job, Jobs
from drct.upscaling.passes import Pass
from drct.upscaling.video import Done

Size = tuple[int, int]  # width, height


@dataclasses.dataclass(frozen=True)
class FileResult:
    """What became of one file.

    Attributes:
        source: the input.
        target: the result; None if it failed before it had a name.
        status: ``"done"``, ``"skipped"`` (the result was already there) or ``"failed"``.
        input_size, output_size: width and height in pixels, where known.
        seconds: time in the networks.
        passes: networks that the picture went through, with their tile plans.
        notices: what a user should know, one sentence each.
        tile_difference: mean and largest difference between tiled and whole, 0..1, if it was asked for.
        error: one line that names file and cause, if it failed.
        code: kind of the error, stable across releases.
        choice: with model ``"auto"``, which network was chosen and why.
        frames: of a video.
    """

    source: Path
    target: Path | None
    status: Literal["done", "skipped", "failed"]
    input_size: Size | None = None
    output_size: Size | None = None
    seconds: float = 0.0
    passes: tuple[Pass, ...] = ()
    notices: tuple[str, ...] = ()
    tile_difference: tuple[float, float] | None = None
    error: str | None = None
    code: str | None = None
    choice: str = ""
    frames: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "input": str(self.source),
            "output": None if self.target is None else str(self.target),
            "status": self.status,
            "input_size": self.input_size,
            "output_size": self.output_size,
            "frames": self.frames,
            "seconds": round(self.seconds, 3),
            "choice": self.choice or None,
            "passes": [{"model": p.model, "scale": p.scale, "plan": p.plan.to_json()} for p in self.passes],
            "notices": list(self.notices),
            "tile_difference": None
            if self.tile_difference is None
            else {"mean": self.tile_difference[0], "max": self.tile_difference[1]},
            "error": None if self.error is None else {"code": self.code, "message": self.error},
        }


@dataclasses.dataclass(frozen=True)
class Report:
    """What became of all files.

    Attributes:
        results: in the order of the inputs.
        others: files in the input folders that are no images by their names.
        model: name or file of the model.
        device, precision: where and how the network ran.
        notices: what a user should know about the run as a whole.
        seconds: from start to end.
        counts: results by status where they are too many to be kept.
    """

    results: tuple[FileResult, ...]
    others: tuple[Path, ...]
    model: str
    device: str
    precision: str
    notices: tuple[str, ...]
    seconds: float
    counts: dict[str, int] | None = None

    def count(self, status: str) -> int:
        if self.counts is not None:
            return self.counts.get(status, 0)
        return sum(result.status == status for result in self.results)

    @property
    def exit_code(self) -> int:
        """0 if all files are done or were already there, 1 if some failed."""
        return 1 if self.count("failed") else 0

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values; keys are only ever added in later releases."""
        return {
            "model": self.model,
            "device": self.device,
            "precision": self.precision,
            "files": [result.to_json() for result in self.results],
            "other_files": [str(path) for path in self.others],
            "done": self.count("done"),
            "skipped": self.count("skipped"),
            "failed": self.count("failed"),
            "notices": list(self.notices),
            "seconds": round(self.seconds, 3),
        }


class Listener:
    """Hears how a run goes on; all methods are called from the thread that called :func:`upscale`."""

    def started(self, jobs: Jobs) -> None:
        """The files are known."""

    def progress(self, job: Job, done: float) -> None:
        """A part of a file, 0..1, went through the network."""

    def frames(self, job: Job, done: Done) -> None:
        """Frames of a video went through the network; as long as nobody listens to this, :meth:`progress` hears of it."""
        self.progress(job, done.share)

    def finished(self, result: FileResult) -> None:
        """A file is done, skipped or failed; in the order of the inputs, or as they come where several devices work."""

    def watching(self) -> None:
        """All is well, and :func:`watch_folders` begins to watch; told once."""

    def waiting(self, files: int) -> None:
        """All is done but files that other processes have in work in the same folder; told once."""

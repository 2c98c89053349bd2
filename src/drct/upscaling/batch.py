"""Many files: read, upscaled and written at the same time, each with its own result.

While one picture is in the network, the next ones are read and the last ones written, each by one thread; both queues are short, so
that memory holds a handful of pictures however many there are. A file that fails does not stop the others.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np

from drct.errors import Error, ImageError
from drct.imaging import Picture, read, remove_stale_parts, write
from drct.upscaling.jobs import Job, Jobs, plan_jobs
from drct.upscaling.options import UpscaleOptions
from drct.upscaling.upscaler import Pass, Upscaler

READ_AHEAD = 2  # pictures that are read before the network asks for them
WRITE_BEHIND = 2  # results that may wait to be written

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

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {
            "input": str(self.source),
            "output": None if self.target is None else str(self.target),
            "status": self.status,
            "input_size": self.input_size,
            "output_size": self.output_size,
            "seconds": round(self.seconds, 3),
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
    """

    results: tuple[FileResult, ...]
    others: tuple[Path, ...]
    model: str
    device: str
    precision: str
    notices: tuple[str, ...]
    seconds: float

    def count(self, status: str) -> int:
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

    def finished(self, result: FileResult) -> None:
        """A file is done, skipped or failed; in the order of the inputs."""


def upscale(options: UpscaleOptions, listener: Listener | None = None, upscaler: Upscaler | None = None) -> Report:
    """Upscale files and folders.

    Results are written under a temporary name and renamed, so a result that exists is complete. Results of earlier runs are skipped
    unless ``options.overwrite`` is set; temporary files that killed runs left are removed.

    Args:
        options: what to do.
        listener: hears of progress and results.
        upscaler: used instead of a new one; then model, tiles, device and the like are its own.

    Returns:
        A report with a result for every file. Files that fail are results, not exceptions.

    Raises:
        OptionError: inputs and output do not go together.
        ModelNotFoundError, CheckpointError, DownloadError, DeviceError: the network cannot be had or cannot run here.
    """
    start = time.perf_counter()
    listener = listener or Listener()
    upscaler = upscaler or Upscaler(
        options.model,
        device=options.device,
        precision=options.precision,
        tile=options.tile,
        overlap=options.overlap,
        ensemble=options.ensemble,
        alpha=options.alpha,
    )
    jobs = plan_jobs(options, upscaler.default_scale)
    listener.started(jobs)
    results: list[FileResult] = []
    for folder, message in jobs.unreadable:
        results.append(FileResult(folder, None, "failed", error=message, code=ImageError.code))
        listener.finished(results[-1])
    for result in _run(jobs.jobs, options, upscaler, listener):
        results.append(result)
        listener.finished(result)
    return Report(
        tuple(results),
        jobs.others,
        str(options.model),
        str(upscaler.device),
        upscaler.precision,
        tuple(upscaler.notices),
        time.perf_counter() - start,
    )


def _run(jobs: tuple[Job, ...], options: UpscaleOptions, upscaler: Upscaler, listener: Listener) -> Iterator[FileResult]:
    """Results in the order of the jobs."""
    reader, writer = ThreadPoolExecutor(1, "drct-read"), ThreadPoolExecutor(1, "drct-write")
    cleaned: set[Path] = set()
    reading: collections.deque[tuple[Job, Future[Picture | FileResult]]] = collections.deque()
    writing: collections.deque[Future[FileResult]] = collections.deque()
    waiting = iter(jobs)
    try:
        while True:
            for job in waiting:
                reading.append((job, reader.submit(_read, job, options.overwrite, cleaned)))
                if len(reading) > READ_AHEAD:
                    break
            if not reading:
                break
            job, future = reading.popleft()
            read_ = future.result()
            outcome = read_ if isinstance(read_, FileResult) else _upscale(job, read_, options, upscaler, listener)
            writing.append(writer.submit(_write, job, outcome, options))
            del future, read_, outcome  # pictures must go when they are written, not when the next ones come
            while writing and (len(writing) > WRITE_BEHIND or writing[0].done()):
                yield writing.popleft().result()
        while writing:
            yield writing.popleft().result()
    finally:
        # What is being written is finished; what has not begun is dropped.
        reader.shutdown(cancel_futures=True)
        writer.shutdown(cancel_futures=True)


@dataclasses.dataclass(frozen=True)
class _Upscaled:
    """A result on its way to the disk."""

    picture: Picture
    result: FileResult


def _read(job: Job, overwrite: bool, cleaned: set[Path]) -> Picture | FileResult:
    folder = job.target.parent
    if folder not in cleaned:
        cleaned.add(folder)
        remove_stale_parts(folder)
    existing = job.existing
    if existing is not None and not overwrite:
        return FileResult(job.source, existing, "skipped")
    try:
        return read(job.source)
    except (Error, OSError, MemoryError) as error:
        return _failed(job, error)


def _upscale(job: Job, picture: Picture, options: UpscaleOptions, upscaler: Upscaler, listener: Listener) -> _Upscaled | FileResult:
    start = time.perf_counter()
    try:
        larger = upscaler.picture(
            picture,
            scale=options.scale,
            width=options.width,
            height=options.height,
            progress=lambda done: listener.progress(job, done),
        )
        seconds = time.perf_counter() - start
        difference = upscaler.compare_whole(picture.pixels) if options.verify_tiles else None
    except (Error, MemoryError) as error:
        return _failed(job, error)
    floats = larger.picture.pixels.dtype == np.float32 and job.float_target is not None
    result = FileResult(
        job.source,
        job.float_target if floats else job.target,
        "done",
        (picture.width, picture.height),
        (larger.picture.width, larger.picture.height),
        seconds,
        larger.passes,
        (*job.notices, *picture.notices, *larger.notices),
        difference,
    )
    return _Upscaled(larger.picture, result)


def _write(job: Job, upscaled: _Upscaled | FileResult, options: UpscaleOptions) -> FileResult:
    if isinstance(upscaled, FileResult):
        return upscaled
    result = upscaled.result
    assert result.target is not None
    try:
        result.target.parent.mkdir(parents=True, exist_ok=True)
        notices = write(result.target, upscaled.picture, quality=options.quality)
    except (Error, OSError, MemoryError) as error:
        return dataclasses.replace(_failed(job, error), target=result.target, input_size=result.input_size)
    return dataclasses.replace(result, notices=(*result.notices, *notices))


def _failed(job: Job, error: Exception) -> FileResult:
    if isinstance(error, OSError):
        where = error.filename or job.target
        error = ImageError(f"{where}: {error.strerror or error}")
    elif isinstance(error, MemoryError):
        error = ImageError(f"{job.source}: not enough memory")
    message = str(error)
    if str(job.source) not in message and str(job.target) not in message:
        message = f"{job.source}: {message}"
    return FileResult(job.source, job.target, "failed", error=message, code=getattr(error, "code", Error.code))

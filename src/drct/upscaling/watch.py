"""A drop folder: files are upscaled as they come.

The folders are looked at again and again instead of asking the system for news, since news of what other machines do does not come
from network drives. A file is taken when two looks in a row, some seconds apart, found it with the same size and time: whoever
writes it has finished. If not, it is taken again when it has changed again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from drct.errors import ImageError, OptionError
from drct.upscaling.batch import Session, Stopped
from drct.upscaling.jobs import Job, Jobs, plan_jobs
from drct.upscaling.manifest import RACY
from drct.upscaling.options import UpscaleOptions
from drct.upscaling.results import FileResult, Listener, Report
from drct.upscaling.upscaler import Upscaler

LOOK = 1.0  # seconds between looks; longer where a look takes long
SETTLE = 2.0  # seconds that a file must stay as it is
EASE = 10  # a look may take at most one part in so many of the time

Looks = tuple[int, int]  # size and time of a file


def watch_folders(
    options: UpscaleOptions,
    listener: Listener | None = None,
    upscaler: Upscaler | None = None,
    stop: threading.Event | None = None,
) -> Report:
    """Upscale what is in folders, and then what comes into them, until told to stop.

    Results, names and the manifest are those of :func:`drct.upscale`. A file that failed is tried again when it has changed.

    Args:
        options: what to do; all inputs must be folders, and the results must lie elsewhere.
        listener: hears of every result; its ``started`` is called whenever files have come.
        upscaler: used instead of new ones.
        stop: ends the watch; so do SIGINT (Ctrl-C) and SIGTERM. Pictures in the network are given up then, to be made by the next
            run; what is being written is finished, and told if it was ``stop`` that ended the watch.

    Returns:
        A report without the single results, which may be many, but with their numbers.

    Raises:
        OptionError: an input is no folder, or the results would be inputs again.
        Otherwise as :func:`drct.upscale`.
    """
    start = time.perf_counter()
    _check(options)
    listener = listener or Listener()
    stop = stop or threading.Event()
    counts = {"done": 0, "skipped": 0, "failed": 0}
    with Session(options, upscaler) as session:
        folders = _Folders(options, session.upscaler.default_scale)
        with contextlib.suppress(KeyboardInterrupt, Stopped), _signals():
            listener.watching()
            while not stop.is_set():
                before = time.monotonic()
                ready, failures = folders.look()
                pause = max(LOOK, EASE * (time.monotonic() - before))
                for failure in failures:
                    counts["failed"] += 1
                    listener.finished(failure)
                if ready:
                    listener.started(Jobs(tuple(ready), (), ()))
                    with contextlib.closing(session.run(tuple(ready), listener, stop)) as results:
                        for result in results:
                            counts[result.status] += 1
                            listener.finished(result)
                stop.wait(pause)
    return session.report([], (), time.perf_counter() - start, counts)


class _Folders:
    """What lies in the folders, and what of it has been taken."""

    def __init__(self, options: UpscaleOptions, default_scale: float) -> None:
        self._options = options
        self._default_scale = default_scale
        self._taken: dict[Path, Looks] = {}
        self._settling: dict[Path, tuple[Looks, float]] = {}  # with the time since when
        self._told: set[str] = set()  # what is wrong at present
        self._found: Jobs | None = None  # by the last listing
        self._listed: dict[Path, int] = {}  # folders and their times then

    def look(self) -> tuple[list[Job], list[FileResult]]:
        """The files that are ready, and what has gone wrong since the last look."""
        failures: dict[str, FileResult] = {}
        there = []
        for folder in self._options.inputs:
            if os.path.isdir(folder):
                there.append(folder)
            else:
                failures[f"gone {folder}"] = _failure(folder, f"{folder}: the folder is gone: waiting for it to come back")
        jobs: tuple[Job, ...] = ()
        if there:
            try:
                found = self._plan(tuple(there))
            except OptionError as error:  # among what has come are files that do not go together
                failures[str(error)] = _failure(there[0], str(error))
            else:
                jobs = found.jobs
                failures |= {message: _failure(folder, message) for folder, message in found.unreadable}
        new = [failure for key, failure in failures.items() if key not in self._told]
        self._told = set(failures)
        return self._settled(jobs), new

    def _plan(self, there: tuple[Path, ...]) -> Jobs:
        """All files, listed anew unless no folder has changed: many files take their time to be listed and named."""
        if self._found is not None and self._listed and all(_time(folder) == time for folder, time in self._listed.items()):
            return self._found
        begin = time.time_ns()
        self._found = found = plan_jobs(self._options.model_copy(update={"inputs": there}), self._default_scale)
        self._listed = {folder: _time(folder) for folder in (*self._options.inputs, *found.folders)}
        if found.unreadable or max(self._listed.values()) + RACY > begin:
            self._listed = {}  # may change again without a new time
        return found

    def _settled(self, jobs: tuple[Job, ...]) -> list[Job]:
        now = time.monotonic()
        ready = []
        settling = {}
        for job in jobs:
            try:
                status = job.source.stat()
            except OSError:
                continue  # gone again, or a link to nothing
            looks = status.st_size, status.st_mtime_ns
            if self._taken.get(job.source) == looks:
                continue
            known, since = self._settling.get(job.source, (None, now))
            if known == looks and now - since >= SETTLE:
                self._taken[job.source] = looks
                ready.append(job)
            else:
                settling[job.source] = looks, since if known == looks else now
        self._settling = settling
        sources = {job.source for job in jobs}
        self._taken = {source: looks for source, looks in self._taken.items() if source in sources}
        return ready


def _check(options: UpscaleOptions) -> None:
    for folder in options.inputs:
        if not os.path.isdir(folder):
            raise OptionError(f"{folder} is not a folder: only folders are watched")
        if options.output is None and not os.path.basename(os.path.realpath(folder)):
            raise OptionError(f"{folder} has no folder above it for the results: give an output folder")
        if options.output is not None and os.path.realpath(options.output) == os.path.realpath(folder):
            raise OptionError(f"results in {folder} itself would be upscaled again: give another output folder")


def _time(folder: Path) -> int:
    """When a folder's list of files changed, in nanoseconds; 0 if it is gone."""
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return 0


def _failure(folder: Path, message: str) -> FileResult:
    return FileResult(folder, None, "failed", error=message, code=ImageError.code)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does, and Ctrl-C's signal too where the shell had it ignored (jobs in the background)."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Many files: read, upscaled and written at the same time, each with its own result.

While one picture is in the network, the next ones are read and the last ones written, each by one thread; both queues are short, so
that memory holds a handful of pictures however many there are. Where there are several GPUs, each has a network and two such
threads of its own. A file that fails does not stop the others.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import os
import queue
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeAlias

import torch

from drct.errors import Error, ImageError, OptionError
from drct.imaging import FORMATS, Picture, PictureInfo, StripReader, format_of, read, read_info, remove_stale_parts, write
from drct.upscaling import memory
from drct.upscaling.callbacks import shielded
from drct.upscaling.choosing import create_upscaler
from drct.upscaling.desk import ONLY_FOR_IMAGES, ONLY_FOR_VIDEOS, POLL, Desk, Taken, failure, same_file
from drct.upscaling.files import result_size, upscale_file, way_of
from drct.upscaling.jobs import Job, plan_jobs
from drct.upscaling.manifest import SPENT, Manifest, Stamp
from drct.upscaling.options import UpscaleOptions
from drct.upscaling.passes import Plans
from drct.upscaling.results import FileResult, Listener, Report
from drct.upscaling.threads import OneThread
from drct.upscaling.upscaler import Upscaler
from drct.upscaling.video import Clip, Done, upscale_clip

READ_AHEAD = 2  # pictures that are read before the network asks for them
WRITE_BEHIND = 2  # results that may wait to be written
_FOR_CLIPS = ("scale", "width", "height", "codec", "crf", "preset", "start", "duration", "strip")  # options that videos take

Progress = Callable[[Job, float | Done], None]
Results: TypeAlias = Generator[FileResult, None, None]  # to be closed when it is given up: then all threads have ended


def upscale(options: UpscaleOptions, listener: Listener | None = None, upscaler: Upscaler | None = None) -> Report:
    """Upscale files and folders.

    Results are written under a temporary name and renamed, so a result that exists is complete. In a folder for results a manifest
    (see :mod:`drct.upscaling.manifest`) tells what each was made of: those that would come out the same are skipped, those whose
    input, options or model changed are made again, and several processes share the work. Results beside their images are skipped
    whenever they exist. ``options.overwrite`` makes all anew. Temporary files that killed runs left are removed.

    Args:
        options: what to do.
        listener: hears of progress and results.
        upscaler: used instead of new ones; then model, tiles, device and the like are its own, whatever the options say.

    Returns:
        A report with a result for every file. Files that fail are results, not exceptions.

    Raises:
        OptionError: inputs and output do not go together.
        ModelNotFoundError, CheckpointError, DownloadError, DeviceError: the network cannot be had or cannot run here.
        ManifestError: the manifest of the results is damaged.
    """
    if not isinstance(options, UpscaleOptions):
        raise OptionError(f"upscale takes drct.UpscaleOptions(inputs=..., ...), not a {type(options).__name__}")
    start = time.perf_counter()
    listener = listener or Listener()
    with Session(options, upscaler) as session:
        jobs = plan_jobs(options, session.upscaler.default_scale)
        listener.started(jobs)
        session.notices += [*jobs.notices, *_without_effect(options, jobs.jobs)]
        results: list[FileResult] = []
        for folder, message in jobs.unreadable:
            results.append(FileResult(folder, None, "failed", error=message, code=ImageError.code))
            listener.finished(results[-1])
        with contextlib.closing(session.run(jobs.jobs, listener)) as running:
            for result in running:
                results.append(result)
                listener.finished(result)
    place = {job.source: i for i, job in enumerate(jobs.jobs)}
    results.sort(key=lambda result: place.get(result.source, -1))
    return session.report(results, jobs.others, time.perf_counter() - start)


def _without_effect(options: UpscaleOptions, jobs: tuple[Job, ...]) -> list[str]:
    """What to say of options for videos or images where there is none, or none that the option could change."""
    fields = UpscaleOptions.model_fields
    given = {name for name in ONLY_FOR_IMAGES | ONLY_FOR_VIDEOS if getattr(options, name) != fields[name].default}
    images = [job for job in jobs if not job.is_video]
    notices = []
    if (names := given & ONLY_FOR_VIDEOS) and len(images) == len(jobs):
        notices.append(f"{', '.join(sorted(names))}: without effect, since no input is a video")
    if (names := given & ONLY_FOR_IMAGES) and jobs and not images:
        notices.append(f"{', '.join(sorted(names))}: without effect, since all inputs are videos")
    formats = {format_of(target) for job in images for target in (job.target, job.full_target) if target is not None}
    lossy = {format.name: format.title for format in FORMATS.values() if format.quality}
    if options.quality is not None and images and formats.isdisjoint(lossy):
        notices.append(f"quality: without effect, since no result is one of {', '.join(lossy.values())}")
    return notices


def _overruled(options: UpscaleOptions, upscaler: Upscaler) -> list[str]:
    """What to say of options that were given, but are settled otherwise by the upscaler that came with them."""
    settings = upscaler.settings
    names = [name for name in settings if name in options.model_fields_set and str(getattr(options, name)) != str(settings[name])]
    return [f"{', '.join(sorted(names))}: without effect, since the upscaler has its own"] if names else []


class Session:
    """Networks and manifests that stay open while jobs come; used as a context.

    Args:
        options: of all jobs.
        upscaler: used instead of new ones.
    """

    def __init__(self, options: UpscaleOptions, upscaler: Upscaler | None = None) -> None:
        # the manifest notes what results are made with, so that must be what the upscaler does
        self._options = options if upscaler is None else options.model_copy(update=upscaler.settings)
        self._devices = [options.device] if upscaler is not None else worker_devices(options.device)
        self.upscaler = upscaler or self._upscaler(0)
        self._others: dict[int, Upscaler] = {}
        self._desk = Desk(self._options, self.upscaler)
        self._cleaned: set[Path] = set()
        self._exits = contextlib.ExitStack()
        self.notices = [] if upscaler is None else _overruled(options, upscaler)

    def __enter__(self) -> Session:
        self._exits.enter_context(self.upscaler.keeping_tiles())
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()
        self.notices += self._desk.close()

    def run(self, jobs: tuple[Job, ...], listener: Listener, stop: threading.Event | None = None) -> Results:
        """Results of jobs: in their order, or as they come where several devices work or other processes have a part in it.

        The listener is told of progress; results are what is yielded. Once ``stop`` is set, pictures in the network are given up,
        and what is written, or being written, is yielded still.

        Raises:
            Stopped: it was set before all was done.
        """
        self._desk.add(jobs)
        count = min(len(self._devices), len(jobs))

        def go_on() -> None:
            if stop is not None and stop.is_set():
                raise Stopped

        def tell(job: Job, done: float | Done) -> None:
            _tell(listener, job, done)
            go_on()

        @functools.cache
        def tell_of_others() -> None:
            listener.waiting(self._desk.elsewhere)

        if count <= 1:
            return self._alone(tell, tell_of_others, go_on)
        return self._together(count, tell, tell_of_others, go_on)

    def report(
        self, results: list[FileResult], others: tuple[Path, ...], seconds: float, counts: dict[str, int] | None = None
    ) -> Report:
        """The report on all that was done."""
        upscalers = [self.upscaler, *self._others.values()]
        return Report(
            tuple(results),
            others,
            str(self._options.model),
            ", ".join(str(upscaler.device) for upscaler in upscalers),
            self.upscaler.precision,
            (*dict.fromkeys(notice for upscaler in upscalers for notice in upscaler.notices), *self.notices),
            seconds,
            counts,
        )

    def _upscaler(self, index: int) -> Upscaler:
        return create_upscaler(self._options, self._devices[index])

    def _worker(self, upscaler: Upscaler) -> _Worker:
        return _Worker(self._options, upscaler, self._desk, self._cleaned)

    def _alone(self, tell: Progress, waits: Callable[[], None], go_on: Callable[[], None]) -> Results:
        with shielded(tell) as progress:
            yield from self._worker(self.upscaler).results(progress, waits, go_on)

    def _together(self, count: int, tell: Progress, waits: Callable[[], None], go_on: Callable[[], None]) -> Results:
        """One thread for each device; all that they have to say comes out of this one."""
        events: queue.SimpleQueue[FileResult | Callable[[], None]] = queue.SimpleQueue()
        stopped = threading.Event()

        def work_on() -> None:
            if stopped.is_set():
                raise Stopped

        def progress(job: Job, done: float | Done) -> None:
            work_on()
            events.put(functools.partial(tell, job, done))

        def waiting() -> None:
            events.put(waits)

        def work(index: int) -> None:
            try:
                if index and index not in self._others:
                    self._others[index] = self._upscaler(index)
                upscaler = self._others[index] if index else self.upscaler
                if upscaler.device.type == "cuda":
                    torch.cuda.set_device(upscaler.device)  # of this thread
                results = self._worker(upscaler).results(progress, waiting, work_on)
                with contextlib.closing(results):
                    for result in results:
                        events.put(result)
                events.put(ended)
            except Stopped:
                events.put(ended)
            except BaseException as error:
                events.put(functools.partial(_raise, error))

        def ended() -> None:
            working.pop()

        def end() -> None:
            stopped.set()
            for thread in threads:
                thread.join()

        working = [None] * count
        threads = [threading.Thread(target=work, args=(i,), name=f"drct-work-{i}") for i in range(count)]
        for thread in threads:
            thread.start()
        try:
            while working:
                go_on()
                event = events.get()
                if isinstance(event, FileResult):
                    yield event
                else:
                    event()
        except Stopped:
            end()
            while not events.empty():
                event = events.get()
                if isinstance(event, FileResult):
                    yield event
            raise
        finally:
            end()


class Stopped(BaseException):
    """The run was given up; unwinds what works for it, past all handlers of errors."""


def _tell(listener: Listener, job: Job, done: float | Done) -> None:
    if isinstance(done, Done):
        listener.frames(job, done)
    else:
        listener.progress(job, done)


def _raise(error: BaseException) -> None:
    raise error


def worker_devices(device: str) -> list[str]:
    """The devices that a wish stands for: ``"auto"`` and ``"cuda"`` for all GPUs, names separated by commas for these."""
    if device in ("auto", "cuda") and torch.cuda.is_available() and torch.cuda.device_count() > 1:
        return [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [name.strip() for name in device.split(",")]


@dataclasses.dataclass(frozen=True)
class _Input:
    """A picture or video on its way to the network."""

    taken: Taken
    picture: Picture | PictureInfo | Clip  # PictureInfo: too large, or several; it is read while it is computed
    stamp: Stamp | None  # None without a manifest


@dataclasses.dataclass(frozen=True)
class _Output:
    """A result on its way to the disk."""

    input: _Input
    picture: Picture
    result: FileResult


class _Worker:
    """One device at work: its network, a thread that reads for it and one that writes for it."""

    def __init__(self, options: UpscaleOptions, upscaler: Upscaler, desk: Desk, cleaned: set[Path]) -> None:
        self._options = options
        self._upscaler = upscaler
        self._desk = desk
        self._cleaned = cleaned
        self._limits: dict[tuple[Path, int], int | None] = {}  # largest tile by folder and scale

    def results(self, progress: Progress, waiting: Callable[[], None], go_on: Callable[[], None]) -> Results:
        """What becomes of the jobs that this worker takes, in their order.

        Args:
            progress: hears how pictures go through the network; may raise ``Stopped``.
            waiting: called when only jobs of other processes are left.
            go_on: called before each job; may raise ``Stopped``.

        Raises:
            Stopped: as the above did, once all that is written or being written has been yielded.
        """
        reader, writer = OneThread("drct-read"), OneThread("drct-write")
        reading: collections.deque[Future[_Input | FileResult | None]] = collections.deque()
        writing: collections.deque[Future[FileResult]] = collections.deque()
        try:
            while True:
                go_on()
                while len(reading) <= READ_AHEAD:
                    reading.append(reader.submit(self._read))
                read_ = reading.popleft().result()
                if read_ is None:
                    # what is left in the other queues is all there is, unless another process gives something up
                    while writing:
                        yield writing.popleft().result()
                    rest = [future for future in reading if future.result() is not None]
                    reading = collections.deque(rest)
                    if reading:
                        continue
                    if not self._desk.elsewhere:
                        break
                    waiting()
                    time.sleep(POLL)
                    continue
                outcome = read_ if isinstance(read_, FileResult) else self._upscale(read_, progress)
                writing.append(_known(outcome) if isinstance(outcome, FileResult) else writer.submit(self._write, outcome))
                del read_, outcome  # pictures must go when they are written, not when the next ones come
                while writing and (len(writing) > WRITE_BEHIND or writing[0].done()):
                    yield writing.popleft().result()
        except Stopped:
            writer.close()
            for future in writing:
                if not future.cancelled():
                    yield future.result()
            raise
        finally:
            # What is being written is finished; what has not begun is dropped.
            reader.close()
            writer.close()

    def _read(self) -> _Input | FileResult | None:
        taken = self._desk.take()
        if not isinstance(taken, Taken):
            return taken
        job = taken.job
        folder = job.target.parent
        if folder not in self._cleaned:
            self._cleaned.add(folder)
            remove_stale_parts(folder)
        try:
            stamp = None if taken.manifest is None else Stamp.of(job.source)
            return _Input(taken, Clip(job.source) if job.is_video else self._picture(taken), stamp)
        except (Error, OSError, MemoryError) as error:
            return _fail(taken, error)

    def _picture(self, taken: Taken) -> Picture | PictureInfo:
        job, options = taken.job, self._options
        info = read_info(job.source, StripReader.limit())
        target = job.target_for(info)
        if not options.overwrite:
            _check_place(taken, target)
        size = result_size(self._upscaler, info, self._sides)
        way = way_of(info, size, target, None, options.encoding, options.strips)
        return read(job.source) if way == "whole" else info

    @property
    def _sides(self) -> dict[str, Any]:
        return {name: getattr(self._options, name) for name in ("scale", "width", "height")}

    def _upscale(self, input: _Input, progress: Progress) -> _Output | FileResult:
        job, picture, options = input.taken.job, input.picture, self._options
        if isinstance(picture, Clip):
            return self._clip(input, picture, progress)
        if isinstance(picture, PictureInfo):
            return self._file(input, picture, progress)
        start = time.perf_counter()
        try:
            plans = self._plans(input)
            larger = self._upscaler.picture(
                picture,
                scale=options.scale,
                width=options.width,
                height=options.height,
                progress=lambda done: progress(job, done),
                plans=plans,
            )
            seconds = time.perf_counter() - start
            self._remember_tiles(input)
            difference = self._upscaler.compare_whole(picture, **self._sides) if options.verify_tiles else None
        except (Error, MemoryError) as error:
            return _fail(input.taken, error)
        result = FileResult(
            job.source,
            job.target_for(larger.picture.info),
            "done",
            (picture.width, picture.height),
            (larger.picture.width, larger.picture.height),
            seconds,
            larger.passes,
            (*job.notices, *picture.notices, *larger.notices),
            difference,
            choice=larger.choice,
        )
        return _Output(input, larger.picture, result)

    def _file(self, input: _Input, info: PictureInfo, progress: Progress) -> FileResult:
        """A picture that is too large to be held, or several in one file: read and written while they are computed."""
        job, options = input.taken.job, self._options
        target = job.target_for(info)
        start = time.perf_counter()
        try:
            plans = self._plans(input)
            target.parent.mkdir(parents=True, exist_ok=True)
            hear = functools.partial(progress, job)
            way: dict[str, Any] = {"strips": options.strips, "progress": hear, "plans": plans}
            made = upscale_file(self._upscaler, job.source, target, self._sides, None, options.encoding, **way)
            self._remember_tiles(input)
            difference = self._upscaler.compare_whole(read(job.source), **self._sides) if options.verify_tiles else None
        except (Error, OSError, MemoryError) as error:
            return _fail(input.taken, error)
        result = FileResult(
            *(job.source, target, "done", made.input_size, made.output_size, time.perf_counter() - start, made.passes),
            notices=(*job.notices, *made.notices),
            tile_difference=difference,
            choice=made.choice,
        )
        return self._recorded(input, target, result)

    def _clip(self, input: _Input, clip: Clip, progress: Progress) -> FileResult:
        """A video is read and written while it is computed; its own folder of finished parts is what an interruption leaves."""
        job, options = input.taken.job, self._options
        try:
            self._plans(input)
            job.target.parent.mkdir(parents=True, exist_ok=True)
            how = {name: getattr(options, name) for name in _FOR_CLIPS}
            made = upscale_clip(clip, job.target, self._upscaler, **how, progress=functools.partial(progress, job))
            self._remember_tiles(input)
        except (Error, OSError, MemoryError) as error:
            return _fail(input.taken, error)
        result = FileResult(
            *(job.source, job.target, "done", made.input_size, made.output_size, made.seconds),
            notices=(*job.notices, *made.notices),
            choice=made.choice,
            frames=made.frames,
        )
        return self._recorded(input, job.target, result)

    def _plans(self, input: _Input) -> Plans | None:
        """The plans of an interrupted attempt, if it was at the same work; new ones are recorded before they are carried out."""
        manifest, entry, stamp = input.taken.manifest, input.taken.entry, input.stamp
        if manifest is None or stamp is None:
            return None
        job, picture = input.taken.job, input.picture
        size = picture.height, picture.width
        if isinstance(picture, Clip):
            size = picture.turned(*size)
        work = self._desk.work(*size, job.is_video)
        scales = self._upscaler.scales_for(*size, **self._sides)
        for scale in dict.fromkeys(scales):
            key = manifest.folder, scale
            if key not in self._limits:
                find = functools.partial(self._upscaler.tile_limit, scale)
                self._limits[key] = manifest.limit(self._limit_name(scale), find)
            self._upscaler.fix_tiles(scale, self._limits[key])
        same = entry is not None and entry.work == work and entry.stamp is not None and entry.stamp.hash == stamp.hash
        earlier = entry.plans if entry is not None and same and entry.attempts < SPENT else ()
        manifest.begin(job.target, job.source, stamp, work, earlier)
        return Plans(earlier, functools.partial(manifest.begin, job.target, job.source, stamp, work))

    def _limit_name(self, scale: int) -> str:
        """What a limit of tiles holds for: one network on one kind of device."""
        device = self._upscaler.device
        size = memory.memory_class(device).bit_length() - 1
        return f"{self._upscaler.digest(scale)} {self._upscaler.precision} {device.type} 2^{size}"

    def _remember_tiles(self, input: _Input) -> None:
        """If memory ran out, later pictures and runs begin with the smaller tiles."""
        manifest = input.taken.manifest
        for (folder, scale), limit in self._limits.items():
            if manifest is not None and folder == manifest.folder and self._upscaler.tile_limit(scale) != limit:
                self._limits[folder, scale] = self._upscaler.tile_limit(scale)
                manifest.set_limit(self._limit_name(scale), self._limits[folder, scale])

    def _write(self, output: _Output) -> FileResult:
        taken, result = output.input.taken, output.result
        assert result.target is not None
        try:
            result.target.parent.mkdir(parents=True, exist_ok=True)
            notices = write(result.target, output.picture, **dataclasses.asdict(self._options.encoding))
        except (Error, OSError, MemoryError) as error:
            return dataclasses.replace(_fail(taken, error), target=result.target, input_size=result.input_size)
        result = dataclasses.replace(result, notices=(*result.notices, *notices))
        assert result.target is not None
        return self._recorded(output.input, result.target, result)

    def _recorded(self, input: _Input, target: Path, result: FileResult) -> FileResult:
        """The result, once the manifest knows it."""
        taken = input.taken
        if taken.manifest is not None and input.stamp is not None:
            result = self._record(taken.manifest, taken, input.stamp, target, result)
        self._desk.done()
        return result

    def _record(self, manifest: Manifest, taken: Taken, stamp: Stamp, target: Path, result: FileResult) -> FileResult:
        job = taken.job
        if not stamp.still(job.source):
            # which of its contents went into the result cannot be told
            stamp = dataclasses.replace(stamp, hash="")
            notice = "the file was changed while it was upscaled: the next run makes the result again"
            result = dataclasses.replace(result, notices=(*result.notices, notice))
        try:
            written = Stamp.of(target)
        except (Error, OSError) as error:
            return failure(job, error)  # gone already
        result = dataclasses.replace(result, notices=(*result.notices, *_remove_superseded(taken, target)))
        report: dict[str, Any] = {"input_size": result.input_size, "output_size": result.output_size}
        manifest.done(job.target, stamp, target, written, report)
        return result


def _known(result: FileResult) -> Future[FileResult]:
    """Nothing is left to be written: the result only waits for its turn."""
    future: Future[FileResult] = Future()
    future.set_result(result)
    return future


def _check_place(taken: Taken, target: Path) -> None:
    """Where the input's kind has changed and with it the name of the result, a file of that name may be somebody's.

    Raises:
        ImageError: it is there.
    """
    entry = taken.entry
    if entry is None or entry.result is None or entry.state == "working":  # at work: the file may be of that attempt
        return
    if not same_file(entry.result[0], target) and os.path.isfile(target):
        raise ImageError(
            f"{target} lies where the result belongs, and is not the last one of {taken.job.source}: --overwrite replaces it"
        )


def _remove_superseded(taken: Taken, target: Path) -> list[str]:
    """Remove the earlier result if it has the other name, since the input was of another kind, and is still as it was made.

    Returns:
        A notice if it is kept.
    """
    entry, names = taken.entry, (taken.job.target, taken.job.full_target)
    if entry is None or entry.result is None:
        return []
    path, written = entry.result
    if same_file(path, target) or not os.path.isfile(path) or not any(name is not None and same_file(name, path) for name in names):
        return []
    try:
        if written.same(path):
            path.unlink()
            return []
        cause = "was changed since it was made"
    except OSError as error:
        cause = f"cannot be removed ({error.strerror})"
    return [f"{path}, the earlier result, {cause}, and is kept"]


def _fail(taken: Taken, error: Exception) -> FileResult:
    result = failure(taken.job, error)
    if taken.manifest is not None and result.error is not None and result.code is not None:
        taken.manifest.failed(taken.job.target, result.error, result.code)
    return result

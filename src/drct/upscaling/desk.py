"""Handing out jobs: what is done already, what has to be done again, and what another process is at.

All workers of a run take their jobs here. A result that exists is skipped if it is what this run would make: made of the same
content with the same options and weights. One that was made of something else is made again. A file that no manifest knows, or that
somebody changed after it was made, is not ours to replace: it is kept, unless ``overwrite`` asks for all to be made again.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import threading
import time
from pathlib import Path

from drct.errors import Error, ImageError, ManifestError, OptionError
from drct.imaging import StripReader, read_info
from drct.upscaling.jobs import Job
from drct.upscaling.manifest import Entry, Manifest, Stamp, Work, mtime_of
from drct.upscaling.options import UpscaleOptions
from drct.upscaling.results import FileResult
from drct.upscaling.upscaler import Upscaler
from drct.upscaling.video import is_video_file

LOOK = 64  # jobs that are looked up at once
LEASES = 16  # the most that are taken at once
LEASE_WORK = 1.0  # seconds of work that are taken at once: where pictures are quick, a commit for each would take longer than they
POLL = 0.25  # seconds between looks at what other processes have in work

# Options that do not decide about the bytes of a result; the network is held against its weights and not its name.
_WITHOUT_EFFECT = {"inputs", "output", "model", "device", "scale", "recursive", "overwrite", "verify_tiles", "strips"}
ONLY_FOR_VIDEOS = {"codec", "crf", "preset", "start", "duration"}
ONLY_FOR_IMAGES = {"alpha", "format", "quality", "lossless", "pyramid", "strips", "verify_tiles"}


@dataclasses.dataclass(frozen=True)
class Taken:
    """A job to be done, and leased if there is a manifest.

    Attributes:
        job: what to do.
        manifest: of the results' folder; None where results lie beside images.
        entry: what was known of the result before.
    """

    job: Job
    manifest: Manifest | None = None
    entry: Entry | None = None


class Desk:
    """Hands out jobs to the workers of one run; all methods may be called from any thread.

    Args:
        options: of the run.
        upscaler: tells which networks results are made with.
    """

    def __init__(self, options: UpscaleOptions, upscaler: Upscaler) -> None:
        self._options = options
        self._upscaler = upscaler
        self._options_keys = {video: options_key(options, upscaler.default_scale, video) for video in (False, True)}
        self._manifests: dict[Path, Manifest | ManifestError] = {}
        self._replaced: list[Manifest] = []
        self._begun: dict[Path, int] = {}  # by folder: changes of state before this run
        self._lock = threading.Lock()
        self._jobs: collections.deque[Job] = collections.deque()
        self._ready: collections.deque[Taken | FileResult] = collections.deque()
        self._elsewhere: collections.deque[Job] = collections.deque()
        self._looked = 0.0  # when the last look at those was
        self._done = 0  # pictures since the queue was last empty
        self._since = time.monotonic()

    def add(self, jobs: tuple[Job, ...]) -> None:
        """Put jobs at the end of the queue.

        Raises:
            ManifestError: no folder for their results can be used. Where one can, the jobs of the others fail one by one.
        """
        with self._lock:
            self._jobs.extend(jobs)
            self._forget_lost_manifests()
            errors = []
            for root in dict.fromkeys(job.root for job in jobs):
                try:
                    if root is None or self._manifest(root):
                        return
                except ManifestError as error:
                    errors.append(error)
            if errors:
                raise errors[0]

    def _forget_lost_manifests(self) -> None:
        """With new jobs, what could not be opened is tried again, and where results were removed a new manifest begins."""
        lost = [root for root, found in self._manifests.items() if isinstance(found, ManifestError) or not found.is_there()]
        for root in lost:
            found = self._manifests.pop(root)
            if isinstance(found, Manifest):
                self._replaced.append(found)  # pictures in work still ask it

    def take(self) -> Taken | FileResult | None:
        """The next job, or what has already become of it; None if there is none now."""
        with self._lock:
            if not self._ready:
                self._refill()
            return self._ready.popleft() if self._ready else None

    def done(self) -> None:
        """A picture is ready: tells how fast they go."""
        with self._lock:
            self._done += 1

    @property
    def elsewhere(self) -> int:
        """How many jobs other processes have in work; :meth:`take` will have them when these are ready, or dead."""
        with self._lock:
            return len(self._elsewhere)

    def work(self, rows: int, columns: int, video: bool = False) -> Work:
        """How the result of an image, or a video, of this size is made.

        Raises:
            OptionError: it cannot be: the scale is out of range.
        """
        options = self._options
        scales = self._upscaler.scales_for(rows, columns, scale=options.scale, width=options.width, height=options.height)
        return Work(self._options_keys[video], tuple(self._upscaler.digest(scale) for scale in scales))

    def close(self) -> list[str]:
        """Give back what is in work.

        Returns:
            Notices on what could not be recorded.
        """
        manifests = [manifest for manifest in self._manifests.values() if isinstance(manifest, Manifest)] + self._replaced
        return [notice for manifest in manifests if (notice := manifest.close()) is not None]

    def _refill(self) -> None:
        now = time.monotonic()
        wanted = max(1, min(LEASES, int(LEASE_WORK * self._done / max(now - self._since, 1e-6))))
        while not self._ready:
            if not self._jobs:
                if not self._elsewhere or now - self._looked < POLL:
                    self._done, self._since = 0, now
                    return
                self._looked = now
                self._jobs, self._elsewhere = self._elsewhere, self._jobs
            self._ready.extend(self._look(wanted))
            if not self._jobs and self._elsewhere:
                return  # looked at all of them a moment ago

    def _look(self, wanted: int) -> list[Taken | FileResult]:
        """Decide about some of the jobs, which belong to one folder."""
        root = self._jobs[0].root
        jobs: list[Job] = []
        while self._jobs and len(jobs) < LOOK and self._jobs[0].root == root:
            jobs.append(self._jobs.popleft())
        if root is None:
            return [_beside(job, self._options.overwrite) for job in jobs]
        try:
            manifest = self._manifest(root)
            entries = manifest.look([job.target for job in jobs])
        except ManifestError as error:
            return [failure(job, error) for job in jobs]
        decided: list[Taken | FileResult] = []
        claims = 0
        for i, (job, entry) in enumerate(zip(jobs, entries, strict=True)):
            verdict = self._decide(job, manifest, entry)
            if verdict is None:
                self._elsewhere.append(job)
                continue
            decided.append(verdict)
            claims += isinstance(verdict, Taken)
            if claims == wanted:
                self._jobs.extendleft(reversed(jobs[i + 1 :]))
                break
        return self._claimed(manifest, decided)

    def _claimed(self, manifest: Manifest, decided: list[Taken | FileResult]) -> list[Taken | FileResult]:
        """The same with leases; jobs that another process took meanwhile go back into the queue."""
        wished = [taken for taken in decided if isinstance(taken, Taken)]
        if not wished:
            return decided
        try:
            answers = manifest.claim([(taken.job.target, taken.entry) for taken in wished])
        except ManifestError as error:
            return [failure(taken.job, error) if isinstance(taken, Taken) else taken for taken in decided]
        lost = {taken.job for taken, ours in zip(wished, answers, strict=True) if not ours}
        self._jobs.extendleft(taken.job for taken in reversed(wished) if taken.job in lost)
        return [taken for taken in decided if not (isinstance(taken, Taken) and taken.job in lost)]

    def _manifest(self, root: Path) -> Manifest:
        if root not in self._manifests:
            try:
                manifest = Manifest(root)
                self._begun[root] = manifest.changes()
                self._manifests[root] = manifest
            except ManifestError as error:
                self._manifests[root] = error
        found = self._manifests[root]
        if isinstance(found, ManifestError):
            raise found
        return found

    def _decide(self, job: Job, manifest: Manifest, entry: Entry | None) -> Taken | FileResult | None:
        """What to do with a job; None if another process is at it."""
        overwrite = self._options.overwrite
        existing = _existing(job, entry)
        taken = Taken(job, manifest, entry)
        if entry is None:
            return taken if existing is None or overwrite else FileResult(job.source, existing, "skipped")
        if entry.held and not entry.mine:
            return None
        news = entry.changed > self._begun[manifest.folder] and not entry.mine  # another process did it while this run goes on
        if entry.state == "failed" and news:
            return FileResult(job.source, job.target, "failed", error=entry.error, code=entry.code)
        if existing is None or entry.state == "working" or (overwrite and not news):
            return taken
        try:
            return self._judge(job, manifest, entry, existing) or taken
        except (Error, OSError) as error:
            return failure(job, error)

    def _judge(self, job: Job, manifest: Manifest, entry: Entry, existing: Path) -> FileResult | None:
        """What to tell of a result that is kept; None if it must be made again."""
        before, after = entry.report.get("input_size"), entry.report.get("output_size")
        kept = FileResult(job.source, existing, "skipped", before and tuple(before), after and tuple(after))
        if entry.result is None:
            return kept  # it came after a failure: somebody else's
        path, written = entry.result
        ours = same_file(path, existing)
        if not ours or not written.same(existing):
            what = "the result was changed since it was made" if ours else f"{existing} is there, but was not made here"
            return dataclasses.replace(kept, notices=(f"{what}, and is kept: --overwrite makes it anew",))
        sibling = job.target if existing == job.full_target else job.full_target
        if sibling is not None and os.path.isfile(sibling):
            kept = dataclasses.replace(kept, notices=(f"{sibling} lies beside the result, was not made with it, and is kept",))
        if entry.state == "failed" or entry.stamp is None or entry.source is None or entry.work != self._work_again(entry):
            return None
        if not entry.stamp.same(job.source):
            if same_file(entry.source, job.source) or not os.path.exists(entry.source):
                return None
            raise ImageError(
                f"{existing} was made of another file, {entry.source}: use another output folder, or --overwrite to replace it"
            )
        status, result_status = job.source.stat(), existing.stat()
        moved = os.path.abspath(job.source) != str(entry.source)
        times = mtime_of(status), mtime_of(result_status)
        doubtful = not entry.stamp.settled or (entry.stamp.mtime, written.mtime) != times
        if moved or doubtful:
            stamp = Stamp(status.st_size, times[0], entry.stamp.hash, time.time_ns())
            manifest.renew(job.target, job.source, stamp, dataclasses.replace(written, mtime=times[1]))
        return kept

    def _work_again(self, entry: Entry) -> Work | None:
        """How the result of an earlier input would be made now; None if it would not be."""
        size = entry.report.get("input_size")
        if not size:
            return None
        try:
            return self.work(size[1], size[0], entry.source is not None and is_video_file(entry.source))
        except OptionError:
            return None


def options_key(options: UpscaleOptions, default_scale: float, video: bool = False) -> str:
    """The options that decide about the bytes of results, as text; those left at their defaults are not in it."""
    exclude = _WITHOUT_EFFECT | (ONLY_FOR_IMAGES if video else ONLY_FOR_VIDEOS)
    values = options.model_dump_json(exclude=exclude, exclude_defaults=True)
    if options.width is not None or options.height is not None:
        return values
    return f"{values} x{options.scale if options.scale is not None else default_scale:g}"


def _beside(job: Job, overwrite: bool) -> Taken | FileResult:
    """Without a manifest, whatever has the result's name is the result."""
    existing = job.existing
    if existing is None or overwrite:
        return Taken(job)
    if job.full_target is not None:  # the picture says which of its names is the result's; the other file is of another picture
        with contextlib.suppress(Error, OSError):
            target = job.target_for(read_info(job.source, StripReader.limit()))
            if not os.path.isfile(target):
                return Taken(job)
            existing = target
    return FileResult(job.source, existing, "skipped")


def _existing(job: Job, entry: Entry | None) -> Path | None:
    """The result that is there: the one that was made last, whatever lies beside it under the other name."""
    if entry is not None and entry.result is not None and os.path.isfile(entry.result[0]):
        for name in (job.target, job.full_target):
            if name is not None and same_file(name, entry.result[0]):
                return name
    return job.existing


def same_file(one: Path, other: Path) -> bool:
    return os.path.abspath(one) == os.path.abspath(other) or os.path.realpath(one) == os.path.realpath(other)


def failure(job: Job, error: Exception) -> FileResult:
    """The result of a job that failed, with the error's one line."""
    if isinstance(error, OSError):
        where = error.filename or job.target
        error = ImageError(f"{where}: {error.strerror or error}")
    elif isinstance(error, MemoryError):
        error = ImageError(f"{job.source}: not enough memory")
    message = str(error)
    if str(job.source) not in message and str(job.target) not in message:
        message = f"{job.source}: {message}"
    return FileResult(job.source, job.target, "failed", error=message, code=getattr(error, "code", Error.code))

"""A video in, a larger video out: frames go through the network one after another, all else stays as it is.

While a frame is in the network, the next ones are decoded and the last ones encoded, each by one thread; the queues between are
short, so that memory holds a handful of frames however long the clip is.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from drct.errors import OptionError, VideoError
from drct.imaging import Picture
from drct.upscaling.passes import target_size
from drct.upscaling.threads import OneThread
from drct.upscaling.video.batches import enlarge, frames_at_once
from drct.upscaling.video.encoding import (
    CONTAINERS,
    Encoding,
    choose_codec,
    encoder_options,
    even_sides,
    plan_encoding,
)
from drct.upscaling.video.joining import copied_streams, join
from drct.upscaling.video.segments import PartWriter, WorkFolder, frame_hash
from drct.upscaling.video.source import Clip, Frame, require_av

if TYPE_CHECKING:
    from drct.upscaling.upscaler import Upscaler

READ_AHEAD = 2  # frames that are decoded before the network asks for them
WRITE_BEHIND = 2  # results that may wait for the encoder
PLAN = 1  # version of the work folder

# Frames of a part: what an interruption costs at most, and the longest way between key frames. Fewer of large frames, which take
# longer; not too few, since every part begins with a key frame.
_PART_PIXELS = 40_000_000
_MOST_FRAMES, _LEAST_FRAMES = 120, 24


class Done(NamedTuple):
    """How far a clip is: frames that are done, all of them (0 if nobody knows), and frames per second of this run."""

    frames: int
    total: int
    rate: float

    @property
    def share(self) -> float:
        """The finished part, 0..1; 0 if nobody knows."""
        return min(1.0, self.frames / self.total) if self.total else 0.0


@dataclasses.dataclass(frozen=True)
class ClipResult:
    """What became of a clip.

    Attributes:
        input_size, output_size: width and height as they are shown, which is across for frames that are turned for display.
        frames: in the result.
        resumed: of them, taken from an interrupted run.
        repeated: of them, equal to the one before and not computed again.
        seconds: time in the networks.
        notices: what a user should know, one sentence each.
        choice: which network was chosen by looking at the frames, and why; "" where there was nothing to choose.
    """

    input_size: tuple[int, int]
    output_size: tuple[int, int]
    frames: int
    resumed: int
    repeated: int
    seconds: float
    notices: tuple[str, ...]
    choice: str = ""


def upscale_clip(
    source: str | os.PathLike[str] | Clip,
    target: str | os.PathLike[str],
    upscaler: Upscaler,
    *,
    scale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    codec: str | None = None,
    crf: int | None = None,
    preset: str | None = None,
    start: float | None = None,
    duration: float | None = None,
    strip: bool = False,
    progress: Callable[[Done], None] | None = None,
) -> ClipResult:
    """Upscale a video file; sound, subtitles, chapters and timestamps are kept, the result appears whole or not at all.

    An interrupted run goes on where it stopped if it is started again with the same options, of which only ``duration`` may be
    another; its frames lie in ``.NAME.work`` beside the result until that is whole.

    Args:
        source, target: files; ``target`` is replaced if it exists. Its suffix says the format: .mp4, .m4v, .mov, .mkv or .webm.
        upscaler: what makes the frames larger. One that looks at pictures first looks at three frames, so that all frames go
            through the same network.
        scale, width, height: as in :meth:`drct.Upscaler.upscale`, of the picture as it is shown. Sides that the codec cannot encode
            become one pixel larger.
        codec: ``"h264"``, ``"h265"``, ``"av1"``, ``"vp9"`` or ``"ffv1"`` (lossless); default by format, depth and size.
        crf: constant rate factor, smaller is better and larger files; default nearly transparent.
        preset: speed of the encoder by its own names.
        start, duration: only this part, in seconds from the beginning; the result begins at 0.
        strip: leave out tags such as place, author and date; languages, rotation and titles of chapters stay.
        progress: called after each frame.

    Raises:
        OptionError: options that do not go together, a value that is not possible, or ``target`` is ``source``.
        VideoError: a file cannot be read or written; the message names it and the cause.
        MissingDependencyError: PyAV is not installed.
        OutOfMemoryError: even the smallest tile does not fit.
    """
    target = Path(target)
    if target.suffix.lower() not in CONTAINERS:
        raise OptionError(f"{target}: videos are written to {', '.join(CONTAINERS)}")
    clip = source if isinstance(source, Clip) else Clip(source)
    if os.path.realpath(clip.path) == os.path.realpath(target):
        raise OptionError(f"{target} would replace the input: give another output")
    span = clip.span(start, duration)
    if start and span[0] is not None:
        clip = clip.beginning_at(span[0])
    notices = list(clip.notices)
    upscaler, choice = _chosen(clip, upscaler, span)
    size = _frame_size(clip, upscaler, scale, width, height)
    codec = choose_codec(codec, target, clip.samples, *size)
    exact = even_sides(codec, clip.samples, *size)
    if exact != size:
        (rows, columns), (more_rows, more_columns) = clip.turned(*size), clip.turned(*exact)
        notices.append(f"{columns} x {rows} became {more_columns} x {more_rows}: {codec} needs even sides here")
    encoding = plan_encoding(clip, target, exact, codec, encoder_options(codec, crf, preset), notices)
    copied = copied_streams(clip, encoding, target, notices)
    scales = upscaler.scales_for(clip.height, clip.width, width=exact[1], height=exact[0])
    clip.check_clock(*span)  # after all that is quick to refuse
    work = WorkFolder(target, _plan(clip, upscaler, scales, encoding, start, span[1]), notices)
    try:
        for s in scales:
            upscaler.fix_tiles(s, work.plan["tiles"][str(s)])
        resumed = sum(len(part.times) for part in work.parts)
        if resumed:
            notices.append(f"{resumed} frames were there from an interrupted run")
        run = _Run(clip, upscaler, encoding, work, span, clip.count(*span), progress)
        run.encode_rest()
        notices += [notice for notice in [*clip.notices, *run.notices] if notice not in notices]
        frames = sum(len(part.times) for part in work.parts)
        if not frames:
            length = "" if clip.length is None else f": it is {float(clip.length):.2f} s long"
            raise VideoError(f"{clip.path}: there are no frames in the part that was asked for{length}")
        if clip.counts_frames and clip.frames > frames and start is None and duration is None:
            notices.append(f"the file announces {clip.frames} frames, but only {frames} can be decoded and shown")
        last, shown = work.parts[-1].times[-1]
        if span[1] is None and (cut := clip.cut_off(last + shown)):
            notices.append(cut)
        join(clip, work, encoding, target, span, copied, notices, strip)
    except BaseException:
        if work.parts:
            work.close()
        else:
            work.remove()  # nothing to go on with
        raise
    work.remove()
    repeated = sum(part.reused for part in work.parts)
    before, after = clip.turned(clip.height, clip.width)[::-1], clip.turned(*exact)[::-1]
    return ClipResult(before, after, frames, resumed, repeated, run.seconds, tuple(notices), choice)


def _chosen(clip: Clip, upscaler: Upscaler, span: tuple[int | None, int | None]) -> tuple[Upscaler, str]:
    """The upscaler that suits most of three frames, from the quarters of the part."""
    from drct.upscaling.choosing import AutoUpscaler

    if not isinstance(upscaler, AutoUpscaler):
        return upscaler, ""
    first = round(clip.start / clip.time_base) if span[0] is None else span[0]
    length = 0 if clip.length is None else round(clip.length / clip.time_base)
    end = round(clip.start / clip.time_base) + length if span[1] is None else span[1]
    choices = []
    for quarter in (1, 2, 3):
        frames = clip.decode(first + max(0, end - first) * quarter // 4, span[1])
        frame = next(frames, None)
        frames.close()
        if frame is not None:
            choices.append(upscaler.suited(Picture((frame.rgb >> 8).astype(np.uint8))))
    if not choices:
        return upscaler.suited(Picture((next(clip.decode()).rgb >> 8).astype(np.uint8))).upscaler, ""
    networks = [choice.words.partition(":")[0] for choice in choices]
    best = max(choices, key=lambda choice: networks.count(choice.words.partition(":")[0]))
    return best.upscaler, best.words


def _frame_size(clip: Clip, upscaler: Upscaler, scale: float | None, width: int | None, height: int | None) -> tuple[int, int]:
    """Height and width of the frames as they are stored."""
    shown = clip.turned(clip.height, clip.width)
    return clip.turned(*target_size(*shown, upscaler.default_scale if scale is None else scale, width, height))


def _plan(
    clip: Clip, upscaler: Upscaler, scales: tuple[int, ...], encoding: Encoding, start: float | None, end: int | None
) -> dict[str, Any]:
    """All that decides about the frames and their bytes."""
    import torch

    av = require_av(clip.path)
    status = clip.path.stat()
    frames = _PART_PIXELS // (clip.width * clip.height)
    plan = {
        "version": PLAN,
        "source": [status.st_size, status.st_mtime_ns, clip.index],
        "networks": [upscaler.digest(s) for s in scales],
        "run": [str(upscaler.device), upscaler.precision, str(upscaler.tile), upscaler.overlap, upscaler.ensemble],
        "tiles": {str(s): upscaler.tile_limit(s) for s in scales},
        "encoding": encoding.to_json(),
        "libraries": [av.__version__, torch.__version__],
        "start": start or 0,
        "end": end,
        "part": min(_MOST_FRAMES, max(_LEAST_FRAMES, frames)),
    }
    result: dict[str, Any] = json.loads(json.dumps(plan))  # as it will be read again
    return result


class _Run:
    """Decodes, computes and encodes what is not there yet."""

    def __init__(
        self,
        clip: Clip,
        upscaler: Upscaler,
        encoding: Encoding,
        work: WorkFolder,
        span: tuple[int | None, int | None],
        total: int,
        progress: Callable[[Done], None] | None,
    ) -> None:
        self.clip = clip
        self.upscaler = upscaler
        self.encoding = encoding
        self.work = work
        self.span = span
        self.total = total
        self.progress = progress
        self.batch = frames_at_once(upscaler, (clip.height, clip.width), (encoding.height, encoding.width))
        self.seconds = 0.0
        self.notices: list[str] = []
        self._begun = time.perf_counter()
        self._done = self._resumed = sum(len(part.times) for part in work.parts)

    def encode_rest(self) -> None:
        """Finish all parts."""
        length = int(self.work.plan["part"])
        if self.work.parts and len(self.work.parts[-1].times) < length:
            return  # only the last part is shorter
        reader, encoder = OneThread("drct-decode"), OneThread("drct-encode")
        frames = _ahead(reader, self._remaining(), max(READ_AHEAD, self.batch))
        try:
            while self._part(frames, encoder, length):
                pass
        finally:
            encoder.close()
            frames.close()
            reader.close()

    def _remaining(self) -> Iterator[Frame]:
        """Frames behind the finished parts."""
        first, end = self.span
        if not self.work.parts:
            yield from self.clip.decode(first, end)
            return
        last = self.work.parts[-1]
        time_, known = last.times[-1][0], last.last_frame
        # Beginning in the middle is right if it leads to the very frame that was seen last; else the way is from the beginning.
        for near in (time_, None):
            found = False
            frames = self.clip.decode(first, end, near)
            for frame in frames:
                if not found and frame.pts >= time_:
                    found = frame.pts == time_ and frame_hash(frame.rgb) == known
                    if not found:
                        break
                elif found:
                    yield frame
            if found:
                return
        raise VideoError(f"{self.clip.path}: decodes otherwise than before: remove {self.work.folder} to begin anew")

    def _part(self, frames: Iterator[Frame], encoder: OneThread, length: int) -> bool:
        """One part; False if there were no frames left for a further one."""
        writer: PartWriter | None = None
        waiting: collections.deque[Future[None]] = collections.deque()
        before: Frame | None = None
        larger: list[np.ndarray] = []
        count = repeated = 0
        try:
            for group in _groups(itertools.islice(frames, length), self.batch):
                if writer is None:
                    writer = self.work.begin(self.encoding)
                earlier = [before, *group[:-1]]
                new = [b is None or not np.array_equal(f.rgb, b.rgb) for f, b in zip(group, earlier, strict=True)]
                results = self._larger([frame.rgb for frame, is_new in zip(group, new, strict=True) if is_new])
                for frame, is_new in zip(group, new, strict=True):
                    if is_new:
                        larger = [results.pop(0)]
                    repeated += not is_new
                    waiting.append(encoder.submit(writer.add, larger[0], frame.pts, frame.duration))
                    while waiting and (len(waiting) > WRITE_BEHIND or waiting[0].done()):
                        waiting.popleft().result()
                    count += 1
                    self._report()
                before = group[-1]
            while waiting:
                waiting.popleft().result()
            if writer is None or before is None:
                return False
            self.work.parts.append(writer.finish(frame_hash(before.rgb), repeated))
        except BaseException:
            while waiting:
                waiting.pop().cancel()
            encoder.close()
            if writer is not None:
                writer.abandon()
            raise
        return count == length

    def _larger(self, images: list[np.ndarray]) -> list[np.ndarray]:
        start = time.perf_counter()
        results, notices = enlarge(self.upscaler, images, self.encoding.height, self.encoding.width)
        self.seconds += time.perf_counter() - start
        self.notices += [notice for notice in notices if notice not in self.notices]
        return results

    def _report(self) -> None:
        self._done += 1
        if self.progress is not None:
            rate = (self._done - self._resumed) / (time.perf_counter() - self._begun)
            self.progress(Done(self._done, self.total, rate))


def _groups(frames: Iterator[Frame], count: int) -> Iterator[list[Frame]]:
    while group := list(itertools.islice(frames, count)):
        yield group


def _ahead(reader: OneThread, items: Iterator[Frame], count: int) -> Generator[Frame, None, None]:
    """The items of an iterator, the next ``count`` of which are always made in another thread."""
    end = object()
    coming: collections.deque[Future[Any]] = collections.deque()
    try:
        while True:
            while len(coming) <= count:
                coming.append(reader.submit(next, items, end))
            item = coming.popleft().result()
            if item is end:
                return
            yield item
    finally:
        for future in coming:
            future.cancel()
        reader.submit(getattr(items, "close", lambda: None)).result()

"""Reading video: what a clip is like, and its frames one after another as RGB."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import math
import os
import re
import stat
import struct
from collections.abc import Generator, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from drct.errors import MissingDependencyError, OptionError, VideoError
from drct.upscaling.video.colour import (
    FULL_RANGE,
    LEFT_SITED,
    MATRICES,
    STUDIO_RANGE,
    UNSPECIFIED,
    Samples,
    assumed_matrix,
    to_rgb,
)

RUN_UP = 10  # seconds that are decoded before the first wanted frame: no codec's references reach further back in practice
LONGEST = 1e7  # seconds, four months: where a part may begin at the latest; libav counts nanoseconds in 64 bits
LEAST_RATE = Fraction(25)  # frames per second where a file tells none
_SUBSAMPLINGS = {(2, 2): "420", (2, 1): "422", (1, 1): "444", (1, 2): "440", (4, 1): "411", (4, 4): "410"}
_CLOCKED = {"mpegts", "mpeg"}  # formats whose time begins wherever the sender's clock stood
_JUMP = Fraction(1, 4)  # seconds by which such a clock may fall back: broadcasts are not exact
_GAP = Fraction(1, 10)  # seconds without a frame at the beginning of a part; the one before is on screen then
# what frames may carry beside their pixels, by libav's names, and what it means to a person
_NOT_WRITTEN = {
    "MASTERING_DISPLAY_METADATA": "data on the HDR mastering display",
    "CONTENT_LIGHT_LEVEL": "data on the brightness of HDR",
    "DYNAMIC_HDR_PLUS": "data of HDR10+",
    "DOVI_METADATA": "data of Dolby Vision",
    "A53_CC": "closed captions",
    "SPHERICAL": "data of 360° video",
    "STEREO3D": "data of 3D video",
}
_SITING = re.compile(rb"\x55\xb7\x81([\1\2])\x55\xb8\x81([\1\2])")  # ChromaSitingHorz and -Vert of Matroska: 1 first, 2 centred
_DEPTHS = {"yuv": (8, 9, 10, 12, 14, 16), "grey": (8, 9, 10, 12, 14, 16), "rgb": (8, 9, 10, 12, 14, 16)}


def require_av(what: object) -> Any:
    """PyAV.

    Raises:
        MissingDependencyError: it is not installed, or too old.
    """
    try:
        import av
    except ImportError:
        raise MissingDependencyError(f"{what}: video needs PyAV: pip install 'drct[video]'") from None
    if not hasattr(av.VideoStream, "set_display_matrix"):
        raise MissingDependencyError(f"{what}: video needs a newer PyAV than {av.__version__}: pip install -U 'drct[video]'")
    return av


@dataclasses.dataclass(frozen=True)
class Colour:
    """Codes of ITU-T H.273 as the file gives them; 2 is unspecified (0 for the range)."""

    range: int
    matrix: int
    primaries: int
    transfer: int


@dataclasses.dataclass(frozen=True)
class Frame:
    """A decoded frame.

    Attributes:
        rgb: ``(H, W, 3)`` uint16.
        pts: when it is shown, in units of the clip's time base.
        duration: for how long, in the same units; 0 where the file does not tell.
    """

    rgb: np.ndarray
    pts: int
    duration: int


class Clip:
    """A video file whose first frame was decoded.

    Attributes:
        path: the file.
        format: libav's name of the container.
        index: number of the video stream.
        width, height: of its frames.
        samples: how they hold colour.
        colour: what the file says about it.
        time_base: seconds per unit of time.
        rate: frames per second, on average.
        frames: how many there are; 0 where only decoding would tell.
        counts_frames: that number is exact, as in MP4.
        announced: where the video ends in seconds by the header of Matroska, which stays when the file is cut off; else None.
        start: where the time of the file begins, in seconds.
        length: of the video in seconds; None where the file does not tell.
        aspect: width of a pixel by its height; None where the file does not tell.
        display_matrix: nine numbers that turn the picture for display; None if it is shown as it is.
        metadata: of the video stream.
        notices: what a user should know, one sentence each.

    Raises:
        VideoError: no video that can be decoded, or one that is not upscaled (interlaced); the message names file and cause.
        MissingDependencyError: PyAV is not installed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._av = require_av(self.path)
        self.notices: list[str]
        with self.open() as container:
            streams = [s for s in container.streams.video if not s.disposition & self._av.stream.Disposition.attached_pic]
            if not streams:
                raise VideoError(f"{self.path}: holds no video")
            stream = streams[0]
            self.index = stream.index
            self.format = container.format.name
            self.time_base = Fraction(stream.time_base)
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or LEAST_RATE)
            self.frames = stream.frames
            self.counts_frames = "mp4" in self.format
            self.announced = _announced(container, stream) if "matroska" in self.format else None
            self.start = Fraction(container.start_time or 0, 1_000_000)
            self.length = None if stream.duration is None else stream.duration * self.time_base
            if self.length is None and container.duration is not None:
                self.length = Fraction(container.duration, 1_000_000)
            aspect = stream.sample_aspect_ratio
            self.aspect = Fraction(aspect) if aspect else None
            self.metadata = dict(stream.metadata)
            self._centred = self._siting(stream)
            first = next(self._decoded(container), None)
            if first is None:
                raise VideoError(f"{self.path}: no frame of its video can be decoded")
            self.has_times = first.pts is not None
            self._describe(first)

    def _describe(self, frame: Any) -> None:
        """Take size and colours from a frame."""
        self._check_progressive(frame)
        self.width, self.height = frame.width, frame.height
        self.colour = self._colour(frame)
        self.samples = self._samples(frame)
        self.display_matrix = _display_matrix(frame)
        self.notices = []
        carried = _side_data(frame)
        if "stereo_mode" in self.metadata or carried.get("STEREO3D", b"")[:4] == bytes(4):
            carried.pop("STEREO3D", None)  # a tag of Matroska, which is copied, says it too; or it says that there is one view
        lost = sorted(words for kind, words in _NOT_WRITTEN.items() if kind in carried)
        if lost:
            self.notices.append(f"{' and '.join(lost)} left out: encoders here do not take it over")
        # in WebM transparency lies beside the frames, where not every decoder looks
        beside = any(key.lower() == "alpha_mode" and value == "1" for key, value in self.metadata.items())
        if beside or any(component.is_alpha for component in frame.format.components):
            self.notices.append("transparency left out: video is upscaled without it")

    def beginning_at(self, first: int) -> Clip:
        """The clip with size, colours and notices of the frame that a part from this timestamp on begins with."""
        clip = copy.copy(self)
        # where there is no index of key frames, decoding may not succeed before the next one
        frames = self._timed_frames(first, None, None, RUN_UP if self.format in _CLOCKED else 0)
        with contextlib.closing(frames), contextlib.suppress(VideoError):  # decoding will tell of damage, and where it is
            found = next(frames, None)
            if found is not None:
                clip._describe(found[0])
        return clip

    def cut_off(self, end: int) -> str:
        """A sentence on a file whose frames end at a timestamp, but by its header much later; else ""."""
        last = end * self.time_base
        if self.announced is None or self.announced - last <= max(Fraction(1), 3 / self.rate):
            return ""
        return f"the file announces {float(self.announced):.2f} s, but its frames end at {float(last):.2f} s: it may be cut off"

    def jumps_back(self, seconds: Fraction) -> bool:
        """Whether packets of a stream that lie so much before the one read last are those of another recording."""
        return self.format in _CLOCKED and seconds > _JUMP

    def check_clock(self, first: int | None, end: int | None) -> None:
        """Make sure that time only goes on in a part of a recording, which is read for it.

        Raises:
            VideoError: its clock jumps back, so that no time says which frame and which sound belong together.
        """
        if self.format not in _CLOCKED:
            return
        latest: dict[int, Fraction] = {}
        with self.open() as container:
            self._seek(container, first, RUN_UP)
            for packet in container.demux(container.streams.video + container.streams.audio):
                if packet.dts is None:
                    continue
                index, time = packet.stream.index, packet.dts * Fraction(packet.time_base)
                if self.jumps_back(latest.get(index, time) - time):
                    seen = latest.get(self.index, self.start) - self.start
                    raise VideoError(
                        f"{self.path}: its clock jumps back after {_seconds(seen)} s, as where recordings were joined: "
                        "--duration takes what is before; for the whole give it one clock first, "
                        "for example by ffmpeg -i IN -map 0:v -map 0:a -c copy OUT.mkv"
                    )
                latest[index] = max(time, latest.get(index, time))
                if index == self.index and end is not None and packet.dts >= end:
                    break

    @contextlib.contextmanager
    def open(self) -> Iterator[Any]:
        """The container, open for reading inside the block.

        Raises:
            VideoError: it cannot be opened or is no media file.
        """
        try:
            # libav takes "a:b" for an address and "%d" for a pattern; an open file is a file
            if not stat.S_ISREG(self.path.stat().st_mode):  # a pipe would be waited for
                raise VideoError(f"{self.path}: is not a regular file")
            file = self.path.open("rb")
        except OSError as error:
            raise VideoError(f"{self.path}: cannot be opened: {error.strerror}") from None
        with file:  # which PyAV leaves open
            try:
                container = self._av.open(file, metadata_errors="replace")
            except (self._av.FFmpegError, OSError):
                raise VideoError(f"{self.path}: cannot be opened as video: it is cut off, damaged or no video") from None
            with container:
                yield container

    def turned(self, height: int, width: int) -> tuple[int, int]:
        """A size of stored frames as it is shown, or the other way round: sides change places where display turns by 90 degrees."""
        matrix = self.display_matrix
        return (width, height) if matrix is not None and abs(matrix[0]) < abs(matrix[1]) else (height, width)

    @property
    def shift(self) -> Fraction:
        """Seconds that are taken from all timestamps, so that a recording of a broadcast begins at 0."""
        return self.start if self.format in _CLOCKED else Fraction(0)

    def span(self, start: float | None, duration: float | None) -> tuple[int | None, int | None]:
        """First timestamp and end (exclusive) of a part given in seconds from the beginning; None where there is no bound.

        Raises:
            OptionError: ``start`` or ``duration`` is no time.
        """
        if start is None and duration is None:
            return None, None
        if start is not None and not 0 <= start <= LONGEST:
            raise OptionError(f"start is {start}, but must be 0 to {LONGEST:.0f} seconds")
        if duration is not None and not duration > 0:
            raise OptionError(f"duration is {duration}, but must be above 0")
        microsecond = Fraction(1, 1_000_000)  # to which libav rounds the start of the file
        begin = self.start + Fraction(start or 0).limit_denominator(1_000_000) - microsecond
        first = math.ceil(begin / self.time_base)
        if duration is None:
            return first, None
        return first, math.ceil((begin + Fraction(min(duration, LONGEST)).limit_denominator(1_000_000)) / self.time_base)

    def count(self, first: int | None, end: int | None) -> int:
        """About how many frames a part has; 0 if nobody knows."""
        if first is None and end is None and self.frames:
            return self.frames
        if self.length is None:
            return 0
        begin, last = self.start, self.start + self.length
        if first is not None:
            begin = max(begin, first * self.time_base)
        if end is not None:
            last = min(last, end * self.time_base)
        return max(0, round((last - begin) * self.rate))

    def decode(self, first: int | None = None, end: int | None = None, near: int | None = None) -> Generator[Frame, None, None]:
        """Frames in the order they are shown.

        Args:
            first, end: only frames with ``first <= pts < end``. Where none begins soon after ``first``, the one that is on screen
                then comes first, from that time on.
            near: begin to read shortly before this timestamp instead of at the beginning. Frames before it may be missing or,
                where they refer to what was not read, wrong.

        Raises:
            VideoError: the file is damaged, changes its size, or is interlaced.
        """
        for frame, pts, duration in self._timed_frames(first, end, near, RUN_UP):
            self._check(frame, pts * self.time_base)
            yield Frame(to_rgb(self._planes(frame), self._samples(frame)), pts, duration)

    def _timed_frames(
        self, first: int | None, end: int | None, near: int | None, run_up: int
    ) -> Generator[tuple[Any, int, int], None, None]:
        """Decoded frames with their time and duration, as :meth:`decode` chooses them; ``run_up`` seconds are read before."""
        with self.open() as container:
            self._seek(container, max((t for t in (first, near) if t is not None), default=None), run_up)
            shown: tuple[Any, int] | None = None  # the last frame before ``first``, and where it ends
            last: int | None = None
            moved = 0
            for frame in self._decoded(container):
                duration = int(frame.duration or 0)
                pts = frame.pts
                if pts is None:
                    pts = 0 if last is None else last + max(1, round(1 / (self.rate * self.time_base)))
                elif last is not None and pts <= last:
                    pts, moved = last + 1, moved + 1
                last = pts
                if first is not None and pts < first:
                    shown = frame, pts + duration
                    continue
                ended = end is not None and pts >= end
                if first is not None and shown is not None and (ended or (pts - first) * self.time_base > _GAP):
                    yield shown[0], first, pts - first
                shown = None
                if ended:
                    break
                yield frame, pts, duration
            if first is not None and shown is not None and shown[1] > first:
                yield shown[0], first, shown[1] - first
            if moved:
                self.notices.append(f"{moved} frames had the time of the one before and were moved behind it")

    def _seek(self, container: Any, target: int | None, run_up: int) -> None:
        """Go to a key frame so many seconds before a timestamp."""
        if target is None or not self.has_times:
            return
        stream = container.streams[self.index]
        back = math.ceil(run_up / self.time_base)
        if target - back > (stream.start_time or 0):
            container.seek(target - back, stream=stream, backward=True)

    def _decoded(self, container: Any) -> Iterator[Any]:
        stream = container.streams[self.index]
        if stream.codec_context is None:
            raise VideoError(f"{self.path}: its video cannot be decoded: the codec is unknown")
        stream.thread_type = "AUTO"
        for other in container.streams:
            if other.index != self.index:
                other.discard = self._av.stream.Discard.all
        time: Fraction | None = None
        damaged = 0
        try:
            for packet in container.demux(stream):
                for frame in packet.decode():
                    time = None if frame.pts is None else frame.pts * self.time_base
                    damaged += frame.is_corrupt
                    yield frame
        except self._av.FFmpegError as error:
            where, advice = "at its beginning", ""
            if time is not None:
                where, advice = f"after {_seconds(time - self.start)} s", ": --duration takes what is before"
            raise VideoError(f"{self.path}: damaged or cut off {where} ({error.strerror}){advice}") from None
        if damaged:
            self.notices.append(f"{damaged} frames are damaged in the file: the decoder patched them")

    def _check(self, frame: Any, time: Fraction) -> None:
        self._check_progressive(frame, time)
        if (frame.width, frame.height) != (self.width, self.height):
            raise VideoError(
                f"{self.path}: the frames change from {self.width} x {self.height} to {frame.width} x {frame.height} at "
                f"{_seconds(time - self.start)} s: cut it there with --start and --duration"
            )

    def _check_progressive(self, frame: Any, time: Fraction | None = None) -> None:
        if frame.interlaced_frame:
            where, advice = "", ""
            if time is not None:
                where, advice = f" at {_seconds(time - self.start)} s", "--duration takes what is before; for the whole "
            raise VideoError(
                f"{self.path}: its frames are interlaced{where}, and upscaling would keep the combs: {advice}deinterlace it first, "
                "for example by ffmpeg -i IN -vf bwdif -c:a copy OUT"
            )

    def _siting(self, stream: Any) -> tuple[bool, bool]:
        """Where chroma lies, as in :class:`Samples`; PyAV does not tell, but libav writes it into the header of Matroska."""
        header = io.BytesIO()
        with contextlib.suppress(ValueError, self._av.FFmpegError), self._av.open(header, "w", format="matroska") as trial:
            trial.add_stream_from_template(stream, opaque=True)
            trial.start_encoding()
        found = _SITING.search(header.getvalue())
        return LEFT_SITED if found is None else (found[1] == b"\2", found[2] == b"\2")

    def _colour(self, frame: Any) -> Colour:
        full = FULL_RANGE if frame.format.name.startswith("yuvj") else int(frame.color_range)
        return Colour(full, int(frame.colorspace), int(frame.color_primaries), int(frame.color_trc))

    def _samples(self, frame: Any) -> Samples:
        """How the planes that :meth:`_planes` gives are to be read."""
        format, colour = frame.format, self._colour(frame)
        components = [c for c in format.components if not c.is_alpha]
        kind = "rgb" if format.is_rgb or format.has_palette or format.is_bayer else "grey" if len(components) == 1 else "yuv"
        most = 8 if kind == "rgb" and len(components) == 1 else max(c.bits for c in components)
        bits = next((depth for depth in _DEPTHS[kind] if depth >= most), 16)
        if kind != "yuv":
            # libav and players take grey for full range unless told otherwise
            return Samples(kind, bits, full_range=kind == "rgb" or colour.range != STUDIO_RANGE)
        subsampling = (-(-64 // format.chroma_width(64)), -(-64 // format.chroma_height(64)))
        matrix = assumed_matrix(frame.height, frame.width) if colour.matrix == UNSPECIFIED else colour.matrix
        if matrix not in MATRICES or subsampling not in _SUBSAMPLINGS or format.name.startswith("xyz"):
            raise VideoError(
                f"{self.path}: colours of this kind ({format.name}, matrix {matrix}) are not supported: convert it to YUV in BT.709"
            )
        return Samples(kind, bits, subsampling, matrix, colour.range == FULL_RANGE, self._centred)

    def _planes(self, frame: Any) -> list[np.ndarray]:
        """Samples of a frame, plane by plane; formats that are no plain planes are rearranged by libav, their values stay."""
        samples = self._samples(frame)
        depth = "" if samples.bits == 8 else f"{samples.bits}le"
        wanted = {
            "grey": f"gray{depth}",
            "rgb": f"gbrp{depth}",
            "yuv": f"yuv{_SUBSAMPLINGS.get(samples.subsampling)}p{depth}",
        }[samples.kind]
        if re.sub("^yuvj", "yuv", frame.format.name) != wanted:
            frame = frame.reformat(format=wanted, threads=1)  # the threads of FFmpeg 8.1 now and then leave a row out
        dtype = np.dtype(samples.dtype).newbyteorder("<")
        shapes = samples.plane_shapes(frame.height, frame.width)
        rows = (np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize) for plane in frame.planes)
        return [plane[:height, :width] for plane, (height, width) in zip(rows, shapes, strict=True)]


def _seconds(time: Fraction) -> str:
    """A time as a user may give it back as the end of a part: never later than it is."""
    return f"{math.floor(time * 100) / 100:.2f}"


def _announced(container: Any, stream: Any) -> Fraction | None:
    """Where a video of Matroska ends by its own tag, or by the file's length where nothing else may be longer; in seconds."""
    for key, value in stream.metadata.items():
        found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", value)
        if found and re.fullmatch(r"duration(-\w+)?", key, re.IGNORECASE):
            hours, minutes, seconds = found.groups()
            return 3600 * int(hours) + 60 * int(minutes) + Fraction(seconds)
    alone = all(other.index == stream.index or other.type == "attachment" for other in container.streams)
    return Fraction(container.duration, 1_000_000) if alone and container.duration is not None else None


def _side_data(frame: Any) -> dict[str, bytes]:
    """What a frame carries beside its pixels, by libav's names; nothing where one of them is newer than PyAV."""
    try:
        return {data.type.name: bytes(data) for data in frame.side_data}
    except ValueError:
        return {}


def _display_matrix(frame: Any) -> tuple[int, ...] | None:
    data = _side_data(frame).get("DISPLAYMATRIX", b"")
    if len(data) == 36:
        return struct.unpack("=9i", data)
    if not frame.rotation:
        return None
    # counter-clockwise in degrees; numbers with 16 binary places, and 30 in the last column (libavutil/display.h)
    cosine, sine = (round(65536 * f(math.radians(frame.rotation))) for f in (math.cos, math.sin))
    return cosine, -sine, 0, sine, cosine, 0, 0, 0, 1 << 30

"""Finished parts of a clip, kept beside the result until it is whole, so that an interrupted run goes on with the next part.

The folder ``.NAME.work`` holds ``plan.json``, which says what the parts are parts of, and for each finished part ``N.bin`` with the
encoded frames one after another and ``N.json`` with their times and sizes, which is written last. Every part is encoded by an
encoder of its own, so the bytes are the same however often a run was interrupted.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from drct.errors import VideoError
from drct.imaging import part_path
from drct.upscaling.video.colour import from_rgb
from drct.upscaling.video.encoding import Encoding, opening_encoders
from drct.upscaling.video.source import require_av

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@dataclasses.dataclass(frozen=True)
class EncodedFrame:
    """A frame as it came from the encoder; times in units of the clip's time base."""

    data: bytes
    pts: int
    dts: int
    duration: int
    is_key: bool


@dataclasses.dataclass(frozen=True)
class Part:
    """What ``N.json`` says about a finished part.

    Attributes:
        times: ``pts`` and duration of the frames in the order they are shown.
        packets: ``pts``, size and whether it is a key frame, in the order of the file.
        extradata: the encoder's headers, as hexadecimal digits.
        last_frame: hash of the last decoded frame, by which a decoder that begins in the middle is checked.
        reused: frames that were equal to the one before and were not computed.
    """

    times: list[tuple[int, int]]
    packets: list[tuple[int, int, bool]]
    extradata: str
    last_frame: str
    reused: int

    @property
    def delay(self) -> int:
        """How many frames later than it is encoded a frame may be shown, at most."""
        ranks = {pts: rank for rank, (pts, _) in enumerate(self.times)}
        return max(place - ranks[pts] for place, (pts, _, _) in enumerate(self.packets))


def frame_hash(rgb: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(rgb).data).hexdigest()


class WorkFolder:
    """The parts of one result, held by one process at a time.

    Args:
        target: the result.
        plan: what decides about its bytes; parts that were made by another plan are removed. Its ``end`` only says where the part
            of the clip ends, so that of another one the parts before it are used.
        notices: gets a sentence if parts were removed.

    Attributes:
        plan: that of the parts.
        parts: those that are finished, in their order.

    Raises:
        VideoError: another process has the folder, or it cannot be written.
    """

    def __init__(self, target: Path, plan: dict[str, Any], notices: list[str]) -> None:
        self.target = target
        self.folder = part_path(target).with_suffix(".work")
        try:
            self.folder.mkdir(exist_ok=True)
            self._lock = (self.folder / "lock").open("ab")
        except OSError as error:
            raise VideoError(f"{self.folder}: cannot be written: {error.strerror}") from None
        if fcntl is not None:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._lock.close()
                raise VideoError(f"{target}: another process is working on it") from None
            except OSError:
                pass  # a file system without locks
        with _writing(self.folder):
            plan_file = self.folder / "plan.json"
            self.plan = _json(plan_file) or {}
            # tiles follow from the memory that was free when the clip was begun, and stay as they were then
            free = {"tiles": None, "end": None}
            unused = False
            if {**self.plan, **free} != {**plan, **free}:
                unused = any(self.folder.glob("*.json"))
                self._empty()
                self.plan = plan
                write_file(plan_file, json.dumps(plan).encode())
            self.parts: list[Part] = []
            while (part := _part(self._notes(len(self.parts)))) is not None:
                self.parts.append(part)
            if self.plan["end"] != plan["end"]:
                unused = self._end_at(plan["end"]) and not self.parts
                self.plan["end"] = plan["end"]
                write_file(plan_file, json.dumps(self.plan).encode())
            if unused:
                notices.append("the options or the video changed: the frames of the interrupted run are not used")

    def _empty(self) -> None:
        for path in self.folder.iterdir():
            if path.name != "lock":
                path.unlink()

    def _notes(self, number: int) -> Path:
        return self.folder / f"{number:06d}.json"

    def _end_at(self, end: int | None) -> bool:
        """Remove the parts that a run to this timestamp would not make: with later frames, or ended by another one; whether any."""
        count = len(self.parts)
        while self.parts and (
            len(self.parts[-1].times) < self.plan["part"] or (end is not None and self.parts[-1].times[-1][0] >= end)
        ):
            self.parts.pop()
            self._notes(len(self.parts)).unlink()
        return len(self.parts) < count

    def begin(self, encoding: Encoding) -> PartWriter:
        """The next part."""
        return PartWriter(self.folder / f"{len(self.parts):06d}", encoding)

    def encoded(self) -> Iterator[EncodedFrame]:
        """All frames of all parts as they lie in the result, with decoding times of the whole.

        A frame is decoded when the one ``delay`` places before it in the order of showing is shown, which is never later than it is
        shown itself; before the first, time goes on in the steps of the first two frames.
        """
        delay = max(part.delay for part in self.parts)
        first = self.parts[0].times
        step = max(1, first[1][0] - first[0][0]) if len(first) > 1 else 1
        waiting = collections.deque(first[0][0] - step * i for i in range(delay, 0, -1))
        for number, part in enumerate(self.parts):
            waiting.extend(pts for pts, _ in part.times)
            durations = dict(_durations(part.times))
            with open(self.folder / f"{number:06d}.bin", "rb") as file:
                for pts, size, is_key in part.packets:
                    yield EncodedFrame(file.read(size), pts, waiting.popleft(), durations[pts], is_key)

    def remove(self) -> None:
        """The result is whole: the folder goes."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def close(self) -> None:
        self._lock.close()


def _durations(times: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Each frame lasts until the next; the last one of a part as long as the file says, or as the one before."""
    before = 1
    for (pts, duration), following in itertools.zip_longest(times, times[1:]):
        before = following[0] - pts if following is not None else duration or before
        yield pts, before


class PartWriter:
    """Encodes the frames of one part."""

    def __init__(self, path: Path, encoding: Encoding) -> None:
        self._av = require_av(path)
        self._path = path
        self._encoding = encoding
        self._times: list[tuple[int, int]] = []
        self._packets: list[tuple[int, int, bool]] = []
        with _writing(path):
            self._file: IO[bytes] = path.with_suffix(".bin").open("wb")
        self._context = self._av.CodecContext.create(encoding.encoder, "w")
        encoding.set_up(self._context)
        self._context.flags |= self._av.codec.context.Flags.global_header
        with self._encoding_errors(), opening_encoders():
            self._context.open()

    def add(self, rgb: np.ndarray, pts: int, duration: int) -> None:
        """Encode a frame, ``(H, W, 3)`` uint16."""
        encoding = self._encoding
        frame = self._av.VideoFrame(encoding.width, encoding.height, encoding.pixel_format)
        for plane, values in zip(frame.planes, from_rgb(rgb, encoding.samples), strict=True):
            rows = np.frombuffer(plane, values.dtype).reshape(-1, plane.line_size // values.itemsize)
            rows[: values.shape[0], : values.shape[1]] = values
        frame.pts, frame.time_base, frame.duration = pts, encoding.time_base, duration
        frame.color_range, frame.colorspace = encoding.colour.range, encoding.colour.matrix
        frame.color_primaries, frame.color_trc = encoding.colour.primaries, encoding.colour.transfer
        self._times.append((pts, duration))
        self._encode(frame)

    def finish(self, last_frame: str, reused: int) -> Part:
        """Write what the encoder still holds and make the part a finished one."""
        self._encode(None)
        with _writing(self._path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            extradata = bytes(self._context.extradata or b"").hex()
            part = Part(self._times, self._packets, extradata, last_frame, reused)
            if sorted(pts for pts, _, _ in self._packets) != [pts for pts, _ in self._times]:
                raise VideoError(f"{self._path}: the encoder {self._encoding.encoder} returned other frames than it got")
            write_file(self._path.with_suffix(".json"), json.dumps(dataclasses.asdict(part)).encode())
        return part

    def abandon(self) -> None:
        with contextlib.suppress(OSError):  # what is still to be written finds no room, which was told already
            self._file.close()

    def _encode(self, frame: Any) -> None:
        with self._encoding_errors(), _writing(self._path):
            for packet in self._context.encode(frame):
                self._file.write(bytes(packet))
                self._packets.append((packet.pts, packet.size, bool(packet.is_keyframe)))

    @contextlib.contextmanager
    def _encoding_errors(self) -> Iterator[None]:
        try:
            yield
        except self._av.FFmpegError as error:
            e = self._encoding
            raise VideoError(
                f"{self._path.parent}: {e.encoder} cannot encode {e.width} x {e.height} pixels of {e.pixel_format} "
                f"({error.strerror}): try another --codec or a smaller scale"
            ) from None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VideoError(f"{error.filename or path}: cannot be written: {error.strerror}") from None


def write_file(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def _json(path: Path) -> dict[str, Any] | None:
    """What a file holds; None if it is not there or damaged, since then the frames are made again."""
    try:
        values = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _part(path: Path) -> Part | None:
    """A finished part; None if it is not there or damaged."""
    values = _json(path)
    if values is None:
        return None
    try:
        values["times"] = [tuple(time) for time in values["times"]]
        values["packets"] = [tuple(packet) for packet in values["packets"]]
        return Part(**values)
    except (TypeError, KeyError):
        return None

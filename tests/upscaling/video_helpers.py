"""Small clips made on the spot, what is in a clip, and an upscaler that only repeats pixels."""

from __future__ import annotations

import dataclasses
import itertools
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from drct.upscaling import Upscaled, Upscaler
from drct.upscaling.video.colour import Samples, from_rgb

TIME_BASE = Fraction(1, 12800)
STEP = 512  # 25 frames per second


class Repeater(Upscaler):
    """Enlarges by repeating pixels, since these tests are about all but the network."""

    computed = 0

    def digest(self, scale: int) -> str:
        return "pixels repeated"

    def upscale(self, image, *, scale=None, width=None, height=None, progress=None, plans=None) -> Upscaled:
        self.computed += 1
        rows, columns = np.arange(height) * image.shape[0] // height, np.arange(width) * image.shape[1] // width
        return Upscaled(image[rows][:, columns], (), ())


def pictures(count: int, height: int, width: int) -> list[np.ndarray]:
    """Soft moving colours, uint16."""
    y, x = np.mgrid[:height, :width] / 32
    images = []
    for i in range(count):
        planes = [0.5 + 0.3 * np.sin(2 * x + 3 * y + c + 0.3 * i) for c in range(3)]
        images.append((np.stack(planes, -1) * 65535).astype(np.uint16))
    return images


def make_clip(
    path: Path,
    *,
    images: list[np.ndarray] | None = None,
    frames: int = 12,
    size: tuple[int, int] = (24, 32),
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    samples: Samples | None = None,
    codes: tuple[int, int, int, int] = (1, 1, 1, 1),
    times: list[int] | None = None,
    time_base: Fraction = TIME_BASE,
    matrix: tuple[int, ...] | None = None,
    aspect: Fraction | None = None,
    sound: bool = False,
    subtitles: bool = False,
    options: dict[str, str] | None = None,
    metadata: dict[str, str] | None = None,
    chapters: list[dict[str, Any]] | None = None,
    flags: int = 0,
    tags: dict[str, str] | None = None,
    attachment: tuple[str, str, bytes] | None = None,
) -> Path:
    """Write a clip; ``codes`` are range, matrix, primaries and transfer, ``times`` the presentation times of the frames, ``tags``
    those of the video stream, ``attachment`` name, type and bytes of one. Where the pixel format has transparency, nothing is to
    be seen."""
    images = images or pictures(frames, *size)
    samples = samples or Samples("yuv", 8, (2, 2), codes[1] if codes[1] != 2 else 6, codes[0] == 2)
    times = times or [STEP * i for i in range(len(images))]
    container_options = {"video_track_timescale": str(time_base.denominator)} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", container_options=container_options) as container:
        container.metadata.update(metadata or {})
        if chapters:
            container.set_chapters(chapters)
        video = container.add_stream(codec, rate=25, options=options or ({"qp": "4"} if codec == "libx264" else {}))
        height, width = images[0].shape[:2]
        context = video.codec_context
        context.width, context.height, context.pix_fmt, context.time_base = width, height, pixel_format, time_base
        context.color_range, context.colorspace, context.color_primaries, context.color_trc = codes
        context.flags |= flags
        video.time_base = time_base
        video.metadata.update(tags or {})
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        if matrix is not None:
            video.set_display_matrix(matrix)
        audio = container.add_stream("aac" if path.suffix != ".webm" else "libopus", rate=48000) if sound else None
        if attachment is not None:
            container.add_attachment(*attachment)
        text = container.add_mux_stream("subrip" if path.suffix == ".mkv" else "mov_text") if subtitles else None
        if text is not None:
            text.time_base = Fraction(1, 1000)
            text.metadata["language"] = "rus"
        container.start_encoding()
        for image, time in zip(images, times, strict=True):
            frame = av.VideoFrame(width, height, pixel_format)
            for plane in frame.planes[3:]:
                plane.update(bytes(plane.buffer_size))
            for plane, values in zip(frame.planes[:3], from_rgb(image, samples), strict=True):
                rows = np.frombuffer(plane, values.dtype).reshape(-1, plane.line_size // values.itemsize)
                rows[: values.shape[0], : values.shape[1]] = values
            frame.pts, frame.time_base = time, time_base
            frame.color_range, frame.colorspace, frame.color_primaries, frame.color_trc = codes
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if text is not None:
            packet = av.Packet("Привет".encode() if path.suffix == ".mkv" else b"\0\5Hello")
            packet.stream, packet.time_base, packet.pts, packet.dts, packet.duration = text, text.time_base, 100, 100, 200
            container.mux(packet)
        if audio is not None:
            seconds = float((times[-1] - times[0]) * time_base) + 0.04
            wave = np.sin(np.arange(int(48000 * seconds)) / 20).astype(np.float32) / 4
            for at in range(0, len(wave) - 1023, 1024):
                sound_frame = av.AudioFrame.from_ndarray(np.stack([wave[at : at + 1024]] * 2), format="fltp", layout="stereo")
                sound_frame.sample_rate, sound_frame.pts, sound_frame.time_base = 48000, at, Fraction(1, 48000)
                container.mux(audio.encode(sound_frame))
            container.mux(audio.encode(None))
    return path


def box(kind: bytes, body: bytes) -> bytes:
    """A box of MP4."""
    return struct.pack(">I", 8 + len(body)) + kind + body


def add_boxes(path: Path, boxes: bytes) -> None:
    """Put boxes into the description of an H.264 video in an MP4 file whose header lies at the end, as libav writes it."""
    data = bytearray(path.read_bytes())
    start = 0
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        while data[start + 4 : start + 8] != kind:
            start += int.from_bytes(data[start : start + 4], "big")
        size = int.from_bytes(data[start : start + 4], "big")
        data[start : start + 4] = (size + len(boxes)).to_bytes(4, "big")
        end = start + size
        start += 16 if kind == b"stsd" else 8
    data[end:end] = boxes
    path.write_bytes(data)


def rewrite(source: Path, path: Path, change: Callable[[int, Any], bytes | None] | None = None) -> Path:
    """Copy a clip packet by packet; ``change`` gets the number of a packet in its stream and the packet, whose times it may move,
    and gives other bytes or None."""
    with av.open(str(source)) as before, av.open(str(path), "w") as after:
        streams = [after.add_stream_from_template(stream, opaque=True) for stream in before.streams]
        numbers = [itertools.count() for _ in streams]
        for packet in before.demux():
            if packet.dts is None:
                continue
            index = packet.stream.index
            copy = packet
            if change is not None and (data := change(next(numbers[index]), packet)) is not None:
                copy = av.Packet(data)
                copy.pts, copy.dts, copy.duration, copy.time_base = packet.pts, packet.dts, packet.duration, packet.time_base
                copy.is_keyframe = packet.is_keyframe
            copy.stream = streams[index]
            after.mux(copy)
    return path


@dataclasses.dataclass
class Content:
    """What is in a clip; times in seconds, exactly."""

    times: list[Fraction]
    size: tuple[int, int]
    codes: tuple[int, int, int, int]
    pixel_format: str
    codec: str
    rotation: int
    aspect: Fraction | None
    others: dict[str, list[tuple[Fraction, Fraction, bytes]]]
    metadata: dict[str, str]
    languages: list[str | None]
    chapters: list[tuple[Fraction, Fraction, str]]
    rate: Fraction
    length: Fraction
    images: list[np.ndarray] = dataclasses.field(repr=False)


def content(path: Path) -> Content:
    from drct.upscaling.video.source import Clip

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        first = frames[0]
        others: dict[str, list[tuple[Fraction, Fraction, bytes]]] = {}
        result = Content(
            [frame.pts * frame.time_base for frame in frames],
            (first.width, first.height),
            (int(first.color_range), int(first.colorspace), int(first.color_primaries), int(first.color_trc)),
            first.format.name,
            stream.codec_context.name,
            first.rotation,
            stream.sample_aspect_ratio,
            others,
            dict(container.metadata),
            [s.language for s in container.streams],
            [
                (c["start"] * c["time_base"], c["end"] * c["time_base"], c["metadata"].get("title", ""))
                for c in container.chapters()
            ],
            stream.average_rate,
            Fraction(container.duration, 1_000_000),
            [],
        )
    with av.open(str(path)) as container:
        for packet in container.demux():
            if packet.size and packet.stream.type != "video":
                kind = packet.stream.type
                entry = (packet.pts * packet.time_base, packet.duration * packet.time_base, bytes(packet))
                others.setdefault(kind, []).append(entry)
    result.images = [frame.rgb for frame in Clip(path).decode()]
    return result

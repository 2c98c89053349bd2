"""Encoders: which one, how it holds the samples, and how it is set up, always alike for every segment of a clip."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from drct.errors import OptionError, VideoError, did_you_mean
from drct.upscaling.video.colour import BT709, LEFT_SITED, UNSPECIFIED, Samples, assumed_matrix
from drct.upscaling.video.source import Clip, Colour, require_av

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm"}  # that are written
OTHER_SUFFIXES = (  # that are read
    *(".3g2", ".3gp", ".asf", ".avi", ".bik", ".divx", ".dv", ".f4v", ".flv", ".gxf", ".m2p", ".m2t", ".m2ts", ".mj2", ".mk3d"),
    *(".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".smk", ".tod", ".tp", ".trp", ".ts"),
    *(".vob", ".wmv", ".wtv", ".y4m"),
    *(".264", ".265", ".h264", ".h265", ".hevc", ".ivf", ".m1v", ".m2v", ".mjpeg", ".mjpg"),  # bare streams
)
H264_SIDE = 4096  # beyond it players decode H.264 by software, if at all
MILLISECONDS = Fraction(1, 1000)  # all that Matroska holds


@dataclasses.dataclass(frozen=True)
class Codec:
    """A kind of video and the encoder that makes it.

    Attributes:
        encoder: its name in libav.
        crf: default of the constant rate factor, smaller is better; None for lossless.
        most: its largest value.
        presets: from fast to slow; empty if it has none.
        preset: the default.
        even: whether smaller chroma planes need even sides.
        fixed: options that are always set.
    """

    encoder: str
    crf: int | None
    most: int
    presets: tuple[str, ...]
    preset: str
    even: bool = True
    fixed: tuple[tuple[str, str], ...] = ()


_SPEEDS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")
CODECS = {
    "h264": Codec("libx264", 17, 51, _SPEEDS, "medium"),
    "h265": Codec("libx265", 18, 51, _SPEEDS, "medium", fixed=(("x265-params", "log-level=none"),)),
    "av1": Codec("libsvtav1", 22, 63, tuple(str(i) for i in range(13, -1, -1)), "6"),
    "vp9": Codec("libvpx-vp9", 20, 63, (), "", even=False, fixed=(("row-mt", "1"), ("cpu-used", "2"))),
    "ffv1": Codec("ffv1", None, 0, (), "", even=False, fixed=(("level", "3"), ("slicecrc", "1"))),
}

# names of libav's planar formats: the part that says chroma sizes
_SUBSAMPLING_NAMES = {(2, 2): "420", (2, 1): "422", (1, 1): "444"}


def is_video_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a video by its name."""
    path = Path(path)
    return path.suffix.lower() in (*CONTAINERS, *OTHER_SUFFIXES) and not path.name.startswith(".")


def video_suffix(source: Path) -> str:
    """Suffix of the result where none was chosen: the source's if it is written, else Matroska, which holds nearly all there is."""
    return source.suffix if source.suffix.lower() in CONTAINERS else ".mkv"


@dataclasses.dataclass(frozen=True)
class Encoding:
    """All that decides about the bytes that an encoder makes.

    Attributes:
        encoder: its name in libav.
        container: libav's name of the format of the result.
        pixel_format: libav's name.
        samples: how the planes hold colour.
        colour: codes that are written into the stream.
        width, height: of the frames.
        time_base, rate, aspect: as in :class:`drct.upscaling.video.source.Clip`.
        options: of the encoder.
    """

    encoder: str
    container: str
    pixel_format: str
    samples: Samples
    colour: Colour
    width: int
    height: int
    time_base: Fraction
    rate: Fraction
    aspect: Fraction | None
    options: dict[str, str]

    def set_up(self, context: Any) -> None:
        """Give the settings to an encoder, a codec context or the stream of one, that is not yet open."""
        context.width, context.height, context.pix_fmt = self.width, self.height, self.pixel_format
        context.time_base, context.framerate = self.time_base, self.rate
        context.color_range, context.colorspace = self.colour.range, self.colour.matrix
        context.color_primaries, context.color_trc = self.colour.primaries, self.colour.transfer
        if self.aspect is not None:
            context.sample_aspect_ratio = self.aspect
        context.options = dict(self.options)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {key: str(value) if isinstance(value, Fraction) else value for key, value in dataclasses.asdict(self).items()}


@contextlib.contextmanager
def opening_encoders() -> Iterator[None]:
    """Around what opens an encoder: keeps that of AV1 from printing its settings, and this process under its usual scheduling.

    Opened by root, SVT-AV1 puts the thread that opens it and all its own under real-time scheduling, and what they start inherits
    that: threads that spin while they wait, as those of OpenMP do, then keep all others of the machine from running, for good.
    """
    os.environ.setdefault("SVT_LOG", "1")
    if not hasattr(os, "sched_getscheduler"):  # on macOS and Windows
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        for thread in _threads():
            with contextlib.suppress(OSError):  # one that has ended
                if os.sched_getscheduler(thread) == os.SCHED_FIFO != policy:
                    os.sched_setscheduler(thread, policy, parameters)


def _threads() -> list[int]:
    """Of this process, as Linux numbers them; 0 is the calling one."""
    try:
        return [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:
        return [0]


def even_sides(codec: str, samples: Samples, height: int, width: int) -> tuple[int, int]:
    """The size, made one larger where the encoder needs sides that its chroma planes divide; grey gets such planes, too."""
    across, down = {"rgb": (1, 1), "grey": (2, 2)}.get(samples.kind, samples.subsampling) if CODECS[codec].even else (1, 1)
    return -(-height // min(down, 2)) * min(down, 2), -(-width // min(across, 2)) * min(across, 2)


def choose_codec(codec: str | None, target: Path, samples: Samples, height: int, width: int) -> str:
    """The codec that was asked for, or one that players of the target's format decode: H.264 up to 8 bits and 4096 pixels a side,
    beyond H.265, in WebM AV1.

    Raises:
        OptionError: the format cannot hold it.
    """
    if codec is None:
        if CONTAINERS[target.suffix.lower()] == "webm":
            return "av1"
        return "h265" if samples.bits > 8 or max(height, width) > H264_SIDE else "h264"
    if codec not in CODECS:
        raise OptionError(f"codec {codec!r} is unknown: {', '.join(CODECS)}{did_you_mean(codec, CODECS)}")
    av = require_av(target)
    with av.open(io.BytesIO(), "w", format=CONTAINERS[target.suffix.lower()]) as trial:
        try:
            video = trial.add_stream(CODECS[codec].encoder, options=dict(CODECS[codec].fixed))
            video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
            with opening_encoders():
                trial.start_encoding()  # MOV refuses some only when its header is written
        except (ValueError, av.FFmpegError):
            raise OptionError(f"{target}: this format cannot hold {codec}: use .mkv, or another codec") from None
    return codec


def encoder_options(codec: str, crf: int | None, preset: str | None) -> dict[str, str]:
    """Options of an encoder.

    Raises:
        OptionError: a value that this codec does not know.
    """
    chosen = CODECS[codec]
    options = dict(chosen.fixed)
    if chosen.crf is None and crf is not None:
        raise OptionError(f"crf is {crf}, but {codec} is lossless and has none")
    if chosen.crf is not None:
        if crf is not None and not 0 <= crf <= chosen.most:
            raise OptionError(f"crf is {crf}, but must be 0 to {chosen.most} for {codec}")
        options["crf"] = str(chosen.crf if crf is None else crf)
    if preset is not None and preset not in chosen.presets:
        known = f"{', '.join(chosen.presets)}{did_you_mean(preset, chosen.presets)}" if chosen.presets else "it has none"
        raise OptionError(f"preset {preset!r} is not one of {codec}: {known}")
    if chosen.presets:
        options["preset"] = preset or chosen.preset
    return options


def plan_encoding(
    clip: Clip, target: Path, size: tuple[int, int], codec: str, options: dict[str, str], notices: list[str]
) -> Encoding:
    """Keep depth, chroma sizes and colour codes as far as the encoder can; what it cannot stands in ``notices``.

    Smaller chroma is always written :data:`LEFT_SITED`, and said to be so: it is what players take for a video that does not tell,
    or whose codec cannot. That holds for HDR, too, whose sources often have it beside the upper row: a player that took that for
    granted would be half a pixel of the larger frames off.
    """
    av = require_av(target)
    container = CONTAINERS[target.suffix.lower()]
    encoder = CODECS[codec].encoder
    held = {format.name for format in av.Codec(encoder, "w").video_formats or []}
    samples, colour = clip.samples, clip.colour
    if samples.kind == "rgb":
        notices.append("RGB frames are written as YUV 4:4:4 in BT.709")
        samples = Samples("yuv", samples.bits, (1, 1), BT709)
        colour = dataclasses.replace(colour, range=1, matrix=BT709)
    if samples.kind == "grey":
        # decoders take grey for colour without colours, whose range has to be said
        colour = dataclasses.replace(colour, range=2 if samples.full_range else 1)
    pixel_format, samples = _fitting_format(samples, held, codec, notices)
    if clip.samples.kind == "yuv" and colour.matrix == UNSPECIFIED and assumed_matrix(*size) != samples.matrix:
        # left open, players would take another one for the larger size than for the original
        colour = dataclasses.replace(colour, matrix=samples.matrix)
        name = "BT.709" if samples.matrix == BT709 else "BT.601"
        notices.append(f"the video names no colour matrix: {name} is taken, as players do for its size, and written")
    if samples.kind == "yuv" and samples.subsampling != (1, 1):
        options = {**options, "chroma_sample_location": "left"}
    if container in ("matroska", "webm") and (clip.time_base / MILLISECONDS).denominator != 1:
        notices.append("timestamps rounded to milliseconds, the finest that Matroska and WebM hold (MP4 keeps them)")
    if container not in ("matroska", "webm") and "stereo_mode" in clip.metadata:
        notices.append(f"data of 3D video left out: {container.upper()} does not take it (.mkv would)")
    return Encoding(
        encoder, container, pixel_format, samples, colour, size[1], size[0], clip.time_base, clip.rate, clip.aspect, options
    )


def _fitting_format(samples: Samples, held: set[str], codec: str, notices: list[str]) -> tuple[str, Samples]:
    """The encoder's format that loses least: first chroma as large, then as many bits."""
    grey = samples.kind == "grey"
    wanted = (2, 2) if grey else samples.subsampling if samples.subsampling in _SUBSAMPLING_NAMES else (1, 1)
    sizes = [size for size in _SUBSAMPLING_NAMES if size[0] <= wanted[0] and size[1] <= wanted[1]]
    sizes = [*sorted(sizes, key=lambda size: size[0] * size[1], reverse=True), (2, 1), (2, 2)]
    depths = [b for b in (8, 9, 10, 12, 14, 16) if b >= samples.bits] + [b for b in (14, 12, 10, 9, 8) if b < samples.bits]
    for size in sizes:
        for bits in depths:
            kind = "grey" if grey and CODECS[codec].crf is None else "yuv"  # players of the others do not expect grey
            name = ("gray" if kind == "grey" else f"yuv{_SUBSAMPLING_NAMES[size]}p") + (f"{bits}le" if bits > 8 else "")
            if name not in held:
                continue
            if bits < samples.bits:
                notices.append(f"{samples.bits} bits rounded to {bits}, the most that {codec} encodes here")
            if not grey and size[0] * size[1] > wanted[0] * wanted[1]:
                notices.append(
                    f"chroma reduced to 4:{_SUBSAMPLING_NAMES[size][1]}:{_SUBSAMPLING_NAMES[size][2]}: {codec} holds no more"
                )
            return name, dataclasses.replace(samples, kind=kind, bits=bits, subsampling=size, centred=LEFT_SITED)
    raise VideoError(f"{codec}: this build of PyAV encodes none of the usual pixel formats with it")

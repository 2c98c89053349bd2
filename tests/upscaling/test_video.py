"""Videos: every frame at its time, colours as they were, all else copied, and nothing lost when a run is killed."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import re
import signal
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
from upscaling_helpers import tiny_network
from video_helpers import STEP, Repeater, add_boxes, box, content, make_clip, pictures, rewrite

from drct.errors import Error, MissingDependencyError, OptionError, VideoError
from drct.upscaling.video import Clip, Done, clips, upscale_clip
from drct.upscaling.video.colour import MATRICES, Samples, from_rgb, to_rgb
from drct.upscaling.video.encoding import opening_encoders
from drct.upscaling.video.segments import PartWriter

QUARTER_TURN = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)


@pytest.fixture(scope="module")
def repeater() -> Repeater:
    return Repeater(tiny_network(), device="cpu")


@pytest.fixture
def short_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "_MOST_FRAMES", 5)


# Colours


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", sorted(MATRICES))
def test_black_white_and_primaries(matrix: int, full_range: bool, bits: int) -> None:
    samples = Samples("yuv", bits, (1, 1), matrix, full_range)
    rgb = np.array([[[0, 0, 0], [65535] * 3, [32768] * 3, [65535, 0, 0], [0, 65535, 0], [0, 0, 65535]]], np.uint16)
    y, u, v = (plane[0].tolist() for plane in from_rgb(rgb, samples))
    step, peak = 1 << (bits - 8), (1 << bits) - 1
    assert (y[0], y[1]) == ((0, peak) if full_range else (16 * step, 235 * step))
    assert u[:3] == v[:3] == [128 * step] * 3
    top = peak if full_range else 240 * step
    assert v[3] == u[5] == top
    back = to_rgb([np.array([p], samples.dtype) for p in (y, u, v)], samples)
    assert np.abs(back.astype(int) - rgb).max() <= 1.5 * 65535 / (219 * step)  # half a level of luma and of chroma


def test_luma_of_bt709_red_and_bt601_green() -> None:
    red, green = (np.array([[[65535, 0, 0]]], np.uint16), np.array([[[0, 65535, 0]]], np.uint16))
    assert [int(p[0, 0]) for p in from_rgb(red, Samples("yuv", 8))] == [63, 102, 240]
    assert [int(p[0, 0]) for p in from_rgb(green, Samples("yuv", 8, matrix=6))] == [145, 54, 34]


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p10le", "yuv444p", "gray", "gbrp", "nv12", "bgr24", "p010le"])
def test_levels_as_libav_converts_them(tmp_path: Path, pixel_format: str) -> None:
    """Flat colours, where the way of enlarging chroma makes no difference."""
    from drct.upscaling.video.source import Clip

    rng = np.random.default_rng(0)
    clip = object.__new__(Clip)
    clip.path, clip._centred = tmp_path, (False, True)
    for _ in range(20):
        rgb = np.full((8, 8, 3), rng.integers(0, 256, 3), np.uint8)
        frame = av.VideoFrame.from_ndarray(rgb, "rgb24").reformat(format=pixel_format, dst_colorspace="ITU601", threads=1)
        frame.colorspace = 6 if not pixel_format.startswith(("gbr", "bgr")) else 0
        ours = to_rgb(clip._planes(frame), clip._samples(frame))
        theirs = frame.reformat(format="gbrp16le", threads=1).to_ndarray()
        assert np.abs(ours[4, 4].astype(int) - theirs[4, 4]).max() <= 800  # of 65535: libav rounds between its steps


@pytest.mark.parametrize(("height", "width"), [(16, 20), (15, 21)])
@pytest.mark.parametrize("subsampling", [(2, 2), (2, 1), (1, 1)])
def test_chroma_stays_where_it_lies(subsampling: tuple[int, int], height: int, width: int) -> None:
    """A ramp in chroma is read at the positions where it is written, so the planes come back level for level."""
    samples = Samples("yuv", 10, subsampling)
    across, down = subsampling
    shape = samples.plane_shapes(height, width)[1]
    y, x = np.mgrid[: shape[0], : shape[1]]
    ramp = (480 + 2 * across * x + 3 * down * y).astype(np.uint16)
    planes = [np.full((height, width), 500, np.uint16), ramp, ramp[::-1, ::-1].copy()]
    back = from_rgb(to_rgb(planes, samples), samples)
    inside = slice(1, -1)
    for plane, again in zip(planes, back, strict=True):
        assert np.abs(plane[inside, inside].astype(int) - again[inside, inside]).max() <= 1


def chroma_ramp(side: int) -> np.ndarray:
    """RGB whose blue difference rises to the right, the red one downwards."""
    rise = np.broadcast_to(np.linspace(15000, 50000, side).astype(np.uint16), (side, side))
    return to_rgb([np.full((side, side), 32768, np.uint16), rise, rise.T], Samples("yuv", 16))


def shift(rgb: np.ndarray, original: np.ndarray) -> list[float]:
    """How far the chroma of a ramp was moved, in pixels to the right and downwards."""
    inside = slice(8, -8)
    moved = []
    for axis, a, b in zip((1, 0), *(from_rgb(image, Samples("yuv", 16))[1:] for image in (rgb, original)), strict=True):
        a, b = a[inside, inside].astype(float), b[inside, inside].astype(float)
        moved.append((b - a).mean() / np.diff(b, axis=axis).mean())
    return moved


TEN_BITS = {"codec": "libx265", "pixel_format": "yuv420p10le", "options": {"x265-params": "log-level=none"}}
HDR = {**TEN_BITS, "samples": Samples("yuv", 10, (2, 2), 9), "codes": (1, 9, 9, 16)}
MOTION_JPEG = {"codec": "mjpeg", "codes": (2, 5, 2, 2), "time_base": Fraction(1, 25), "options": {"qmin": "1", "qmax": "1"}}


@pytest.mark.parametrize(
    ("suffix", "clip", "expected"),
    [
        ("mp4", {}, (0, 0)),
        ("mp4", {"options": {"qp": "4", "x264-params": "chromaloc=1"}}, (0.5, 0)),
        ("mp4", {"options": {"qp": "4", "x264-params": "chromaloc=2"}}, (0, -0.5)),
        ("mkv", {**HDR, "options": {"x265-params": "log-level=none:chromaloc=2"}}, (0, -0.5)),
        ("mov", HDR, (0, 0)),
        ("avi", {**MOTION_JPEG, "pixel_format": "yuvj420p"}, (0.5, 0)),
        ("mov", {**MOTION_JPEG, "pixel_format": "yuvj422p", "samples": Samples("yuv", 8, (2, 1), 5, True)}, (0.5, 0)),
        ("mpg", {"codec": "mpeg1video", "time_base": Fraction(1, 25), "options": {"qmin": "1", "qmax": "1"}}, (0.5, 0)),
        ("mkv", {"codec": "ffv1"}, (0, 0)),
        ("mkv", {"codec": "ffv1", "options": {"chroma_sample_location": "center"}}, (0.5, 0)),
    ],
)
def test_chroma_is_read_where_the_codec_or_the_file_puts_it(
    tmp_path: Path, suffix: str, clip: dict[str, Any], expected: tuple[float, float]
) -> None:
    """Written beside the left column throughout, so that what is said to lie elsewhere is seen to be moved."""
    ramp = chroma_ramp(64)
    source = make_clip(tmp_path / f"in.{suffix}", images=[ramp] * 12, **clip)
    assert shift(next(Clip(source).decode()).rgb, ramp) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        ("mp4", {"codec": "h264"}),
        ("mp4", {"codec": "h265"}),
        ("mp4", {"codec": "av1", "preset": "12", "crf": 5}),
        ("webm", {"codec": "vp9", "crf": 5}),
        ("mkv", {"codec": "ffv1"}),
    ],
)
def test_results_say_where_chroma_lies(tmp_path: Path, repeater: Repeater, suffix: str, options: dict[str, Any]) -> None:
    """So that libav, which takes another place where nothing is said, shows them as they are read here."""
    ramp = chroma_ramp(64)
    source = make_clip(tmp_path / "in.avi", images=[ramp], pixel_format="yuvj420p", **MOTION_JPEG)
    read = next(Clip(source).decode()).rgb
    upscale_clip(source, tmp_path / f"out.{suffix}", repeater, scale=2, **options)
    with av.open(str(tmp_path / f"out.{suffix}")) as container:
        frame = next(container.decode(video=0))
    larger = frame.reformat(format="gbrp16le", threads=1).to_ndarray()
    assert shift(larger, read.repeat(2, 0).repeat(2, 1)) == pytest.approx((0, 0), abs=0.1)


@dataclasses.dataclass
class Case:
    """A clip and what is different in its result."""

    suffix: str = "mp4"
    to: str = "mp4"
    notices: tuple[str, ...] = ()
    size: tuple[int, int] = (128, 96)
    pixel_format: str = "yuv420p"
    codes: tuple[int, int, int, int] | None = None
    clip: dict[str, object] = dataclasses.field(default_factory=dict)
    options: dict[str, object] = dataclasses.field(default_factory=dict)


MASTERED = {
    "x265-params": "log-level=none:hdr10=1:max-cll=1000,400:"
    "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
}
UNEVEN = [0, 100, 700, 701, 2000, 5000, 5003, 9000, 9100, 12000, 13000, 20000]
CHAPTER = {"id": 1, "start": 40, "end": 200, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}}
CASES = {
    "sound-subtitles-chapters-tags": Case(
        clip={"sound": True, "subtitles": True, "metadata": {"title": "T", "comment": "c"}, "chapters": [CHAPTER]}
    ),
    "variable-rate": Case(clip={"times": UNEVEN, "sound": True}),
    "begins-late": Case(clip={"times": [12800 + STEP * i for i in range(12)], "sound": True}),
    "turned": Case("mov", "mov", clip={"matrix": QUARTER_TURN}),
    "turned-matroska": Case("mov", "mkv", ("timestamps rounded to milliseconds",), clip={"matrix": QUARTER_TURN}),
    "ten-bits-hdr": Case(
        pixel_format="yuv420p10le", clip={**TEN_BITS, "samples": Samples("yuv", 10, (2, 2), 9), "codes": (1, 9, 9, 16)}
    ),
    "hdr-mastering-data": Case(
        notices=("data on the HDR mastering display and data on the brightness of HDR left out",),
        pixel_format="yuv420p10le",
        clip={**TEN_BITS, "samples": Samples("yuv", 10, (2, 2), 9), "codes": (1, 9, 9, 16), "options": MASTERED},
    ),
    "full-range-601-wide-pixels": Case(pixel_format="yuvj420p", clip={"codes": (2, 5, 5, 6), "aspect": Fraction(4, 3)}),
    "limited-709": Case(clip={"codes": (1, 1, 1, 1)}),
    "nothing-said": Case(clip={"codes": (0, 2, 2, 2)}),
    "odd-sides-text": Case(
        "mkv", "mkv", size=(124, 92), clip={"codec": "ffv1", "size": (23, 31), "sound": True, "subtitles": True}
    ),
    "odd-result": Case(
        "mkv", "mkv", ("93 x 69 became 94 x 70",), (94, 70), clip={"codec": "ffv1", "size": (23, 31)}, options={"scale": 3}
    ),
    "text-left-out": Case("mkv", "mp4", ("subtitles srt left out: MP4 does not take it (.mkv would)",), clip={"subtitles": True}),
    "webm": Case("webm", "webm", clip={"codec": "libvpx-vp9", "sound": True}, options={"preset": "12"}),
    "lossless-422": Case(
        "mkv",
        "mkv",
        pixel_format="yuv422p10le",
        clip={"codec": "ffv1", "pixel_format": "yuv422p10le", "samples": Samples("yuv", 10, (2, 1))},
        options={"codec": "ffv1"},
    ),
    "grey": Case(
        *("mkv", "mkv"),
        pixel_format="gray",
        clip={"codec": "ffv1", "pixel_format": "gray", "samples": Samples("grey", 8), "codes": (1, 2, 2, 2)},
        options={"codec": "ffv1"},
    ),
    "grey-as-colour": Case(
        *("mkv", "mp4"),
        codes=(0, 2, 2, 2),  # which is 1 in H.264
        clip={"codec": "ffv1", "pixel_format": "gray", "samples": Samples("grey", 8), "codes": (1, 2, 2, 2)},
    ),
    "grey-with-an-odd-result": Case(
        *("mkv", "mkv", ("93 x 69 became 94 x 70",), (94, 70)),
        clip={"codec": "ffv1", "pixel_format": "gray", "samples": Samples("grey", 8), "codes": (1, 2, 2, 2), "size": (23, 31)},
        options={"scale": 3},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_all_is_kept(tmp_path: Path, repeater: Repeater, short_parts: None, name: str) -> None:
    case = CASES[name]
    source = make_clip(tmp_path / f"in.{case.suffix}", **case.clip)
    target = tmp_path / f"out.{case.to}"
    result = upscale_clip(source, target, repeater, **case.options)
    before, after = content(source), content(target)
    assert len(result.notices) == len(case.notices)
    for notice, expected in zip(result.notices, case.notices, strict=True):
        assert notice.startswith(expected)
    assert after.size == case.size
    assert result.output_size == (case.size[::-1] if after.rotation % 180 else case.size)
    assert (result.frames, result.repeated) == (12, 0)
    exact = case.to == case.suffix or case.suffix == "mkv"
    assert after.times == before.times if exact else [round(t, 3) for t in after.times] == [round(t, 3) for t in before.times]
    assert after.codes == (case.codes or before.codes)
    assert after.pixel_format == case.pixel_format
    assert (after.rotation, after.aspect) == (before.rotation, before.aspect)
    if case.to == case.suffix:
        assert after.others.get("audio") == before.others.get("audio") or case.suffix == "mkv"
        assert [p[2] for p in after.others.get("audio", [])] == [p[2] for p in before.others.get("audio", [])]
        assert after.others.get("subtitle") == before.others.get("subtitle")
        assert (after.languages[:3], after.chapters, after.length) == (before.languages[:3], before.chapters, before.length)
    assert {k: after.metadata.get(k) for k in ("title", "comment")} == {k: before.metadata.get(k) for k in ("title", "comment")}
    for old, new in zip(before.images, after.images, strict=True):
        assert np.abs(old.mean((0, 1)) - new.mean((0, 1))).max() < 600  # of 65535
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({source.name, target.name})


def test_sound_that_begins_before_the_pictures_is_told_in_matroska(tmp_path: Path, repeater: Repeater) -> None:
    """AAC in MP4 begins 1024 samples before 0; Matroska has no such times, so that everything moves, by whole milliseconds."""
    source = make_clip(tmp_path / "in.mp4", sound=True, chapters=[CHAPTER])
    result = upscale_clip(source, tmp_path / "out.mkv", repeater)
    before, after = content(source), content(tmp_path / "out.mkv")
    late = after.times[0] - before.times[0]
    assert 0.02 < late < 0.03
    assert [round(time - late, 3) for time in after.times] == [round(time, 3) for time in before.times]
    assert [notice for notice in result.notices if notice.startswith(f"everything begins {round(1000 * late)} ms later")]
    assert [float(start) for start, _, _ in after.chapters] == pytest.approx([float(before.chapters[0][0]) + late], abs=1e-3)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_track_of_a_codec_that_nobody_knows_is_left_out(tmp_path: Path, repeater: Repeater, suffix: str) -> None:
    source = make_clip(tmp_path / f"in{suffix}", sound=True)
    data = source.read_bytes()
    unknown = data.replace(b"mp4a", b"apac").replace(b"esds", b"dapa") if suffix == ".mp4" else data.replace(b"A_AAC", b"A_XYZ")
    assert unknown != data
    source.write_bytes(unknown)
    result = upscale_clip(source, tmp_path / "out.mp4", repeater)
    assert any(notice.startswith("sound track of an unknown kind left out") for notice in result.notices)
    assert len(content(tmp_path / "out.mp4").times) == 12


@pytest.mark.parametrize("name", ["12:30:05.mp4", "a%03d.mov", "file:x.mkv"])
def test_names_that_libav_would_take_for_addresses_and_patterns(
    tmp_path: Path, repeater: Repeater, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=3, sound=True)
    monkeypatch.chdir(tmp_path)
    upscale_clip(source, name, repeater)
    source.rename("plain.mp4")
    Path(name).rename("result")
    assert len(content(Path("result")).times) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.mp4", "result"]


def test_the_shared_clip_frame_by_frame(tmp_path: Path, shared: Path, repeater: Repeater) -> None:
    source = shared / "data" / "odd" / "clip.mp4"
    result = upscale_clip(source, tmp_path / "out.mp4", repeater, width=80, height=60, preset="ultrafast")
    times, packets = [], []
    for path in (source, tmp_path / "out.mp4"):
        with av.open(str(path)) as container:
            times.append([(f.pts, f.duration, f.time_base) for f in container.decode(video=0)])
        with av.open(str(path)) as container:
            packets.append([(p.pts, p.dts, p.duration, bytes(p)) for p in container.demux(audio=0) if p.size])
    assert times[0] == times[1]
    assert packets[0] == packets[1]
    assert (len(times[1]), len(packets[1])) == (result.frames, 354) == (181, 354)
    assert result.notices == ()


@pytest.mark.parametrize("suffix", ["mov", "mkv"])
def test_strip_leaves_no_tags_of_place_and_author(tmp_path: Path, repeater: Repeater, suffix: str) -> None:
    tags = {
        "artist": "A",
        "comment": "C",
        "creation_time": "2024-05-06T07:08:09Z",
        "location": "+48.1+011.5/",
        "com.apple.quicktime.location.ISO6709": "+48.1+011.5/",
    }
    clip = {"matrix": QUARTER_TURN} if suffix == "mov" else {}
    source = make_clip(tmp_path / f"in.{suffix}", frames=3, sound=True, subtitles=True, metadata=tags, chapters=[CHAPTER], **clip)
    for strip in (False, True):
        target = tmp_path / f"{strip}.{suffix}"
        upscale_clip(source, target, repeater, strip=strip)
        assert (b"+48.1" in target.read_bytes()) != strip
    before, after = content(source), content(target)
    assert set(after.metadata) <= {"major_brand", "minor_version", "compatible_brands", "encoder"}
    assert (after.rotation, after.languages, after.chapters) == (before.rotation, before.languages, before.chapters)
    assert after.codes == before.codes
    with av.open(str(target)) as container:
        for stream in container.streams:
            assert set(stream.metadata) <= {"language", "handler_name", "vendor_id", "DURATION", "encoder"}


def test_sides_are_those_of_the_picture_as_it_is_shown(tmp_path: Path, repeater: Repeater, model: Path) -> None:
    from drct.upscaling import UpscaleOptions, upscale

    source = make_clip(tmp_path / "in.mov", frames=2, size=(24, 32), matrix=QUARTER_TURN)
    for sides, size in (
        ({"width": 40, "height": 60}, (40, 60)),
        ({"width": 48}, (48, 64)),
        ({"height": 48}, (36, 48)),
        ({"scale": 2}, (48, 64)),
    ):
        result = upscale_clip(source, tmp_path / "out.mov", repeater, **sides)
        assert (result.input_size, result.output_size) == ((24, 32), size)
        assert content(tmp_path / "out.mov").size == size[::-1]
    # the manifest knows the same sizes
    options = UpscaleOptions(inputs=(source,), output=tmp_path / "out", model=model, device="cpu", width=48)
    for status in ("done", "skipped"):
        (result,) = upscale(options).results
        assert (result.status, result.output_size) == (status, (48, 64))
    # and stripping makes another result
    assert upscale(options.model_copy(update={"strip": True})).results[0].status == "done"


@pytest.mark.parametrize("suffix", ["mp4", "m4v", "mov"])
def test_h265_as_players_of_apple_take_it(tmp_path: Path, repeater: Repeater, short_parts: None, suffix: str) -> None:
    """The tag hvc1, which promises that all headers lie in front; joined from three parts."""
    source = make_clip(tmp_path / "in.mov", **TEN_BITS, samples=Samples("yuv", 10, (2, 2)))
    target = tmp_path / f"out.{suffix}"
    upscale_clip(source, target, repeater)
    with av.open(str(target)) as container:
        context = container.streams.video[0].codec_context
        assert context.codec_tag == "hvc1"
        header = bytes(context.extradata)
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    at, arrays = 23, []
    for _ in range(header[22]):
        arrays.append((header[at] & 63, header[at] >> 7))
        count, at = int.from_bytes(header[at + 1 : at + 3], "big"), at + 3
        for _ in range(count):
            at += 2 + int.from_bytes(header[at : at + 2], "big")
    headers = {32, 33, 34}  # video, sequence and picture parameter sets
    assert {(kind, 1) for kind in headers} <= set(arrays)
    for packet in packets:
        at = 0
        while at < len(packet):
            assert packet[at + 4] >> 1 & 63 not in headers
            at += 4 + int.from_bytes(packet[at : at + 4], "big")
    upscale_clip(source, tmp_path / "out.mkv", repeater)
    after, other = content(target), content(tmp_path / "out.mkv")
    assert after.times == content(source).times
    for left, right in zip(after.images, other.images, strict=True):
        assert np.array_equal(left, right)


@pytest.mark.parametrize("suffix", ["webm", "mkv", "mp4"])
def test_transparency_beside_the_frames_is_told(tmp_path: Path, repeater: Repeater, suffix: str) -> None:
    transparent = {"codec": "libvpx-vp9", "pixel_format": "yuva420p", "options": {"auto-alt-ref": "0"}}
    source = make_clip(tmp_path / "in.webm", frames=3, **transparent)
    result = upscale_clip(source, tmp_path / f"out.{suffix}", repeater, codec="vp9")
    assert result.notices == ("transparency left out: video is upscaled without it",)
    with av.open(str(tmp_path / f"out.{suffix}")) as container:
        assert "alpha_mode" not in {key.lower() for key in container.streams.video[0].metadata}


def test_a_tag_of_transparency_in_capital_letters(tmp_path: Path) -> None:
    for value, count in (("1", 1), ("0", 0)):
        source = make_clip(tmp_path / f"{value}.mkv", frames=1, tags={"ALPHA_MODE": value})
        assert len(Clip(source).notices) == count


@pytest.mark.parametrize(("views", "expected"), [(0, "data of 360° video"), (1, "data of 360° video and data of 3D video")])
def test_data_of_360_degrees_and_3d_left_out_is_told(tmp_path: Path, repeater: Repeater, views: int, expected: str) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=3)
    projection = box(b"proj", box(b"prhd", bytes(16)) + box(b"equi", bytes(20)))
    add_boxes(source, box(b"st3d", bytes(4) + bytes([views])) + box(b"sv3d", box(b"svhd", bytes(5)) + projection))
    result = upscale_clip(source, tmp_path / "out.mp4", repeater)
    assert result.notices == (f"{expected} left out: encoders here do not take it over",)


def test_3d_of_matroska_stays_there(tmp_path: Path, repeater: Repeater) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=3, tags={"stereo_mode": "bottom_top"})
    for strip in (False, True):
        assert upscale_clip(source, tmp_path / "out.mkv", repeater, strip=strip).notices == ()
        with av.open(str(tmp_path / "out.mkv")) as container:
            assert container.streams.video[0].metadata["stereo_mode"] == "bottom_top"
            assert "STEREO3D" in {data.type.name for data in next(container.decode(video=0)).side_data}
    notices = upscale_clip(source, tmp_path / "out.mp4", repeater).notices
    assert notices == ("data of 3D video left out: MP4 does not take it (.mkv would)",)


FONT = ("font.ttf", "application/x-truetype-font", b"letters" * 20)


def streams_of(path: Path) -> list[tuple[str, str, bytes]]:
    """Kind, name of the codec and what it holds of the attachments and covers of a file."""
    found = []
    with av.open(str(path)) as container:
        for stream in container.streams:
            if stream.type == "attachment":
                found.append(("attachment", stream.name, bytes(stream.data)))
            elif stream.disposition & av.stream.Disposition.attached_pic:
                found.append(("cover", stream.codec_context.name, b""))
        for packet in container.demux(container.streams.video):
            kind = next((i for i, (kind, _, data) in enumerate(found) if kind == "cover" and not data), None)
            if packet.size and packet.stream.disposition & av.stream.Disposition.attached_pic and kind is not None:
                found[kind] = (*found[kind][:2], bytes(packet))
    return found


@pytest.mark.parametrize(("suffix", "name"), [("mkv", ""), ("mp4", "MP4"), ("mov", "MOV"), ("webm", "WebM")])
def test_attachments_are_those_of_matroska(tmp_path: Path, repeater: Repeater, suffix: str, name: str) -> None:
    source = make_clip(tmp_path / "in.mkv", frames=2, attachment=FONT)
    target = tmp_path / f"out.{suffix}"
    result = upscale_clip(source, target, repeater, codec="vp9" if suffix == "webm" else None)
    assert result.notices == ((f"attachment font.ttf left out: {name} does not take it (.mkv would)",) if name else ())
    assert streams_of(target) == ([] if name else [("attachment", FONT[0], FONT[2])])


def test_covers_stay_where_the_format_holds_them(tmp_path: Path, repeater: Repeater) -> None:
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 16, 16, "yuvj420p", Fraction(1, 25)
    frame = av.VideoFrame(16, 16, "yuvj420p")
    frame.pts = 0
    jpeg = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
    sources = [make_clip(tmp_path / "in.mkv", frames=5, attachment=("cover.jpg", "image/jpeg", jpeg))]
    for suffix, options in (("mp4", {}), ("mkv", {"start": 0.04}), ("m4v", {"start": 0.04})):
        result = upscale_clip(sources[-1], tmp_path / f"out.{suffix}", repeater, **options)
        assert [notice for notice in result.notices if "left out" in notice] == []
        sources.append(tmp_path / f"out.{suffix}")
        assert streams_of(sources[-1]) == [("cover", "mjpeg", jpeg)]
    for suffix, name in (("mov", "MOV"), ("webm", "WebM")):
        result = upscale_clip(sources[0], tmp_path / f"out.{suffix}", repeater, codec="vp9" if suffix == "webm" else None)
        assert result.notices == (f"cover picture mjpeg left out: {name} does not take it (.mkv would)",)
        assert streams_of(tmp_path / f"out.{suffix}") == []


def test_sound_that_a_list_of_edits_cuts_away_stays_so_in_matroska(tmp_path: Path, repeater: Repeater) -> None:
    def earlier(number: int, packet: Any) -> None:
        moved = round(Fraction(1, 2) / packet.time_base)
        packet.pts, packet.dts = packet.pts - moved, packet.dts - moved

    source = rewrite(make_clip(tmp_path / "whole.mp4", frames=25, sound=True), tmp_path / "in.mp4", earlier)
    result = upscale_clip(source, tmp_path / "out.mkv", repeater)
    with av.open(str(source)) as container:
        heard = [float(frame.time) for frame in container.decode(audio=0)]
    with av.open(str(tmp_path / "out.mkv")) as container:
        frames = [float(frame.time) for frame in container.decode(audio=0)]
    assert len(frames) == len(heard) < 30
    assert content(tmp_path / "out.mkv").times[0] < 0.03
    assert not [notice for notice in result.notices if notice.startswith("everything begins 5")]


def test_timecodes(tmp_path: Path, repeater: Repeater) -> None:
    source = make_clip(tmp_path / "in.mov", frames=12, tags={"timecode": "01:00:00:00"})
    for options, notices, expected in (
        ({}, (), ["01:00:00:00", "01:00:00:00"]),
        ({"duration": 0.2}, (), ["01:00:00:00", "01:00:00:00"]),
        ({"start": 0.2}, ("timecode left out: it is that of the first frame of the whole clip",), [None]),
    ):
        result = upscale_clip(source, tmp_path / "out.mov", repeater, **options)
        assert result.notices == notices
        with av.open(str(tmp_path / "out.mov")) as container:
            assert [stream.metadata.get("timecode") for stream in container.streams] == expected


def test_statistics_of_packets_that_changed_are_left_out(tmp_path: Path, repeater: Repeater) -> None:
    statistics = {"BPS": "123", "NUMBER_OF_FRAMES-eng": "12", "NUMBER_OF_BYTES": "777", "_STATISTICS_TAGS": "BPS"}
    source = make_clip(tmp_path / "in.mkv", tags={**statistics, "DIRECTOR": "D"})
    upscale_clip(source, tmp_path / "out.mkv", repeater)
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert dict(container.streams.video[0].metadata) == {"DIRECTOR": "D", "DURATION": "00:00:00.480000000"}


@pytest.mark.skipif(os.name == "nt", reason="needs permissions of files")
def test_permissions_of_the_result_that_is_replaced(tmp_path: Path, repeater: Repeater) -> None:
    source, target = make_clip(tmp_path / "in.mp4", frames=2), tmp_path / "out.mp4"
    upscale_clip(source, target, repeater)
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(source.stat().st_mode)
    for mode in (0o600, 0o640):
        target.chmod(mode)
        before = target.stat().st_ino
        upscale_clip(source, target, repeater)
        assert (target.stat().st_ino != before, stat.S_IMODE(target.stat().st_mode)) == (True, mode)


# Parts of a clip


def test_start_and_duration(tmp_path: Path, repeater: Repeater, short_parts: None) -> None:
    source = make_clip(
        tmp_path / "in.mp4",
        frames=30,
        sound=True,
        chapters=[CHAPTER, {**CHAPTER, "id": 2, "start": 400, "end": 900, "metadata": {"title": "two"}}],
    )
    before = content(source)
    upscale_clip(source, tmp_path / "out.mp4", repeater, start=0.3, duration=0.5)
    after = content(tmp_path / "out.mp4")
    wanted = [i for i, t in enumerate(before.times) if Fraction(3, 10) <= t < Fraction(8, 10)]
    first = before.times[wanted[0]]
    assert after.times == [before.times[i] - first for i in wanted]
    assert np.abs(after.images[0].mean((0, 1)) - before.images[wanted[0]].mean((0, 1))).max() < 600
    sounds = [(pts - first, data) for pts, _, data in before.others["audio"] if first <= pts < Fraction(8, 10)]
    assert [data for _, _, data in after.others["audio"]] == [data for _, data in sounds]
    assert all(abs(new[0] - old[0]) <= Fraction(1, 48000) for new, old in zip(after.others["audio"], sounds, strict=True))
    assert after.chapters == [(Fraction(0), Fraction(2, 25), "one"), (Fraction(2, 25), Fraction(12, 25), "two")]
    with pytest.raises(VideoError, match=r"no frames in the part that was asked for: it is 1\.20 s long"):
        upscale_clip(source, tmp_path / "none.mp4", repeater, start=5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_a_late_start_begins_to_read_there(tmp_path: Path, repeater: Repeater, monkeypatch: pytest.MonkeyPatch) -> None:
    from drct.upscaling.video import source as source_module

    monkeypatch.setattr(source_module, "RUN_UP", 1)
    source = make_clip(tmp_path / "in.mp4", frames=100, options={"qp": "4", "g": "10"})
    decoded = 0
    decode = source_module.Clip._decoded

    def counted(self, container):
        nonlocal decoded
        for frame in decode(self, container):
            decoded += 1
            yield frame

    monkeypatch.setattr(source_module.Clip, "_decoded", counted)
    upscale_clip(source, tmp_path / "out.mp4", repeater, start=3.6)
    after = content(tmp_path / "out.mp4")
    assert (len(after.times), after.times[0]) == (10, 0)
    assert decoded < 60
    expected = content(source).images[90]
    assert np.abs(after.images[0].mean((0, 1)) - expected.mean((0, 1))).max() < 600


def test_a_part_begins_with_the_frame_that_is_on_screen(tmp_path: Path, repeater: Repeater) -> None:
    """Of slides that stand for seconds; the sound goes with them."""
    times = [0, 4 * 12800, 8 * 12800, 8 * 12800 + STEP, 12 * 12800]
    source = make_clip(tmp_path / "in.mp4", times=times, images=pictures(5, 24, 32), sound=True)
    before = content(source)
    for options, wanted, expected in (
        ({"start": 5, "duration": 6}, [1, 2, 3], [0, 3, Fraction(76, 25)]),
        ({"start": 5, "duration": 2}, [1], [0]),
        ({"start": 12.02}, [4], [0]),
        ({"start": 4, "duration": 5}, [1, 2, 3], [0, 4, Fraction(101, 25)]),
    ):
        upscale_clip(source, tmp_path / "out.mp4", repeater, **options)
        after = content(tmp_path / "out.mp4")
        assert after.times == expected
        for image, number in zip(after.images, wanted, strict=True):
            assert np.abs(image.mean((0, 1)) - before.images[number].mean((0, 1))).max() < 600
        begin, end = options["start"], options["start"] + options.get("duration", 100)
        sounds = [data for pts, _, data in before.others["audio"] if begin <= pts < end]
        assert [data for _, _, data in after.others.get("audio", [])] == sounds
    assert float(after.length) == pytest.approx(5, abs=0.03)  # the last packet of sound begins in it


def test_a_part_begins_with_the_subtitle_that_is_on_screen(tmp_path: Path, repeater: Repeater) -> None:
    source = make_clip(tmp_path / "in.mkv", subtitles=True)  # from 0.1 to 0.3 s
    for start, expected in ((0.2, [(0, Fraction(1, 10))]), (0.32, [])):
        upscale_clip(source, tmp_path / "out.mkv", repeater, start=start)
        after = content(tmp_path / "out.mkv")
        assert [(pts, duration) for pts, duration, _ in after.others.get("subtitle", [])] == expected


RECORDED = {"time_base": Fraction(1, 90000)}


def recording(path: Path, begin: int, count: int, **clip: Any) -> Path:
    """A transport stream without frames that refer to later ones; times in frames."""
    options = {"qp": "4", "bf": "0", "g": "12"}
    return make_clip(path, times=[3600 * i for i in range(begin, begin + count)], frames=count, options=options, **RECORDED, **clip)


def test_a_clock_that_jumps_back_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    repeater = Repeater(tiny_network(), device="cpu")
    source = tmp_path / "in.ts"
    source.write_bytes(recording(tmp_path / "one.ts", 0, 25, sound=True).read_bytes() * 2)
    with pytest.raises(VideoError, match=r"in\.ts: its clock jumps back after (.*) s, as where .*: --duration takes") as caught:
        upscale_clip(source, tmp_path / "out.mp4", repeater)
    assert repeater.computed == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.ts", "one.ts"]
    seconds = float(str(caught.value).split(" s,")[0].split()[-1])
    assert 0.8 < seconds < 1
    upscale_clip(source, tmp_path / "out.mp4", repeater, duration=seconds)
    upscale_clip(tmp_path / "one.ts", tmp_path / "one.mp4", repeater, duration=seconds)
    assert (tmp_path / "out.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()


def test_sound_whose_times_fall_a_little_is_written(tmp_path: Path, repeater: Repeater) -> None:
    """As where recordings were joined that overlap by 50 ms."""
    source = tmp_path / "in.ts"
    whole = make_clip(tmp_path / "in.mp4", frames=25, sound=True)
    parts = []
    for number in range(2):
        shifted = tmp_path / f"{number}.ts"

        def moved(_: int, packet: Any, number: int = number) -> None:
            late = round((1 + number * Fraction(19, 20)) / packet.time_base)
            packet.pts, packet.dts = packet.pts + late, packet.dts + late

        parts.append(rewrite(whole, shifted, moved).read_bytes())
    source.write_bytes(b"".join(parts))
    upscale_clip(source, tmp_path / "out.mp4", repeater)
    assert len(content(tmp_path / "out.mp4").others["audio"]) == len(content(source).others["audio"])


def test_sizes_that_change_can_be_cut_where_the_message_says(tmp_path: Path, repeater: Repeater) -> None:
    one = recording(tmp_path / "one.ts", 0, 20, size=(24, 32)).read_bytes()
    two = recording(tmp_path / "two.ts", 20, 20, size=(16, 24)).read_bytes()
    source = tmp_path / "in.ts"
    source.write_bytes(one + two)
    with pytest.raises(VideoError, match=r"the frames change from 32 x 24 to 24 x 16 at 0\.80 s: cut it there with") as caught:
        upscale_clip(source, tmp_path / "out.mp4", repeater)
    assert str(caught.value).startswith(str(source))
    for options, size in (({"duration": 0.8}, (128, 96)), ({"start": 0.8}, (96, 64))):
        result = upscale_clip(source, tmp_path / "out.mp4", repeater, **options)
        assert (result.frames, result.output_size, result.input_size) == (20, size, (size[0] // 4, size[1] // 4))


def test_where_frames_begin_to_be_interlaced_is_told(tmp_path: Path, repeater: Repeater) -> None:
    source = tmp_path / "in.ts"
    interlaced(tmp_path / "two.ts", times=[3600 * i for i in range(20, 32)], **RECORDED)
    source.write_bytes(recording(tmp_path / "one.ts", 0, 20, size=(64, 64)).read_bytes() + (tmp_path / "two.ts").read_bytes())
    with pytest.raises(VideoError, match=r"its frames are interlaced at (.*) s, .*: --duration takes what is before") as caught:
        upscale_clip(source, tmp_path / "out.mp4", repeater)
    seconds = float(str(caught.value).split(" s,")[0].split()[-1])
    assert 0.7 < seconds <= 0.8
    assert upscale_clip(source, tmp_path / "out.mp4", repeater, duration=seconds).frames >= 19


# Interruptions


class Stop(Exception):
    """Stands for whatever ends a run."""


def stopping_after(frames: int) -> Callable[..., None]:
    seen = itertools.count(1)

    def progress(*_: object) -> None:
        if next(seen) == frames:
            raise Stop

    return progress


def test_goes_on_after_any_frame(tmp_path: Path, repeater: Repeater, short_parts: None) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=17, times=[i * i * 7 + i * 100 for i in range(17)], sound=True)
    upscale_clip(source, tmp_path / "whole.mp4", repeater)
    whole = (tmp_path / "whole.mp4").read_bytes()
    for frames in (1, 5, 6, 10, 16, 17):
        target = tmp_path / f"after{frames}.mp4"
        with pytest.raises(Stop):
            upscale_clip(source, target, repeater, progress=stopping_after(frames))
        assert not target.exists()
        before = repeater.computed
        result = upscale_clip(source, target, repeater)
        assert repeater.computed - before == 17 - result.resumed
        assert result.resumed in (frames // 5 * 5, (frames - 1) // 5 * 5)
        assert target.read_bytes() == whole
    assert len(list(tmp_path.iterdir())) == 8


@pytest.mark.parametrize(("settings", "options"), [({}, {"crf": 30}), ({}, {"duration": 0.12}), ({"ensemble": True}, {})])
def test_other_options_begin_anew(
    tmp_path: Path, repeater: Repeater, short_parts: None, settings: dict[str, Any], options: dict[str, Any]
) -> None:
    source, target = make_clip(tmp_path / "in.mp4"), tmp_path / "out.mp4"
    with pytest.raises(Stop):
        upscale_clip(source, target, repeater, progress=stopping_after(8))
    other = Repeater(tiny_network(), device="cpu", **settings)
    result = upscale_clip(source, target, other, **options)
    assert result.resumed == 0
    assert result.notices == ("the options or the video changed: the frames of the interrupted run are not used",)
    upscale_clip(source, tmp_path / "fresh.mp4", other, **options)
    assert target.read_bytes() == (tmp_path / "fresh.mp4").read_bytes()


@pytest.mark.parametrize(
    ("before", "after", "resumed"),
    [(None, 0.5, 10), (0.5, None, 10), (0.28, 0.28, 7), (0.28, 0.6, 5), (0.6, 0.28, 5), (0.4, None, 10)],
)
def test_another_duration_uses_what_lies_before(
    tmp_path: Path, repeater: Repeater, short_parts: None, before: float | None, after: float | None, resumed: int
) -> None:
    """Where all parts were finished, of which the last one is shorter, but not put together."""
    source, target = make_clip(tmp_path / "in.mp4", frames=17), tmp_path / "out.mp4"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clips, "join", stopping_after(1))
        with pytest.raises(Stop):
            upscale_clip(source, target, repeater, duration=before)
    result = upscale_clip(source, target, repeater, duration=after)
    assert (result.resumed, result.notices) == (resumed, (f"{resumed} frames were there from an interrupted run",))
    upscale_clip(source, tmp_path / "fresh.mp4", repeater, duration=after)
    assert target.read_bytes() == (tmp_path / "fresh.mp4").read_bytes()


def test_two_processes_do_not_share_a_clip(tmp_path: Path, repeater: Repeater) -> None:
    source, target = make_clip(tmp_path / "in.mp4"), tmp_path / "out.mp4"

    def progress(done: Done) -> None:
        with pytest.raises(VideoError, match=r"out\.mp4: another process is working on it"):
            upscale_clip(source, target, repeater)

    upscale_clip(source, target, repeater, progress=progress)
    assert content(target).size == (128, 96)


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[3])
from upscaling_helpers import tiny_network
from video_helpers import Repeater
from drct.upscaling.video import clips
clips._MOST_FRAMES = 5
clips.upscale_clip(sys.argv[1], sys.argv[2], Repeater(tiny_network(), device="cpu"), progress=lambda done: time.sleep(0.05))
"""


def test_killed(tmp_path: Path, repeater: Repeater, short_parts: None) -> None:
    source, target = make_clip(tmp_path / "in.mp4", frames=40, sound=True), tmp_path / "out.mp4"
    upscale_clip(source, tmp_path / "whole.mp4", repeater)
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(source), str(target), str(Path(__file__).parent)])
    try:
        limit = time.monotonic() + 120
        while not (tmp_path / ".out.mp4.work" / "000001.json").exists():
            assert process.poll() is None
            assert time.monotonic() < limit
            time.sleep(0.01)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not target.exists()
    result = upscale_clip(source, target, repeater)
    assert 10 <= result.resumed < 40
    assert target.read_bytes() == (tmp_path / "whole.mp4").read_bytes()


# What is saved, shown, refused


def test_equal_frames_are_computed_once(tmp_path: Path, short_parts: None) -> None:
    repeater = Repeater(tiny_network(), device="cpu")
    one, two = pictures(2, 24, 32)
    source = make_clip(tmp_path / "in.mkv", images=[one, one, one, two, two, one, one, one, one, one, one], codec="ffv1")
    result = upscale_clip(source, tmp_path / "out.mkv", repeater)
    # of the second part, which begins with the sixth frame, and the third the first frame is computed anew
    assert (result.frames, result.repeated, repeater.computed) == (11, 7, 4)
    after = content(tmp_path / "out.mkv")
    assert np.abs(after.images[0].astype(int) - after.images[2]).max() < 2000
    assert np.abs(after.images[2].astype(int) - after.images[3]).max() > 4000


def test_progress(tmp_path: Path, repeater: Repeater) -> None:
    seen: list[Done] = []
    upscale_clip(make_clip(tmp_path / "in.mp4"), tmp_path / "out.mp4", repeater, progress=seen.append)
    assert [(done.frames, done.total) for done in seen] == [(i, 12) for i in range(1, 13)]
    assert all(done.rate > 0 for done in seen)


def test_frames_by_a_network(tmp_path: Path, network) -> None:
    """The same values as the frames upscaled one by one, and nearly so in the file."""
    from drct.upscaling import Upscaler
    from drct.upscaling.video.source import Clip

    upscaler = Upscaler(network, device="cpu")
    source = make_clip(tmp_path / "in.mkv", frames=3, codec="ffv1", pixel_format="yuv444p", samples=Samples("yuv", 8))
    upscale_clip(source, tmp_path / "out.mkv", upscaler, codec="ffv1")
    for small, large in zip(Clip(source).decode(), Clip(tmp_path / "out.mkv").decode(), strict=True):
        expected = upscaler(small.rgb)
        assert np.abs(expected.astype(int) - large.rgb).max() <= 2.1 * 65535 / 219


def test_several_frames_at_once(tmp_path: Path, network, monkeypatch: pytest.MonkeyPatch, short_parts: None) -> None:
    """Where a device takes three frames at a time, the values are those of one at a time, repeated frames and the rest included."""
    from drct.upscaling import Upscaler

    upscaler = Upscaler(network, device="cpu")
    a, b, c = pictures(3, 12, 16)
    source = make_clip(tmp_path / "in.mkv", images=[a, a, b, c, c, a, b, b], codec="ffv1")
    upscale_clip(source, tmp_path / "one.mkv", upscaler, codec="ffv1")
    sizes = []
    enlarge = clips.enlarge
    monkeypatch.setattr(clips, "frames_at_once", lambda *sizes: 3)
    monkeypatch.setattr(clips, "enlarge", lambda u, images, *size: sizes.append(len(images)) or enlarge(u, images, *size))
    upscale_clip(source, tmp_path / "three.mkv", upscaler, codec="ffv1")
    assert sizes == [2, 1, 2]
    one, three = content(tmp_path / "one.mkv"), content(tmp_path / "three.mkv")
    assert one.times == three.times
    for left, right in zip(one.images, three.images, strict=True):
        assert np.abs(left.astype(int) - right).max() <= 2 * 65535 / 219


def test_how_many_frames_fill_a_gpu(network) -> None:
    from drct.upscaling import Upscaler
    from drct.upscaling.video.batches import frames_at_once

    upscaler = Upscaler(network, device="cpu")
    assert frames_at_once(upscaler, (64, 64), (256, 256)) == 1
    upscaler.program(4)
    upscaler.device = SimpleNamespace(type="cuda")
    upscaler.tile_limit = lambda scale: None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("drct.upscaling.memory.memory_class", lambda device: 1 << 36)
        assert frames_at_once(upscaler, (64, 64), (256, 256)) == 8
        assert frames_at_once(upscaler, (300, 300), (1200, 1200)) == 2
        assert frames_at_once(upscaler, (500, 500), (2000, 2000)) == 1
        assert frames_at_once(upscaler, (64, 64), (250, 250)) == 1
        upscaler.tile_limit = lambda scale: 32
        assert frames_at_once(upscaler, (64, 64), (256, 256)) == 1


def test_what_frames_carry_that_is_newer_than_pyav() -> None:
    from drct.upscaling.video.source import _display_matrix, _side_data

    class Frame:
        rotation = -90

        @property
        def side_data(self):
            raise ValueError("99 is not a valid Type")

    assert _side_data(Frame()) == {}
    assert _display_matrix(Frame()) == QUARTER_TURN


def no_video(path: Path) -> None:
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
        frame.sample_rate = 48000
        container.mux(audio.encode(frame))
        container.mux(audio.encode(None))


def interlaced(path: Path, **clip: Any) -> None:
    options = {"x264-params": "tff=1:qp=4"}
    flags = av.codec.context.Flags.interlaced_dct | av.codec.context.Flags.interlaced_me
    make_clip(path, size=(64, 64), options=options, flags=flags, **clip)


def cut_off(path: Path) -> None:
    make_clip(path, size=(96, 128))
    data = path.read_bytes()
    path.write_bytes(data[: data.index(b"mdat") + 1000] if data.index(b"moov") > data.index(b"mdat") else data[:500])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_text("no video at all\n" * 100), "cannot be opened as video: it is cut off, damaged or no video"),
        (lambda path: path.write_bytes(b""), "cannot be opened as video"),
        (lambda path: None, "cannot be opened: No such file or directory"),
        (cut_off, "cannot be opened as video: it is cut off, damaged or no video"),
        (no_video, "holds no video"),
        (interlaced, "its frames are interlaced"),
    ],
    ids=["text", "empty", "missing", "cut-off", "sound-only", "interlaced"],
)
def test_files_that_are_refused(tmp_path: Path, repeater: Repeater, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / "in.mp4")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(VideoError, match=message) as caught:
        upscale_clip(tmp_path / "in.mp4", tmp_path / "out.mp4", repeater)
    assert str(caught.value).startswith(str(tmp_path / "in.mp4"))
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


def test_what_lies_before_a_damaged_frame_can_be_taken(tmp_path: Path, short_parts: None) -> None:
    """By the very time that the message names, and with the frames that were finished."""
    repeater = Repeater(tiny_network(), device="cpu")
    times = [round(1000 * i / 30) for i in range(30)]
    whole = make_clip(tmp_path / "whole.mkv", images=pictures(30, 12, 16), codec="ffv1", times=times, time_base=Fraction(1, 1000))
    source = rewrite(whole, tmp_path / "in.mkv", lambda number, packet: bytes(packet)[:3] if number == 18 else None)
    with pytest.raises(VideoError, match=r"damaged or cut off after 0\.56 s .*: --duration takes what is before"):
        upscale_clip(source, tmp_path / "out.mkv", repeater)
    result = upscale_clip(source, tmp_path / "out.mkv", repeater, duration=0.56)
    assert (result.frames, result.resumed) == (17, 15)


@pytest.mark.parametrize("suffix", ["mkv", "webm"])
def test_files_that_were_cut_off_are_told(tmp_path: Path, repeater: Repeater, suffix: str) -> None:
    codec = {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}} if suffix == "webm" else {}
    source = make_clip(tmp_path / f"in.{suffix}", times=[STEP * 5 * i for i in range(20)], frames=20, **codec)
    assert upscale_clip(source, tmp_path / "out.mkv", repeater).notices == ()
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 6 // 10])
    (notice,) = upscale_clip(source, tmp_path / "out.mkv", repeater).notices
    assert re.fullmatch(r"the file announces 3\.84 s, but its frames end at [12]\.\d\d s: it may be cut off", notice)
    assert upscale_clip(source, tmp_path / "out.mkv", repeater, duration=1).notices == ()


def test_frames_that_are_missing_are_told(tmp_path: Path, repeater: Repeater) -> None:
    """A file whose second half was overwritten: what can be decoded is there, and the rest is spoken of or refused."""
    source = make_clip(tmp_path / "in.mp4", frames=60, size=(96, 128), options={"qp": "20", "g": "10"})
    data = bytearray(source.read_bytes())
    begin = data.index(b"mdat")
    end = data.index(b"moov") if data.index(b"moov") > begin else len(data)
    middle = (begin + end) // 2
    data[middle:end] = bytes(end - middle)
    source.write_bytes(data)
    error = ""
    notices: tuple[str, ...] = ()
    try:
        notices = upscale_clip(source, tmp_path / "out.mp4", repeater, width=64, height=48).notices
    except VideoError as caught:
        error = str(caught)
    assert "damaged" in " ".join([error, *notices]) or "announces 60 frames" in " ".join(notices)
    assert bool(error) != (tmp_path / "out.mp4").exists()


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("out.avi", {}, r"out\.avi: videos are written to \.mp4"),
        ("out.webm", {"codec": "h264"}, "this format cannot hold h264"),
        ("out.mov", {"codec": "av1"}, "this format cannot hold av1: use .mkv, or another codec"),
        ("out.mov", {"codec": "vp9"}, "this format cannot hold vp9"),
        ("out.mp4", {"codec": "ffv"}, r"codec 'ffv' is unknown: .* \(did you mean 'ffv1'\?\)"),
        ("out.mp4", {"crf": 52}, "crf is 52, but must be 0 to 51 for h264"),
        ("out.mkv", {"codec": "ffv1", "crf": 5}, "lossless"),
        ("out.mp4", {"preset": "fat"}, r"preset 'fat' is not one of h264: .* \(did you mean 'fast'\?\)"),
        ("out.mp4", {"scale": 17}, "scale is 17"),
        ("out.mp4", {"start": 1e300}, "start is 1e[+]300, but must be 0 to 10000000 seconds"),
        ("out.mp4", {"start": float("inf")}, "start is inf, but must be"),
        ("out.mp4", {"duration": 0}, "duration is 0, but must be above 0"),
        ("in.mp4", {}, "would replace the input"),
    ],
)
def test_options_that_do_not_go(tmp_path: Path, repeater: Repeater, target: str, options: dict, message: str) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=2)
    with pytest.raises(OptionError, match=message):
        upscale_clip(source, tmp_path / target, repeater, **options)
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize(("size", "larger", "name"), [((16, 640), 1280, "BT.601"), ((16, 1280), 640, "BT.709")])
def test_a_matrix_that_was_left_open_is_named(
    tmp_path: Path, repeater: Repeater, size: tuple[int, int], larger: int, name: str
) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=1, size=size, codes=(1, 2, 2, 2))
    notices = upscale_clip(source, tmp_path / "out.mp4", repeater, width=larger).notices
    assert [line for line in notices if "matrix" in line] == [
        f"the video names no colour matrix: {name} is taken, as players do for its size, and written"
    ]


def test_without_pyav(tmp_path: Path, repeater: Repeater, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"in\.mp4: video needs PyAV: pip install 'drct\[video\]'") as caught:
        upscale_clip(tmp_path / "in.mp4", tmp_path / "out.mp4", repeater)
    assert isinstance(caught.value, Error)


# Among other files


def test_folders_mix_images_and_videos(tmp_path: Path, model: Path) -> None:
    from drct.imaging import read_size, write
    from drct.upscaling import UpscaleOptions, upscale

    folder = tmp_path / "in"
    folder.mkdir()
    make_clip(folder / "a.mp4", frames=3, size=(12, 16))
    make_clip(folder / "b.avi", frames=2, size=(12, 16), codec="mpeg4", options={"qscale": "2"})
    write(folder / "c.png", pictures(1, 12, 16)[0])
    (folder / "d.mov").write_text("no video")
    (folder / "e.txt").write_text("neither")
    options = {"inputs": (folder,), "output": tmp_path / "out", "model": model, "device": "cpu"}
    report = upscale(UpscaleOptions(**options))
    assert [(r.source.name, r.status, r.frames) for r in report.results] == [
        ("a.mp4", "done", 3),
        ("b.avi", "done", 2),
        ("c.png", "done", None),
        ("d.mov", "failed", None),
    ]
    assert [path.name for path in report.others] == ["e.txt"]
    assert report.results[3].code == "video"
    assert content(tmp_path / "out" / "a_x4.mp4").size == content(tmp_path / "out" / "b_x4.mkv").size == (64, 48)
    assert read_size(tmp_path / "out" / "c_x4.png") == (48, 64)
    again = upscale(UpscaleOptions(**options))
    assert [r.status for r in again.results] == ["skipped", "skipped", "skipped", "failed"]
    other = upscale(UpscaleOptions(**options, crf=30))
    assert [r.status for r in other.results] == ["done", "done", "skipped", "failed"]


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [(".3g2", "libx264"), (".M2V", "mpeg2video"), (".asf", "mpeg4"), (".mxf", "mpeg2video"), (".nut", "ffv1")],
)
def test_suffixes_of_videos_that_are_read(tmp_path: Path, repeater: Repeater, suffix: str, codec: str) -> None:
    from drct.upscaling.video import is_video_file

    source = make_clip(tmp_path / f"in{suffix}", codec=codec, times=[0, 1, 2, 3], frames=4, time_base=Fraction(1, 25))
    assert is_video_file(source)
    assert upscale_clip(source, tmp_path / "out.mkv", repeater, codec="ffv1").frames == 4


def test_a_folder_without_pyav_leaves_videos_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from drct.upscaling import UpscaleOptions
    from drct.upscaling.jobs import plan_jobs

    (tmp_path / "a.mp4").touch()
    (tmp_path / "b.png").touch()
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "av" else find(name, *more))
    jobs = plan_jobs(UpscaleOptions(inputs=(tmp_path,)), 4)
    assert [job.source.name for job in jobs.jobs] == ["b.png"]
    assert [path.name for path in jobs.others] == ["a.mp4"]


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("1:30.5", 90.5), ("1:00:01", 3601), (2.5, 2.5)])
def test_times_of_day_and_seconds(text: object, seconds: float) -> None:
    from drct.upscaling import UpscaleOptions

    assert UpscaleOptions(inputs=("a.mp4",), start=text).start == seconds
    for wrong in ("soon", "1:99", "1:2:3:4"):
        with pytest.raises(OptionError, match=rf"start is '{wrong}': must be seconds from 0 to 10 million, or H:MM:SS"):
            UpscaleOptions(inputs=("a.mp4",), start=wrong)


def test_one_network_for_all_frames_of_a_clip(tmp_path: Path, repeater: Repeater, monkeypatch: pytest.MonkeyPatch) -> None:
    from drct.upscaling import choosing

    looks: list[float] = []

    class Chooser(choosing.AutoUpscaler):
        def __init__(self) -> None:
            self.__dict__.update(repeater.__dict__)

        def suited(self, picture):
            looks.append(picture.pixels.mean())
            words = "network-a: dark" if picture.pixels.mean() < 100 else "network-b: bright"
            return choosing.Choice(repeater, words)

    dark, bright = (np.full((24, 32, 3), level, np.uint16) for level in (5000, 60000))
    source = make_clip(tmp_path / "in.mp4", images=[bright] * 4 + [dark] * 12)
    result = upscale_clip(source, tmp_path / "out.mp4", Chooser())
    assert len(looks) == 3
    assert result.choice == "network-a: dark"


@pytest.mark.parametrize("damage", ["", "[1]", '{"times": 3}', '{"times": [], "packets": [], "more": 1}'])
def test_damaged_notes_of_an_interrupted_run_make_it_begin_anew(tmp_path: Path, short_parts: None, damage: str) -> None:
    source = make_clip(tmp_path / "in.mp4", frames=6)
    work = tmp_path / ".out.mp4.work"
    work.mkdir()
    for name in ("plan.json", "000000.json"):
        (work / name).write_text(damage)
    repeater = Repeater(tiny_network(), device="cpu")
    assert upscale_clip(source, tmp_path / "out.mp4", repeater).frames == 6
    assert not work.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_a_pipe_is_no_video(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "in.mp4")
    with pytest.raises(VideoError, match="is not a regular file"):
        upscale_clip(tmp_path / "in.mp4", tmp_path / "out.mp4", Repeater(tiny_network(), device="cpu"))


def test_files_are_closed_when_they_have_been_read(tmp_path: Path) -> None:
    make_clip(tmp_path / "a.mp4", frames=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        frames = Clip(tmp_path / "a.mp4").decode()
        next(frames)  # and given up
        del frames
        gc.collect()
    assert [warning for warning in caught if warning.category is ResourceWarning] == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_part_that_finds_no_room_is_given_up_without_another_error(tmp_path: Path) -> None:
    (tmp_path / "0.bin").symlink_to("/dev/full")
    writer = PartWriter.__new__(PartWriter)
    writer._file = (tmp_path / "0.bin").open("wb")
    writer._file.write(b"frames")
    writer.abandon()
    assert writer._file.closed


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler") or os.geteuid() != 0, reason="only root is given real-time scheduling")
def test_the_av1_encoder_leaves_the_scheduling_of_the_process() -> None:
    before = os.sched_getscheduler(0)
    context = av.CodecContext.create("libsvtav1", "w")
    context.width, context.height, context.pix_fmt, context.time_base = 64, 64, "yuv420p", Fraction(1, 25)
    with opening_encoders():
        context.open()
    assert {os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")} == {before}

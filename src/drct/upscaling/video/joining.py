"""The finished parts of a clip and all else that the source holds, put into one file without encoding anything again."""

from __future__ import annotations

import functools
import heapq
import io
import itertools
import math
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from drct.errors import VideoError
from drct.imaging.replacing import keep_permissions
from drct.upscaling.video.encoding import Encoding
from drct.upscaling.video.segments import WorkFolder
from drct.upscaling.video.source import RUN_UP, Clip, require_av

_OWN_KEYS = {"major_brand", "minor_version", "compatible_brands", "encoder"}  # said by each file about itself
_NEEDED_KEYS = {"language", "stereo_mode"}  # of streams; beside them, tags may tell of place, author, date or camera
_KINDS = {"audio": "sound track", "subtitle": "subtitles", "attachment": "attachment", "data": "data track", "video": "video track"}

_FORMATS = {"matroska": "Matroska", "webm": "WebM"}


def copied_streams(clip: Clip, encoding: Encoding, target: Path, notices: list[str]) -> list[int]:
    """Numbers of the source's streams that go into the result as they are; ``notices`` names those that its format cannot hold."""
    av = require_av(target)
    copied = []
    with clip.open() as source:
        chapters = bool(source.chapters())
        for stream in source.streams:
            if stream.index == clip.index:
                continue
            # a stream without a decoder has a name only if it is an attachment
            codec = getattr(stream.codec_context or stream, "name", None) or "of an unknown kind"
            try:
                with av.open(io.BytesIO(), "w", format=encoding.container) as trial:
                    if stream.type == "data":
                        raise ValueError("no format is sure to take the packets of any data")
                    _add_copy(trial, stream, strip=False)
                    if stream.type != "attachment":
                        trial.start_encoding()
                copied.append(stream.index)
            except (ValueError, av.FFmpegError):
                if chapters and codec == "bin_data":
                    continue  # the titles of the chapters in MP4, which are written anew
                name = _FORMATS.get(encoding.container, encoding.container.upper())
                advice = "" if encoding.container == "matroska" or stream.type == "data" else " (.mkv would)"
                notices.append(f"{_KINDS.get(stream.type, 'stream')} {codec} left out: {name} does not take it{advice}")
    return copied


def _add_copy(container: Any, stream: Any, strip: bool) -> Any:
    if stream.type == "attachment":
        return container.add_attachment(stream.name or "attachment", stream.mimetype or "application/octet-stream", stream.data)
    copy = container.add_stream_from_template(stream, opaque=True)
    copy.metadata.update(_tags(stream, strip) if strip else stream.metadata)
    copy.disposition = stream.disposition
    return copy


def _tags(of: Any, strip: bool) -> dict[str, str]:
    """Tags of a container or stream that go into the result."""
    return {key: value for key, value in of.metadata.items() if (key.lower() in _NEEDED_KEYS if strip else key not in _OWN_KEYS)}


def join(
    clip: Clip,
    work: WorkFolder,
    encoding: Encoding,
    target: Path,
    span: tuple[int | None, int | None],
    copied: list[int],
    notices: list[str],
    strip: bool = False,
) -> None:
    """Write the result and give it its name when it is whole; ``notices`` says if all of it begins later.

    Args:
        span: the part of the clip that was upscaled; all timestamps are moved so that its first frame is shown at 0.
        copied: streams of the source that go along.
        strip: leave out tags that tell more than how to show the file.
    """
    av = require_av(target)
    joined = work.folder / f"joined{target.suffix}"
    first, end = span
    shift = clip.shift if first is None else work.parts[0].times[0][0] * clip.time_base
    window = (None if first is None else shift, None if end is None else end * clip.time_base)
    write = functools.partial(_write, clip, work, encoding, target, window=window, copied=copied, strip=strip)
    try:
        if encoding.container in ("matroska", "webm") and (late := _moved_by_muxer(write, work, encoding, shift)):
            # it would move all packets by itself, but not the chapters, and off the milliseconds of the frames
            shift -= late
            notices.append(
                f"everything begins {round(late * 1000)} ms later: {_FORMATS[encoding.container]} holds no times below 0"
            )
        write(f"file:{joined}", shift)  # libav takes "a:b" for an address unless it is told that it is a file
        with joined.open("rb") as file:
            os.fsync(file.fileno())
        keep_permissions(joined, target)
        os.replace(joined, target)
    except av.FFmpegError as error:
        raise VideoError(f"{target}: cannot be written: {error.strerror}") from None
    except OSError as error:
        raise VideoError(f"{target}: cannot be written: {error.strerror}") from None


def _write(
    clip: Clip,
    work: WorkFolder,
    encoding: Encoding,
    target: Path,
    into: str | io.BytesIO,
    shift: Fraction,
    *,
    window: tuple[Fraction | None, Fraction | None],
    copied: list[int],
    strip: bool,
    most: int | None = None,
) -> None:
    """Write the file for ``target``, or only so many of its packets."""
    av = require_av(target)
    options = {"fflags": "+bitexact"}  # the same bytes from the same frames, without dates and random numbers
    if encoding.container in ("mp4", "mov"):
        options["movflags"] = "+faststart"
        options["video_track_timescale"] = str(encoding.time_base.denominator)
    with clip.open() as source, av.open(into, "w", format=encoding.container, container_options=options) as result:
        tags = _tags(source, strip)
        if any("." in key for key in tags) and "movflags" in options:
            result.container_options["movflags"] += "+use_metadata_tags"  # as telephones write them
        result.metadata.update(tags)
        result.set_chapters(_moved_chapters(source.chapters(), shift, window[1], strip))
        video, streams = _add_streams(clip, source, result, encoding, copied, strip)
        result.start_encoding()
        if bytes(video.codec_context.extradata or b"").hex() != work.parts[0].extradata:
            raise VideoError(f"{target}: the parts were made by another version of {encoding.encoder}: remove {work.folder}")
        packets = heapq.merge(
            _video_packets(av, work, video, encoding, shift),
            _other_packets(clip, source, streams, shift, window),
            key=lambda item: item[:2],
        )
        for _, _, packet in itertools.islice(packets, most):
            result.mux(packet)


def _moved_by_muxer(write: Callable[..., None], work: WorkFolder, encoding: Encoding, shift: Fraction) -> Fraction:
    """How much later than asked for the packets of a file lie where its format holds no times below 0 and a stream, as AAC in MP4,
    begins before; seconds, whole milliseconds. Seen from the beginning of such a file, since formats know exceptions."""
    beginning = io.BytesIO()
    write(beginning, shift, most=200)
    beginning.seek(0)
    with require_av("join").open(beginning) as trial:
        stream = trial.streams.video[0]
        packet = next((packet for packet in trial.demux(stream) if packet.pts is not None), None)
        if packet is None:
            return Fraction(0)
        late = packet.pts * packet.time_base - (work.parts[0].times[0][0] * encoding.time_base - shift)
    return Fraction(math.ceil(late * 1000), 1000) if late > Fraction(3, 2000) else Fraction(0)  # times themselves are rounded


def _add_streams(
    clip: Clip, source: Any, result: Any, encoding: Encoding, copied: list[int], strip: bool
) -> tuple[Any, dict[int, Any]]:
    """The streams of the result in the order of the source: the upscaled video, and the others by their numbers there."""
    streams: dict[int, Any] = {}
    video: Any = None
    for stream in source.streams:
        if stream.index == clip.index:
            video = result.add_stream(encoding.encoder, rate=encoding.rate)
            encoding.set_up(video.codec_context)
            if encoding.encoder == "libx265" and encoding.container in ("mp4", "mov"):
                video.codec_context.codec_tag = "hvc1"  # Apple's players refuse hev1, libav's default; headers lie in no packet
            video.time_base = encoding.time_base
            tags = _tags(stream, strip)
            video.metadata.update({key: value for key, value in tags.items() if key.lower() != "alpha_mode"})  # none is left
            video.disposition = stream.disposition
            if clip.display_matrix is not None:
                video.set_display_matrix(clip.display_matrix)
        elif stream.index in copied:
            streams[stream.index] = _add_copy(result, stream, strip)
    return video, streams


def _video_packets(
    av: Any, work: WorkFolder, stream: Any, encoding: Encoding, shift: Fraction
) -> Iterator[tuple[Fraction, int, Any]]:
    moved = round(shift / encoding.time_base)
    for frame in work.encoded():
        packet = av.Packet(frame.data)
        packet.stream, packet.time_base = stream, encoding.time_base
        packet.pts, packet.dts, packet.duration = frame.pts - moved, frame.dts - moved, frame.duration
        packet.is_keyframe = frame.is_key
        yield packet.dts * encoding.time_base, 0, packet


def _other_packets(
    clip: Clip, source: Any, streams: dict[int, Any], shift: Fraction, window: tuple[Fraction | None, Fraction | None]
) -> Iterator[tuple[Fraction, int, Any]]:
    """Packets of the copied streams, their bytes as they are; of a part of the clip, those that begin in it."""
    copied = {index: stream for index, stream in streams.items() if stream.type != "attachment"}
    if not copied:
        return
    discard = type(source.streams[0].discard)
    for stream in source.streams:
        stream.discard = discard.default if stream.index in copied else discard.all
    begin, end = window
    pictures = {i for i in copied if source.streams[i].disposition & type(source.streams[i].disposition).attached_pic}
    if begin is not None and begin - clip.start > RUN_UP:
        source.seek(int((begin - RUN_UP) * 1_000_000), backward=True)
    last = Fraction(-(10**9))
    for packet in source.demux([source.streams[i] for i in copied]):
        if packet.dts is None or not packet.size:
            continue
        if packet.size == 2 and bytes(packet) == b"\0\0" and packet.stream.type == "subtitle":
            continue  # the gaps between MP4's subtitles, which are written anew
        index, base = packet.stream.index, Fraction(packet.time_base)
        time = (packet.dts if packet.pts is None else packet.pts) * base
        if index not in pictures and ((begin is not None and time < begin) or (end is not None and time >= end)):
            continue
        moved = round(shift / base) if index not in pictures else 0
        packet.dts -= moved
        if packet.pts is not None:
            packet.pts -= moved
        packet.stream = copied[index]
        # the merge needs times that do not fall; the file's own order stays
        last = max(last, packet.dts * base)
        yield last, 1, packet


def _moved_chapters(chapters: list[Any], shift: Fraction, end: Fraction | None, strip: bool) -> list[Any]:
    """Chapters of the part, beginning and ending in it."""
    result = []
    for chapter in chapters:
        base = Fraction(chapter["time_base"])
        moved = round(shift / base)
        last = chapter["end"] if end is None else min(chapter["end"], round(end / base))
        if last > chapter["start"] and last > moved:
            tags = {key: value for key, value in chapter["metadata"].items() if not strip or key.lower() == "title"}
            times = {"start": max(0, chapter["start"] - moved), "end": last - moved}
            result.append({**chapter, **times, "metadata": tags})
    return result

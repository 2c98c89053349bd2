"""The finished parts of a clip and all else that the source holds, put into one file without encoding anything again."""

from __future__ import annotations

import functools
import heapq
import io
import itertools
import math
import os
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

from drct.errors import VideoError
from drct.imaging.replacing import keep_permissions
from drct.upscaling.video.encoding import Encoding, opening_encoders
from drct.upscaling.video.segments import WorkFolder
from drct.upscaling.video.source import RUN_UP, Clip, require_av

_OWN_KEYS = {"major_brand", "minor_version", "compatible_brands", "encoder"}  # said by each file about itself
_NEEDED_KEYS = {"language", "stereo_mode"}  # of streams; beside them, tags may tell of place, author, date or camera
_STATISTICS = re.compile(r"(bps|duration|number_of_(bytes|frames)|_statistics_\w+)(-\w+)?", re.IGNORECASE)  # of mkvmerge
_PICTURES = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}  # names and types of attached pictures
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
            picture = _is_picture(stream)
            try:
                if stream.type == "data":
                    raise ValueError("no format is sure to take the packets of any data")
                if not _is_attached(stream, encoding):
                    # WebM has no attachments, and MOV no pictures
                    if stream.type == "attachment" or (picture and encoding.container != "mp4"):
                        raise ValueError("libav would leave it out without a word")
                    with av.open(io.BytesIO(), "w", format=encoding.container) as trial:
                        _add_copy(trial, stream, {})
                        trial.start_encoding()
                copied.append(stream.index)
            except (ValueError, av.FFmpegError):
                if chapters and codec == "bin_data":
                    continue  # the titles of the chapters in MP4, which are written anew
                if "timecode" in stream.metadata and "timecode" in clip.metadata:
                    continue  # a track that is written anew from the tag of the video, or in Matroska the tag itself
                name = _FORMATS.get(encoding.container, encoding.container.upper())
                advice = "" if encoding.container == "matroska" or stream.type == "data" else " (.mkv would)"
                kind = "cover picture" if picture else _KINDS.get(stream.type, "stream")
                notices.append(f"{kind} {codec} left out: {name} does not take it{advice}")
    return copied


def _is_picture(stream: Any) -> bool:
    """Whether it is no video but a picture of the whole, such as a cover."""
    return bool(stream.disposition & type(stream.disposition).attached_pic)


def _is_attached(stream: Any, encoding: Encoding) -> bool:
    """Whether it becomes an attachment, as which Matroska holds pictures, too."""
    return encoding.container == "matroska" and (stream.type == "attachment" or _is_picture(stream))


def _add_copy(container: Any, stream: Any, tags: dict[str, str]) -> Any:
    copy = container.add_stream_from_template(stream, opaque=True)
    copy.metadata.update(tags)
    copy.disposition = stream.disposition
    if _is_picture(stream):
        copy.disposition = type(stream.disposition).attached_pic  # beside another one it would make a video of it
    return copy


def _add_attachment(clip: Clip, container: Any, stream: Any) -> None:
    if stream.type == "attachment":
        container.add_attachment(stream.name or "attachment", stream.mimetype or "application/octet-stream", stream.data)
        return
    name, kind = _PICTURES.get(stream.codec_context.name, ("cover", "application/octet-stream"))
    with clip.open() as source:
        data = next((bytes(packet) for packet in source.demux(source.streams[stream.index]) if packet.size), b"")
    container.add_attachment(stream.metadata.get("filename", name), stream.metadata.get("mimetype", kind), data)


def _tags(of: Any, strip: bool) -> dict[str, str]:
    """Tags of a container or stream that go into the result."""
    return {key: value for key, value in of.metadata.items() if (key.lower() in _NEEDED_KEYS if strip else key not in _OWN_KEYS)}


def _still_true(tags: dict[str, str], changed: bool, later: bool) -> dict[str, str]:
    """Tags without mkvmerge's statistics if the packets changed, and without the timecode of the first frame if it is another."""
    return {
        key: value
        for key, value in tags.items()
        if not (changed and _STATISTICS.fullmatch(key)) and not (later and key.lower() == "timecode")
    }


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
    if _begins_later(clip, window) and "timecode" in clip.metadata and not strip:
        notices.append("timecode left out: it is that of the first frame of the whole clip")
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
        later = _begins_later(clip, window)
        tags = _still_true(_tags(source, strip), changed=False, later=later)
        if any("." in key for key in tags) and "movflags" in options:
            result.container_options["movflags"] += "+use_metadata_tags"  # as telephones write them
        result.metadata.update(tags)
        result.set_chapters(_moved_chapters(source.chapters(), shift, window[1], strip))
        video, streams = _add_streams(clip, source, result, encoding, copied, strip, part=window[0] is not None, later=later)
        with opening_encoders():
            result.start_encoding()
        if bytes(video.codec_context.extradata or b"").hex() != work.parts[0].extradata:
            raise VideoError(f"{target}: the parts were made by another version of {encoding.encoder}: remove {work.folder}")
        packets = heapq.merge(
            _video_packets(av, work, video, encoding, shift, window[1]),
            _other_packets(clip, source, streams, encoding, shift, window),
            key=lambda item: item[:2],
        )
        for _, _, packet in itertools.islice(packets, most):
            result.mux(packet)


def _begins_later(clip: Clip, window: tuple[Fraction | None, Fraction | None]) -> bool:
    return window[0] is not None and window[0] > clip.start


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
    clip: Clip, source: Any, result: Any, encoding: Encoding, copied: list[int], strip: bool, *, part: bool, later: bool
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
            tags = _still_true(_tags(stream, strip), changed=True, later=later)
            video.metadata.update({key: value for key, value in tags.items() if key.lower() != "alpha_mode"})  # none is left
            video.disposition = stream.disposition
            if clip.display_matrix is not None:
                video.set_display_matrix(clip.display_matrix)
        elif stream.index in copied and _is_attached(stream, encoding):
            _add_attachment(clip, result, stream)
        elif stream.index in copied:
            tags = _tags(stream, strip) if strip else dict(stream.metadata)
            streams[stream.index] = _add_copy(result, stream, _still_true(tags, changed=part, later=later))
    return video, streams


def _video_packets(
    av: Any, work: WorkFolder, stream: Any, encoding: Encoding, shift: Fraction, end: Fraction | None
) -> Iterator[tuple[Fraction, int, Any]]:
    moved = round(shift / encoding.time_base)
    for frame in work.encoded():
        packet = av.Packet(frame.data)
        packet.stream, packet.time_base = stream, encoding.time_base
        packet.pts, packet.dts, packet.duration = frame.pts - moved, frame.dts - moved, frame.duration
        if end is not None:  # the last frame of a part may be on screen for longer
            packet.duration = min(frame.duration, round(end / encoding.time_base) - frame.pts)
        packet.is_keyframe = frame.is_key
        yield packet.dts * encoding.time_base, 0, packet


def _other_packets(
    clip: Clip,
    source: Any,
    copied: dict[int, Any],
    encoding: Encoding,
    shift: Fraction,
    window: tuple[Fraction | None, Fraction | None],
) -> Iterator[tuple[Fraction, int, Any]]:
    """Packets of the copied streams, their bytes as they are; of a part of the clip, those that begin in it."""
    if not copied:
        return
    discard = type(source.streams[0].discard)
    for stream in source.streams:
        stream.discard = discard.default if stream.index in copied else discard.all
    begin = window[0]
    if begin is not None and begin - clip.start > RUN_UP:
        source.seek(int((begin - RUN_UP) * 1_000_000), backward=True)
    matroska = encoding.container in ("matroska", "webm")
    edited = matroska and "mp4" in clip.format
    last = Fraction(-(10**9))
    latest: dict[int, int] = {}
    for packet in source.demux([source.streams[i] for i in copied]):
        index, base = packet.stream.index, Fraction(packet.time_base)
        if packet.size and _is_picture(packet.stream):
            packet.pts = packet.dts = 0  # it has no time
            packet.stream = copied[index]
            yield last, 1, packet
            continue
        if packet.dts is None or not packet.size:
            continue
        if packet.size == 2 and bytes(packet) == b"\0\0" and packet.stream.type == "subtitle":
            continue  # the gaps between MP4's subtitles, which are written anew
        if packet.pts is None:
            packet.pts = packet.dts
        if not _falls_into(packet, base, window):
            continue
        if edited and packet.pts + packet.duration < 0:
            continue  # a list of edits cut it away, which Matroska does not know; decoders need the packet just before
        packet.dts -= round(shift / base)
        packet.pts -= round(shift / base)
        if packet.stream.type == "audio" and clip.jumps_back((latest.get(index, packet.dts) - packet.dts) * base):
            break  # behind the part, or it would have been refused: times come again
        # formats take no time that falls, and only Matroska the same one again
        least = 0 if matroska else math.ceil(Fraction(copied[index].time_base) / base)
        packet.dts = max(packet.dts, latest.get(index, packet.dts - least) + least)
        packet.pts = max(packet.pts, packet.dts)
        latest[index] = packet.dts
        packet.stream = copied[index]
        # the merge needs times that do not fall; the file's own order stays
        last = max(last, packet.dts * base)
        yield last, 1, packet


def _falls_into(packet: Any, base: Fraction, window: tuple[Fraction | None, Fraction | None]) -> bool:
    """Whether a packet begins in a part of the clip; subtitles that are on screen when it begins are cut to do so."""
    begin, end = window
    if packet.stream.type == "subtitle" and begin is not None and packet.pts * base < begin:
        late = math.ceil(begin / base) - packet.pts
        if late < packet.duration:
            packet.pts = packet.dts = packet.pts + late
            packet.duration -= late
    return (begin is None or packet.pts * base >= begin) and (end is None or packet.pts * base < end)


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

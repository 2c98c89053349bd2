"""One image file in, one image file out: at once, in strips, or picture by picture."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from drct.errors import OptionError
from drct.imaging import (
    Encoding,
    Picture,
    PictureInfo,
    StripReader,
    check_output,
    read,
    read_info,
    read_pages,
    resize_rows,
    writable_format,
    write,
    write_pages,
    write_strips,
)
from drct.places import check_folder
from drct.upscaling import memory
from drct.upscaling.passes import Pass, Plans, Progress, Stages, TilesTooLarge, UpscaledPicture, target_size
from drct.upscaling.strips import Alpha, Colours, Rows, Shares, Survey, larger, survey

Strips = Literal["auto", "on", "off"]
Size = tuple[int, int]  # height, width
SAMPLE = 1024  # side of the middle of a picture by which its network is chosen


@dataclasses.dataclass(frozen=True)
class UpscaledFile:
    """What became of an image file.

    Attributes:
        input_size, output_size: width and height, of the first picture if there are several.
        passes: networks that the picture went through, with their tile plans; of all pictures, one after the other.
        notices: what a user should know, one sentence each.
        choice: which network was chosen and why; "" where there was nothing to choose.
    """

    input_size: tuple[int, int]
    output_size: tuple[int, int]
    passes: tuple[Pass, ...]
    notices: tuple[str, ...]
    choice: str = ""


class PictureUpscaler(Protocol):
    """What enlarges the pictures of a file; :class:`drct.Upscaler` is one, and says what each part means.

    Only these parts of it are used here, so that files stand on passes and strips alone, and upscalers on files.
    """

    @property
    def alpha(self) -> Literal["network", "resize"]: ...

    @property
    def chooses(self) -> bool: ...

    @property
    def default_scale(self) -> int: ...

    def suited(self, picture: Picture) -> tuple[PictureUpscaler, str]: ...

    def picture(
        self,
        picture: Picture,
        *,
        scale: float | None = None,
        width: int | None = None,
        height: int | None = None,
        progress: Progress | None = None,
        plans: Plans | None = None,
    ) -> UpscaledPicture: ...

    def stages(
        self, source: Colours | Alpha, size: Size, progress: Progress | None = None, plans: Plans | None = None
    ) -> Stages: ...

    def use_smaller_tiles(self, scale: int, tile: int) -> None: ...


def way_of(info: PictureInfo, size: Size, target: Path, format: str | None, encoding: Encoding, strips: Strips) -> str:
    """How a file is upscaled: ``"whole"``, in ``"strips"``, or as ``"pictures"`` one by one. The result's folder is made.

    Raises:
        OptionError, ImageError: the result cannot be written in this place, under this name or in this size; told before any work.
    """
    check_output(target, *size, format, encoding)
    check_folder(target.parent)
    kind = writable_format(target, format)
    if info.several and kind.sequence and not encoding.pyramid:
        return "pictures"
    wanted = strips == "on" or (strips == "auto" and memory.wants_strips(info, size))
    return "strips" if wanted else "whole"


def upscale_file(
    upscaler: PictureUpscaler,
    source: Path,
    target: Path,
    sides: dict[str, Any],
    format: str | None,
    encoding: Encoding,
    *,
    strips: Strips = "auto",
    progress: Progress | None = None,
    plans: Plans | None = None,
) -> UpscaledFile:
    """Upscale a file; see :meth:`drct.Upscaler.file`.

    Args:
        sides: ``scale``, ``width`` and ``height``, as :meth:`drct.Upscaler.upscale` takes them.
    """
    if strips not in get_args(Strips):
        raise OptionError(f"strips is {strips!r}, but must be {', '.join(map(repr, get_args(Strips)))}")
    if os.path.realpath(source) == os.path.realpath(target):
        raise OptionError(f"{target} would replace the input: give another output")
    info = read_info(source, _no_limit(strips))
    size = result_size(upscaler, info, sides)
    way = way_of(info, size, target, format, encoding, strips)
    if way == "strips":
        return _in_strips(upscaler, info, source, target, size, format, encoding, progress, plans)
    if way == "pictures":
        return _pictures(upscaler, info, source, target, sides, format, encoding, progress, plans)
    picture = read(source)
    suited, choice = upscaler.suited(picture)
    result = suited.picture(picture, **sides, progress=progress, plans=plans)
    written = write(target, result.picture, format, **dataclasses.asdict(encoding))
    notices = (*picture.notices, *result.notices, *written)
    return UpscaledFile(_wh(picture), _wh(result.picture), result.passes, notices, choice)


def result_size(upscaler: PictureUpscaler, info: PictureInfo, sides: dict[str, Any]) -> Size:
    """Height and width of a picture's result."""
    scale = upscaler.default_scale if sides.get("scale") is None else sides["scale"]
    return target_size(info.height, info.width, scale, sides.get("width"), sides.get("height"))


def _no_limit(strips: Strips) -> int | None:
    return None if strips == "off" else StripReader.limit()


def _wh(picture: Picture | PictureInfo) -> tuple[int, int]:
    return picture.width, picture.height


def _in_strips(
    upscaler: PictureUpscaler,
    info: PictureInfo,
    source: Path,
    target: Path,
    size: Size,
    format: str | None,
    encoding: Encoding,
    progress: Progress | None,
    plans: Plans | None,
) -> UpscaledFile:
    notices: list[str] = []
    with contextlib.ExitStack() as readers:
        reader = readers.enter_context(StripReader(source))
        choice = ""
        found = survey(reader)
        if upscaler.chooses:
            upscaler, choice = upscaler.suited(_middle(reader, found))
        if found.scaled:
            notices.append("float values from {:.6g} to {:.6g}, beyond 0..1".format(*found.extremes))
        result = larger(info, size)
        while True:
            try:
                passes, told = _write_strips(
                    upscaler, reader, found, readers, result, target, format, encoding, progress, plans, notices
                )
                break
            except TilesTooLarge as error:
                again = error
            # outside of the handler, whose exception would keep the tensors alive
            notices.append(str(again))
            upscaler.use_smaller_tiles(again.scale, again.smaller)
            if plans is not None:
                plans.restart()
    return UpscaledFile(_wh(info), _wh(result), passes, (*info.notices, *notices, *told), choice)


def _write_strips(
    upscaler: PictureUpscaler,
    reader: StripReader,
    found: Survey,
    readers: contextlib.ExitStack,
    result: PictureInfo,
    target: Path,
    format: str | None,
    encoding: Encoding,
    progress: Progress | None,
    plans: Plans | None,
    notices: list[str],
) -> tuple[tuple[Pass, ...], list[str]]:
    size = result.height, result.width
    varies = result.has_alpha and found.alpha is None
    by_network = varies and upscaler.alpha == "network"
    shares = Shares(progress, [1, 1] if by_network else [1])
    colours = upscaler.stages(Colours(reader, found), size, shares.part(0), plans)
    passes = colours.passes
    alpha: Rows | None = None
    if varies:
        # with a reader of its own, since it is asked for at its own pace
        plane = Alpha(readers.enter_context(StripReader(reader.path)))
        stages = upscaler.stages(plane, size, shares.part(1), plans) if by_network else Stages(resize_rows(plane, size), (), ())
        alpha = Rows(stages.strips, (*size, 1))
        passes += stages.passes
        notices += [notice for notice in stages.notices if notice not in notices]
    notices += [notice for notice in colours.notices if notice not in notices]
    told: list[str] = []
    row = 0
    with write_strips(target, result, format, encoding, told) as writer:
        for strip in colours.strips:
            writer.write(found.restored(strip), _alpha_rows(alpha, found, result, row, len(strip)))
            row += len(strip)
    return passes, told


def _alpha_rows(alpha: Rows | None, found: Survey, result: PictureInfo, row: int, rows: int) -> np.ndarray | None:
    if not result.has_alpha:
        return None
    if alpha is None:
        assert found.alpha is not None
        plane = np.full((rows, result.width), found.alpha, result.depth)
    else:
        plane = alpha[row : row + rows][:, :, 0]
    return plane.clip(0, 1) if result.depth == "float32" else plane


def _middle(reader: StripReader, found: Survey) -> Picture:
    """The part of a picture that tells its condition; the rest of what it carries goes along."""
    info = reader.info
    top, left = max(0, (info.height - SAMPLE) // 2), max(0, (info.width - SAMPLE) // 2)
    pixels, alpha = reader.rows(top, top + SAMPLE)
    part = slice(left, left + SAMPLE)
    return Picture(
        np.ascontiguousarray(found.normalized(pixels[:, part])),
        None if alpha is None else np.ascontiguousarray(alpha[:, part]),
        source_format=info.source_format,
        path=info.path,
    )


def _pictures(
    upscaler: PictureUpscaler,
    info: PictureInfo,
    source: Path,
    target: Path,
    sides: dict[str, Any],
    format: str | None,
    encoding: Encoding,
    progress: Progress | None,
    plans: Plans | None,
) -> UpscaledFile:
    passes: list[Pass] = []
    notices: list[str] = []
    chosen: list[tuple[PictureUpscaler, str]] = []
    shares = Shares(progress, [1] * info.frames)

    def results() -> Generator[Picture, None, None]:
        for i, picture in enumerate(read_pages(source)):
            if not chosen:
                chosen.append(upscaler.suited(picture))  # by the first, so that all look alike
            result = chosen[0][0].picture(picture, **sides, progress=shares.part(i), plans=plans)
            passes.extend(result.passes)
            notices.extend(notice for notice in (*picture.notices, *result.notices) if notice not in notices)
            yield result.picture

    pictures = results()
    with contextlib.closing(pictures):
        first = next(pictures)
        outcome = dataclasses.replace(first.info, frames=info.frames, delays=info.delays, loop=info.loop)
        written = write_pages(target, outcome, _chain(first, pictures), format, encoding)
    return UpscaledFile(_wh(info), _wh(first), tuple(passes), (*notices, *written), chosen[0][1])


def _chain(first: Picture, rest: Iterator[Picture]) -> Iterator[Picture]:
    yield first
    yield from rest


__all__ = ["PictureUpscaler", "Strips", "UpscaledFile", "result_size", "upscale_file", "way_of"]

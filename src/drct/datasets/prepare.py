"""Turn a folder of images into a pack for training: checked, cut to sub-images if wanted, decoded once."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from drct.datasets.lmdb import is_unfinished, write_lmdb
from drct.datasets.pack import is_pack, write_pack
from drct.datasets.sources import FolderSource
from drct.errors import DataError, ImageError, OptionError


@dataclasses.dataclass
class PrepareReport:
    """What went into a pack and what did not."""

    images: int
    pieces: int
    pixels: int
    left_out: list[str]


def cut(image: np.ndarray, size: int, step: int) -> Iterator[tuple[str, np.ndarray]]:
    """Sub-images of ``size`` pixels every ``step`` pixels; the last row and column end at the border. Names are ``_sNNN``."""
    h, w = image.shape[:2]

    def starts(length: int) -> list[int]:
        places = list(range(0, max(1, length - size + 1), step))
        if length > size and places[-1] != length - size:
            places.append(length - size)
        return places

    number = 0
    for top in starts(h):
        for left in starts(w):
            number += 1
            yield f"_s{number:03d}", image[top : top + size, left : left + size]


def prepare(
    images: str | Path,
    out: str | Path,
    *,
    crop: int | None = None,
    step: int | None = None,
    minimum: int = 64,
    scale: int = 1,
) -> PrepareReport:
    """Write all readable images below a folder to the pack ``out``, or to an LMDB data base if its name ends in ``.lmdb``.

    A pack that is there already is replaced when the new one is complete; a data base is not, unless it was never completed.
    SIGINT (Ctrl-C) and SIGTERM end it after the image at hand.

    Args:
        crop: cut into sub-images of this side; None keeps whole images.
        step: distance of sub-images in pixels; default is ``crop`` (no overlap). The published preparation uses 480 and 240.
        minimum: images with a side below this are left out.
        scale: cut GT to a multiple of this first, as its LR images are made from: else the last sub-images of both, which end at
            the border, would show different places.

    Raises:
        DataError: the folder holds no readable image, or ``out`` cannot be written. Single unreadable files are listed in the
            report instead.
        OptionError: sizes that make no sense, or ``out`` is a folder of something else.
        KeyboardInterrupt: by one of these signals; nothing half written is left.
    """
    if scale < 1:
        raise OptionError(f"scale is {scale}, but must be at least 1")
    if crop is not None and crop < 1:
        raise OptionError(f"crop is {crop}, but must be at least 1 pixel")
    if step is not None and crop is None:
        raise OptionError("step is the distance of sub-images: give crop, their side, too")
    if step is not None and crop is not None and not 0 < step <= crop:
        raise OptionError(f"step is {step}, but must be between 1 and crop, {crop}")
    out = Path(out)
    _check_place(out)
    source = FolderSource(images, keep=1)
    report = PrepareReport(0, 0, 0, [])

    def pieces(check: Callable[[], None]) -> Iterator[tuple[str, np.ndarray]]:
        for i in range(len(source)):
            check()
            try:
                image = source[i]
            except ImageError as error:
                report.left_out.append(str(error))
                continue
            least = max(minimum, scale)
            if min(image.shape[:2]) < least:
                report.left_out.append(f"{source.name(i)} is {image.shape[1]} x {image.shape[0]}, smaller than {least} pixels")
                continue
            report.images += 1
            image = image[: image.shape[0] // scale * scale, : image.shape[1] // scale * scale]
            parts = [("", image)] if crop is None else cut(image, crop, step or crop)
            for suffix, part in parts:
                report.pieces += 1
                report.pixels += part.shape[0] * part.shape[1]
                yield source.name(i) + suffix, part
        if report.pieces == 0:  # before anything is replaced
            raise DataError(f"{images}: none of the {len(source)} images could be used ({report.left_out[0]})")

    with _interruptions() as check:
        (write_lmdb if out.suffix == ".lmdb" else write_pack)(out, pieces(check))
    return report


@contextlib.contextmanager
def _interruptions() -> Iterator[Callable[[], None]]:
    """Gives what raises KeyboardInterrupt once SIGINT or SIGTERM has come; a second SIGINT ends at once.

    An exception at the moment of the signal could be lost: callbacks of libvips let none out.
    """
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    def check() -> None:
        if came:
            raise KeyboardInterrupt

    here = threading.current_thread() is threading.main_thread()  # elsewhere Python sets no handlers
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if here}
    try:
        for number in before:
            signal.signal(number, handle)
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_place(out: Path) -> None:
    """Make sure that nothing is lost where ``out`` is written."""
    if out.suffix == ".lmdb":
        if out.is_dir() and not is_unfinished(out):
            raise OptionError(f"{out} exists already: remove it or choose another name")
        return
    others = {path.name for path in out.iterdir() if not path.name.startswith(".")} if out.is_dir() else set()
    # pixels without an index are those of a run that was ended while it replaced a pack
    if not is_pack(out) and (others - {"index.json", "pixels.bin"} or others == {"index.json"}):
        raise OptionError(f"{out} holds something else than a pack: choose a new folder")

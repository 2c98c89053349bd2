"""Images that come and go by rows, so that their size does not matter: what stands between the reader and the networks.

Tiles need their rows with the overlap, a second network needs rows of the first one's result, and a resize those that its kernel
reaches; each asks for its rows from top to bottom. What must be known of the whole image before the first row, such as the range of
its floats, is found out by reading the file once more.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from drct.errors import ImageError
from drct.imaging import PictureInfo, StripReader, visible_range
from drct.upscaling.alpha import BAND, Bleeding

KEPT_ROWS = 64  # rows that stay after they were asked for, since the next wish may begin a little above the last one


class Rows:
    """Strips from top to bottom as pixels that are asked for by rows, from top to bottom too.

    Args:
        strips: arrays ``(h, W, C)``; each is taken when its rows are wanted.
        shape: of the whole image, ``(H, W, C)``.
    """

    def __init__(self, strips: Iterator[np.ndarray], shape: tuple[int, int, int]) -> None:
        self.strips = strips
        self.shape = shape
        self._held: collections.deque[tuple[int, np.ndarray]] = collections.deque()  # with their first rows
        self._end = 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop = rows.start, min(rows.stop, self.shape[0])
        while self._held and self._held[0][0] + len(self._held[0][1]) <= start - KEPT_ROWS:
            self._held.popleft()
        while self._end < stop:
            strip = next(self.strips)
            self._held.append((self._end, strip))
            self._end += len(strip)
        if self._held[0][0] > start:
            raise IndexError(f"rows from {start} on are asked for, but those above {self._held[0][0]} are gone")
        parts = [strip[max(0, start - first) : stop - first] for first, strip in self._held if first < stop]
        parts = [part for part in parts if len(part)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


@dataclasses.dataclass
class Survey:
    """What must be known of a picture before its first row is used.

    Attributes:
        low, span: floats are brought to 0..1 by ``(value - low) / span``; (0, 1) leaves them alone.
        extremes: the lowest and the highest of those that can be seen, as they are.
        alpha: the one value of its alpha; None if it has several, or none.
        bleeding: colours to put under transparency.
    """

    low: float = 0.0
    span: float = 1.0
    extremes: tuple[float, float] = (0.0, 1.0)
    alpha: float | None = None
    bleeding: Bleeding = dataclasses.field(default_factory=Bleeding)

    @property
    def scaled(self) -> bool:
        return (self.low, self.span) != (0.0, 1.0)

    def normalized(self, pixels: np.ndarray) -> np.ndarray:
        return (pixels - np.float32(self.low)) / np.float32(self.span) if self.scaled else pixels

    def restored(self, pixels: np.ndarray) -> np.ndarray:
        return pixels * np.float32(self.span) + np.float32(self.low) if self.scaled else pixels


def survey(reader: StripReader) -> Survey:
    """Look through a picture, if it has alpha or floats; others need no look.

    Raises:
        ImageError: floats that are no numbers, or damage on the way.
    """
    info = reader.info
    found = Survey()
    floats = info.depth == "float32"
    if not (floats or info.has_alpha):
        return found
    low, high = np.inf, -np.inf
    hidden_low, hidden_high = np.inf, -np.inf  # of bands where nothing can be seen; they count only if all are such
    least: float | None = None
    most: float | None = None
    step = BAND * max(1, (8 << 20) // (BAND * info.width * 4))
    for row in range(0, info.height, step):
        pixels, alpha = reader.rows(row, row + step)
        if floats:
            extremes = [float(pixels.min()), float(pixels.max())]
            extremes += [] if alpha is None else [float(alpha.min()), float(alpha.max())]
            if not np.isfinite(extremes).all():
                raise ImageError(f"{info.path}: the pixels hold NaN or infinite values")
            extremes = list(visible_range(pixels, alpha))
            if alpha is None or (alpha > 0).any():
                low, high = min(low, extremes[0]), max(high, extremes[1])
            else:
                hidden_low, hidden_high = min(hidden_low, extremes[0]), max(hidden_high, extremes[1])
        if alpha is not None:
            alpha = opacity(alpha)
            least = float(alpha.min()) if least is None else min(least, float(alpha.min()))
            most = float(alpha.max()) if most is None else max(most, float(alpha.max()))
            found.bleeding.add(pixels, alpha)
    found.bleeding.finish()
    if floats:
        low, high = (low, high) if low <= high else (hidden_low, hidden_high)
        found.extremes = low, high
        found.low = min(low, 0.0)
        found.span = max(high, 1.0) - found.low
    found.alpha = least if least == most else None
    return found


class Colours:
    """The colours of a picture as networks take them: bled under transparency, floats within 0..1."""

    def __init__(self, reader: StripReader, found: Survey) -> None:
        self.shape = (reader.info.height, reader.info.width, reader.info.channels)
        self.dtype = np.dtype(reader.info.depth)
        self._reader = reader
        self._found = found

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop = rows.start, min(rows.stop, self.shape[0])
        if not self._found.bleeding.needed:
            return self._found.normalized(self._reader.rows(start, stop)[0])
        first = start // BAND * BAND
        pixels, alpha = self._reader.rows(first, -(-stop // BAND) * BAND)
        assert alpha is not None
        bled = self._found.bleeding.apply(pixels, alpha, first)
        return self._found.normalized(bled[start - first : stop - first])


class Alpha:
    """The transparency of a picture as a grey image. It needs a reader of its own, since it is asked for at its own pace."""

    def __init__(self, reader: StripReader) -> None:
        self.shape = (reader.info.height, reader.info.width, 1)
        self.dtype = np.dtype(reader.info.depth)
        self._reader = reader

    def __getitem__(self, rows: slice) -> np.ndarray:
        alpha = self._reader.rows(rows.start, rows.stop)[1]
        assert alpha is not None
        return opacity(alpha)[:, :, None]


def opacity(alpha: np.ndarray) -> np.ndarray:
    """Alpha as it can mean something: floats beyond 0..1 are clipped."""
    return alpha.clip(0, 1) if alpha.dtype == np.float32 else alpha


class Shares:
    """Progress of several parts of a work that go on in turns.

    Args:
        progress: hears the finished part of the whole, 0..1.
        work: how much each part is.
    """

    def __init__(self, progress: Callable[[float], None] | None, work: Sequence[float]) -> None:
        self._progress = progress
        self._work = work
        self._done = [0.0] * len(work)

    def part(self, i: int) -> Callable[[float], None] | None:
        """What hears the finished part of part ``i``, 0..1."""
        if self._progress is None:
            return None
        tell = self._progress

        def hear(done: float) -> None:
            self._done[i] = done
            tell(sum(w * d for w, d in zip(self._work, self._done, strict=True)) / sum(self._work))

        return hear


def larger(info: PictureInfo, size: tuple[int, int]) -> PictureInfo:
    """What a picture carries after it got another size: the resolution grows along, so that a print stays as large as it was."""
    resolution = info.resolution
    if resolution is not None:
        resolution = (resolution[0] * size[1] / info.width, resolution[1] * size[0] / info.height)
    return dataclasses.replace(info, height=size[0], width=size[1], resolution=resolution, notices=[])

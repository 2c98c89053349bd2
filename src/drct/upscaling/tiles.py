"""Cutting an image into overlapping tiles, and putting the upscaled tiles together without seams.

A plan is a pure function of the image size and the options, so the same plan gives the same bytes on every run. Tiles lie on the
window grid of the padded image: a tile sees the windows that the whole image would have had, and the padding at the right and
bottom border is the network's own. What differs from the whole image is only what attention would have seen beyond the tile's
edge; the overlap keeps that part out, and a short linear ramp in its middle hides what is left of it. A ramp over the whole overlap
would be smoother still, but it mixes in the very pixels that are wrong.

Output leaves row of tiles by row of tiles, in its final number type. Held as floats are one batch of tiles and the ramp between two
rows, so that memory grows with the image's width and not with its area.
"""

from __future__ import annotations

import dataclasses
import itertools
import operator
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from drct.errors import OptionError
from drct.imaging import from_tensor, to_tensor
from drct.networks.base import reflect_indices
from drct.upscaling.options import OVERLAP

Program = Callable[[Tensor], Tensor]  # (N, 3, H, W) to (N, 3, scale * H, scale * W), float, values 0..1

LADDER = (64, 96, 128, 192, 256, 384, 512, 768, 1024)  # tile sides in input pixels that "auto" chooses from
FEATHER = 8  # input pixels over which one tile fades into the next, in the middle of the overlap; at most a quarter of it


class Source(Protocol):
    """Pixels that can be read by rows: a numpy array, or anything else with a shape that gives arrays for row slices."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class TilePlan:
    """Where the tiles of one image lie; all in input pixels.

    Attributes:
        height, width: size of the image.
        tile_height, tile_width: size of every tile; a tile may reach beyond the image into its padding.
        rows, columns: top and left edges of the tiles.
        overlap: what neighbours share at least.
        feather: width of the ramp between neighbours.
        batch: tiles that go through the network at once.
    """

    height: int
    width: int
    tile_height: int
    tile_width: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    overlap: int
    feather: int
    batch: int

    @property
    def whole(self) -> bool:
        """Whether the one tile is the image."""
        return len(self.rows) == len(self.columns) == 1

    @property
    def tiles(self) -> int:
        return len(self.rows) * len(self.columns)

    @property
    def pixels(self) -> int:
        """Input pixels that the network sees, overlaps counted as often as they are computed."""
        return self.tiles * self.tile_height * self.tile_width

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values; :meth:`from_json` gives the plan back."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> TilePlan:
        return cls(**{**values, "rows": tuple(values["rows"]), "columns": tuple(values["columns"])})


def smallest_tile(pad_multiple: int) -> int:
    """The smallest tile side that a network allows: four windows, so that a window of overlap is left on each side."""
    return 4 * pad_multiple


def ladder(pad_multiple: int) -> tuple[int, ...]:
    """The sizes of :data:`LADDER`, each brought to the network's window, smallest first."""
    sizes = {max(_round_up(size, pad_multiple), smallest_tile(pad_multiple)) for size in LADDER}
    return tuple(sorted(sizes))


def plan_tiles(
    height: int,
    width: int,
    *,
    tile: int | None,
    pad_multiple: int,
    overlap: int = OVERLAP,
    batch: int = 1,
    most_rows: int | None = None,
) -> TilePlan:
    """Plan the tiles of a ``height x width`` image.

    Args:
        tile: largest side of a tile; it is rounded up to the network's window. None for the whole image at once.
        pad_multiple: the network's; tiles and their positions are multiples of it.
        overlap: what neighbours share at least; at most a quarter of the tile is used.
        batch: the most tiles that go through the network at once.
        most_rows: largest height of a tile, where that is less than ``tile``: a row of tiles of a very wide image is much to hold.

    Tiles shrink to what covers the image with the same number of them, so that little is computed twice.

    Raises:
        OptionError: the tile is smaller than four windows of the network.
    """
    # plain numbers: the narrow ones of numpy overflow, and none of them can be written as JSON
    height, width, pad_multiple, overlap, batch = map(operator.index, (height, width, pad_multiple, overlap, batch))
    if tile is None:
        return TilePlan(height, width, height, width, (0,), (0,), overlap=0, feather=0, batch=1)
    if tile < smallest_tile(pad_multiple):
        raise OptionError(f"tile {tile} is too small: this network needs tiles of at least {smallest_tile(pad_multiple)}")
    tile = _round_up(operator.index(tile), pad_multiple)
    overlap = max(pad_multiple, min(_round_up(overlap, pad_multiple), tile // 4 // pad_multiple * pad_multiple))
    tallest = tile
    if most_rows is not None:
        most_rows = operator.index(most_rows)
        # low enough for the limit, high enough for the overlap
        tallest = min(tile, max(_round_up(most_rows - pad_multiple + 1, pad_multiple), 4 * overlap, smallest_tile(pad_multiple)))
    tile_height, rows = _plan_axis(height, tallest, overlap, pad_multiple)
    tile_width, columns = _plan_axis(width, tile, overlap, pad_multiple)
    if len(rows) == len(columns) == 1:
        return plan_tiles(height, width, tile=None, pad_multiple=pad_multiple)
    # batches of one row of tiles, as equal as they can be
    batch = -(-len(columns) // -(-len(columns) // batch))
    return TilePlan(height, width, tile_height, tile_width, rows, columns, overlap, max(1, min(FEATHER, overlap // 4)), batch)


def _plan_axis(size: int, tile: int, overlap: int, multiple: int) -> tuple[int, tuple[int, ...]]:
    """Side of the tiles along one axis and where they begin: evenly spread over the padded image, on the window grid."""
    size = _round_up(size, multiple)
    if size <= tile:
        return size, (0,)
    count = -(-(size - overlap) // (tile - overlap))
    tile = _round_up(-(-(size + (count - 1) * overlap) // count), multiple)
    free = (size - tile) // multiple
    # rounding half up in whole numbers, so that no float decides where a tile lies
    return tile, tuple((2 * i * free + count - 1) // (2 * (count - 1)) * multiple for i in range(count))


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def upscale_strips(
    program: Program,
    source: Source,
    plan: TilePlan,
    *,
    scale: int,
    dtype: DTypeLike,
    on_tiles: Callable[[int], None] | None = None,
) -> Iterator[np.ndarray]:
    """Upscale an image tile by tile and yield the result in strips from top to bottom.

    Args:
        program: the network, or anything that answers like one. It gets its input on the CPU.
        source: the image, ``(H, W, 3)`` or grey ``(H, W, 1)``, with integers in their full range or floats in 0..1.
        plan: where the tiles lie; made for the size of ``source``.
        scale: what ``program`` multiplies sides by.
        dtype: number type of the result: uint8, uint16 or float32.
        on_tiles: called with the number of tiles after each batch.

    Yields:
        Arrays ``(h, scale * W, C)`` of ``dtype``; the heights add up to ``scale * H``. Floats are not clipped to 0..1.
    """
    grey = source.shape[2] == 1
    if plan.whole:
        yield from_tensor(program(to_tensor(source[0 : plan.height])), dtype, grey=grey)
        _report(on_tiles, 1)
        return

    row_spans = _spans(plan.rows, plan.tile_height, plan.height, plan.feather, scale)
    column_spans = _spans(plan.columns, plan.tile_width, plan.width, plan.feather, scale)
    ramp = scale * plan.feather
    fade = (torch.arange(ramp, dtype=torch.float32, device="cpu") + 0.5) / ramp
    in_columns = np.asarray(reflect_indices(plan.width, plan.columns[-1] + plan.tile_width))
    in_rows = np.asarray(reflect_indices(plan.height, plan.rows[-1] + plan.tile_height))
    above: Tensor | None = None  # (3, ramp, scale * W): bottom of the last row of tiles, still to be faded into the next one

    for top, (row_begin, row_end) in zip(plan.rows, row_spans, strict=True):
        wanted = in_rows[top : top + plan.tile_height]
        first = int(wanted.min())
        band = np.asarray(source[first : int(wanted.max()) + 1])[wanted - first][:, in_columns]
        last_row = row_end == scale * plan.height
        strip = np.empty((row_end - row_begin - (0 if last_row else ramp), scale * plan.width, source.shape[2]), dtype)
        below: Tensor | None = None
        left: Tensor | None = None  # right edge of the tile before, still to be faded into the next one

        for batch in _batches(range(len(plan.columns)), plan.batch):
            tiles = [to_tensor(band[:, plan.columns[c] : plan.columns[c] + plan.tile_width]) for c in batch]
            outputs = program(torch.cat(tiles)).float()
            fade = fade.to(outputs.device)
            for c, output in zip(batch, outputs, strict=True):
                begin, end = column_spans[c]
                y, x = scale * top, scale * plan.columns[c]
                piece = output[:, row_begin - y : row_end - y, begin - x : end - x].clone()
                if left is not None:
                    piece[:, :, :ramp] = torch.lerp(left, piece[:, :, :ramp], fade)
                if end != scale * plan.width:
                    left = piece[:, :, -ramp:].clone()
                    piece = piece[:, :, :-ramp]
                    end -= ramp
                if above is not None:
                    piece[:, :ramp] = torch.lerp(above[:, :, begin:end], piece[:, :ramp], fade[:, None])
                if not last_row:
                    if below is None:
                        below = piece.new_empty((3, ramp, scale * plan.width))
                    below[:, :, begin:end] = piece[:, -ramp:]
                    piece = piece[:, :-ramp]
                strip[:, begin:end] = from_tensor(piece, dtype, grey=grey)
            _report(on_tiles, len(batch))
        above = below
        yield strip


def _spans(starts: Sequence[int], tile: int, size: int, feather: int, scale: int) -> list[tuple[int, int]]:
    """Output range that each tile answers for along one axis; neighbouring ranges share the ramp."""
    # the ramp lies in the middle of what two neighbours share, where both are farthest from their edges
    ramps = [(start + tile + following) // 2 - feather // 2 for start, following in itertools.pairwise(starts)]
    begins = [0, *ramps]
    ends = [*(ramp + feather for ramp in ramps), size]
    return [(begin * scale, end * scale) for begin, end in zip(begins, ends, strict=True)]


def _batches(items: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for i in range(0, len(items), size):
        yield items[i : i + size]


def _report(on_tiles: Callable[[int], None] | None, count: int) -> None:
    if on_tiles is not None:
        on_tiles(count)

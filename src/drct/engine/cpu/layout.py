"""Order of tokens: maps are kept as rows of pixels in the order of their windows.

Attention then reads contiguous rows. The order of unshifted windows is the home order in which features are stored; shifted
blocks gather from it. Windows that need the same mask stand together, so that only those at the border are masked at all.
Networks with convolutions in every block keep raster order, in which a map is a view, and gather for every attention.
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor

from drct.networks.window_attention import window_partition, window_reverse


@dataclasses.dataclass(frozen=True)
class WindowOrder:
    """Windows of a (shifted) map.

    Attributes:
        tokens: home position of each token in this order; None when the orders are the same.
        ends: for each of the four kinds of :func:`drct.networks.window_attention.shift_masks`, the first window after it.
    """

    tokens: Tensor | None
    ends: tuple[int, int, int, int]

    @functools.cached_property
    def kinds(self) -> Tensor:
        """The kind of each window, int32."""
        counts = torch.tensor([end - start for start, end in zip((0, *self.ends[:-1]), self.ends, strict=True)], device="cpu")
        return torch.arange(4, dtype=torch.int32, device="cpu").repeat_interleave(counts)


def window_order(batch: int, height: int, width: int, window: int, shift: int, raster: bool = False) -> WindowOrder:
    """The order of tokens for a map whose sides are multiples of ``window``, cyclically shifted by ``shift``.

    ``raster``: features are stored as ``(B, H, W)`` instead of in home order.
    """
    rows, columns = height // window, width // window
    windows = batch * rows * columns
    everything = (windows, windows, windows, windows)
    if shift == 0 and not raster:
        return WindowOrder(None, everything)
    if raster:
        home = torch.arange(batch * height * width, device="cpu").view(batch, height, width, 1)
    else:
        home = window_reverse(
            torch.arange(windows * window * window, device="cpu").view(batch, rows, columns, window * window, 1), window
        )
    tokens = window_partition(home.roll((-shift, -shift), (1, 2)), window).view(windows, window * window)
    if shift == 0:
        return WindowOrder(tokens.flatten(), everything)
    kind = torch.zeros(batch, rows, columns, dtype=torch.int64, device="cpu")
    kind[:, :, -1] += 1
    kind[:, -1] += 2
    kind = kind.flatten()
    ends = kind.bincount(minlength=4).cumsum(0).tolist()
    return WindowOrder(tokens[kind.argsort(stable=True)].flatten(), tuple(ends))


def overlap_order(batch: int, height: int, width: int, window: int, border: int) -> Tensor:
    """The keys of overlapping windows of a map in raster order: ``(windows, (window + 2 * border)**2)``.

    Positions beyond the map are ``batch * height * width``, the row after the last.
    """
    outside = batch * height * width
    positions = torch.full((batch, height + 2 * border, width + 2 * border), outside, device="cpu")
    positions[:, border : border + height, border : border + width] = torch.arange(outside, device="cpu").view(batch, height, width)
    side = window + 2 * border
    return positions.unfold(1, side, window).unfold(2, side, window).reshape(-1, side * side)


def to_tokens(x_bchw: Tensor, window: int) -> Tensor:
    """``(B, C, H, W)`` to ``(B * H * W, C)`` in home order."""
    return window_partition(x_bchw.permute(0, 2, 3, 1), window).flatten(0, 3)


def to_map(tokens: Tensor, batch: int, height: int, width: int, window: int) -> Tensor:
    """Inverse of :func:`to_tokens`; the result has channels-last strides."""
    x = tokens.view(batch, height // window, width // window, window * window, -1)
    return window_reverse(x, window).permute(0, 3, 1, 2)

"""The eight flips and rotations under which an image can be looked at, and means over them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

VIEWS = 8

Enlarger = Callable[[Tensor], Tensor]  # (N, C, H, W) to (N, C, scale * H, scale * W)


def mean_of_views(program: Enlarger, x: Tensor, views: Iterable[int]) -> Tensor:
    """The mean of what a program makes of an image under some flips and rotations, each turned back; float32.

    Args:
        program: enlarges a batch.
        x: ``(N, C, H, W)``.
        views: which, at least one; view ``k`` is mirrored from 4 on, then turned ``k`` times by 90 degrees.
    """
    total: Tensor | None = None
    count = 0
    for view in views:
        mirrored, turns = divmod(view, 4)
        y = program(torch.rot90(x.flip(-1) if mirrored else x, turns, (-2, -1)).contiguous())
        y = torch.rot90(y, -turns, (-2, -1)).float()
        y = y.flip(-1) if mirrored else y
        total = y.clone() if total is None else total.add_(y)
        count += 1
    if total is None:
        raise ValueError("no view to look at")
    return total / count


def self_ensemble(program: Enlarger) -> Enlarger:
    """The mean of a program over all eight views of its input (EDSR's geometric self-ensemble, arXiv 1707.02921)."""
    return lambda x: mean_of_views(program, x, range(VIEWS))

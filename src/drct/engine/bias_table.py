"""Gradient of a relative position bias table from that of the bias, shared by the kernels of all devices."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def table_gradient(dbias: Tensor, window: int) -> Tensor:
    """Sum ``(heads, N, N)`` over the pairs of positions that share a row of the bias table: ``((2w - 1)**2, heads)``.

    The rows of a table are differences of coordinates, that is diagonals; two sums over diagonals replace a scatter that is
    many times slower.
    """
    x = dbias.view(-1, window, window, window, window).permute(0, 1, 3, 2, 4)  # heads, y query, y key, x query, x key
    x = diagonal_sums(x)  # heads, y query, y key, x difference
    x = diagonal_sums(x.permute(0, 3, 1, 2))  # heads, x difference, y difference
    return x.permute(2, 1, 0).reshape(-1, len(dbias))


def diagonal_sums(x: Tensor) -> Tensor:
    """``(..., w, w)`` to ``(..., 2w - 1)``: entry ``i - j + w - 1`` is the sum over all (i, j) with that difference."""
    w = x.shape[-1]
    # flipped and padded to rows of 2w, then read in rows of 2w - 1, each row starts one column further left than the last
    x = F.pad(x.flip(-1), (0, w)).flatten(-2)[..., : w * (2 * w - 1)]
    return x.unflatten(-1, (w, 2 * w - 1)).sum(-2)

"""Relative position bias tables as kernels want them, and the way back of their gradients; shared by the kernels of all devices."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F


def expand_table(table: Tensor, window: int) -> Tensor:
    """Bias table ``((2w - 1)**2, heads)`` to ``(heads, query x, key y - query y, key x)``, the second last axis 2w - 1 long.

    Along the last two axes lie, from some place on, the biases of one query against all keys, so nothing of size N x N is needed.
    """
    return table.detach().float().t()[:, _expanded_index(window)].contiguous()


def shorten(position_bias: Tensor) -> Tensor:
    """What :func:`expand_table` returns, from the biases ``(heads, N, N)`` of every query and key."""
    heads, n = position_bias.shape[:2]
    window = round(n**0.5)
    pairs = position_bias.view(heads, window, window, window, window)  # heads, query y, query x, key y, key x
    above = pairs[:, -1, :, :-1]  # of the lowest query: keys from 1 - w to -1 rows below it
    return torch.cat([above, pairs[:, 0]], 2).contiguous()


@functools.cache
def _expanded_index(window: int) -> Tensor:
    side = 2 * window - 1
    x = torch.arange(window, device="cpu")
    column = x[:, None] - x[None, :] + window - 1  # query x, key x
    row = torch.arange(side - 1, -1, -1, device="cpu")  # the table counts query y - key y
    return row[None, :, None] * side + column[:, None, :]


def gradient_of_expanded(gradient: Tensor) -> Tensor:
    """Adjoint of :func:`expand_table`: ``(heads, w, 2w - 1, w)`` to ``((2w - 1)**2, heads)``."""
    return diagonal_sums(gradient.permute(0, 2, 1, 3)).flip(1).flatten(1).t()


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

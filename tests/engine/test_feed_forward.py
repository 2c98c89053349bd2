"""The second half of a Swin block in one kernel against its formula, also on processors where training prefers operators."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from drct.engine.native import FeedForward, feed_forward
from drct.engine.native.build import library_or_reason

SHAPES = [  # dim, hidden, out; no out: the input itself is added
    (48, 96, 16),
    (180, 360, 32),
    (64, 64, 180),
    (61, 70, 13),
    (3, 5, 7),
    (20, 40, None),
    (64, 128, None),
]


@pytest.fixture(autouse=True, scope="module")
def kernel() -> None:
    if isinstance(reason := library_or_reason("feed_forward.c"), str):
        pytest.skip(reason)


def make(dim: int, hidden: int, out: int | None, biases: bool = True) -> FeedForward:
    torch.manual_seed(dim)

    def weight(rows: int, columns: int) -> Tensor:
        return (torch.randn(rows, columns) * columns**-0.5).requires_grad_()

    def bias(size: int) -> Tensor | None:
        return torch.randn(size, requires_grad=True) if biases else None

    gain, offset = torch.randn(2, dim).requires_grad_().unbind()
    fc1, last = (weight(hidden, dim), bias(hidden)), (weight(out or dim, hidden), bias(out or dim))
    residual = (None, None) if out is None else (weight(out, dim), bias(out))
    return FeedForward(gain.detach().requires_grad_(), offset.detach().requires_grad_(), 1e-5, *fc1, *last, *residual)


def formula(u: Tensor, p: FeedForward, factors: Tensor | None) -> Tensor:
    h = F.gelu(F.linear(F.layer_norm(u, u.shape[-1:], p.gain, p.offset, p.eps), p.fc1, p.fc1_bias))
    y = F.linear(h, p.last, p.last_bias)
    if factors is not None:
        y = y * factors.view(-1, 1, 1, 1)
    return y + (u if p.residual is None else F.linear(u, p.residual, p.residual_bias))


def leaves(p: FeedForward) -> list[Tensor]:
    return [value for value in vars(p).values() if isinstance(value, Tensor)]


@pytest.mark.parametrize("factors", [None, (0.0, 1.25, 1.0)], ids=["", "stochastic depth"])
@pytest.mark.parametrize("biases", [True, False], ids=["", "no biases"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape: tuple[int, int, int | None], biases: bool, factors: tuple[float, ...] | None) -> None:
    p = make(*shape, biases)
    u = torch.randn(3, 11, 13, shape[0], requires_grad=True)  # 143 rows of each sample: no share is full, or one and a piece
    drawn = None if factors is None else torch.tensor(factors)
    results = []
    for y in (formula(u, p, drawn), feed_forward(u, p, drawn)):
        torch.manual_seed(0)
        results.append([y, *torch.autograd.grad(y, [u, *leaves(p)], torch.randn_like(y))])
    for theirs, ours in zip(*results, strict=True):
        assert (theirs - ours).abs().max() < 1e-5 * theirs.abs().max()
        assert ours.stride() == torch.empty_like(ours, memory_format=torch.contiguous_format).stride()  # parallel training wants it


def test_threads_share_the_rows() -> None:
    p = make(20, 40, 8)
    u = torch.randn(2, 20, 20, 20, requires_grad=True)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            y = feed_forward(u, p)
            results.append([y, *torch.autograd.grad(y.square().sum(), [u, *leaves(p)])])
    finally:
        torch.set_num_threads(threads)
    for one, *others in zip(*results, strict=True):
        assert all((one - other).abs().max() <= 1e-5 * one.abs().max() for other in others)


def test_what_is_no_number_stays_in_its_row() -> None:
    p = make(20, 40, 8)
    u = torch.randn(1, 4, 5, 20)
    u[0, 2, 3, 7] = torch.nan
    y = feed_forward(u, p)
    assert y[0, 2, 3].isnan().all()
    assert y.isfinite().sum() == y.numel() - 8


def test_only_what_is_asked_for() -> None:
    """Frozen weights, and a map that comes turned as from a convolution."""
    p = make(20, 40, None)
    x = torch.randn(2, 20, 6, 4, requires_grad=True)
    frozen = dataclasses.replace(p, **{name: value.detach() for name, value in vars(p).items() if isinstance(value, Tensor)})
    frozen = dataclasses.replace(frozen, gain=torch.stack([frozen.gain] * 2, 1)[:, 0])  # numbers with gaps between
    (dx,) = torch.autograd.grad(feed_forward(x.permute(0, 2, 3, 1), frozen).sum(), x)
    (expected,) = torch.autograd.grad(formula(x.permute(0, 2, 3, 1), p, None).sum(), x)
    assert (dx - expected).abs().max() < 1e-5 * expected.abs().max()


def test_refuses_what_it_would_misread() -> None:
    p, u = make(20, 40, 8), torch.randn(2, 3, 3, 20)
    with pytest.raises(ValueError, match="12 channels"):
        feed_forward(u[..., :12], p)
    with pytest.raises(ValueError, match="float32"):
        feed_forward(u.double(), p)
    with pytest.raises(ValueError, match="do not go with 20 channels"):
        feed_forward(u, dataclasses.replace(p, residual=None))
    with pytest.raises(ValueError, match="2 samples"):
        feed_forward(u, p, torch.ones(3))

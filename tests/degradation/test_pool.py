"""The pool of training pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from drct.degradation import PairPool
from drct.errors import OptionError


def pairs(first: int, count: int = 2) -> tuple[Tensor, Tensor]:
    """Pairs whose values tell their number."""
    numbers = torch.arange(first, first + count).float().div(255).reshape(-1, 1, 1, 1)
    return numbers.expand(-1, 3, 4, 4).clone(), numbers.expand(-1, 3, 16, 16).clone()


def numbers_of(x: Tensor) -> list[int]:
    assert (x == x[:, :1, :1, :1]).all()
    return x[:, 0, 0, 0].mul(255).round().int().tolist()


def test_a_stored_pool_goes_on_with_batches_of_another_size() -> None:
    pool, generator = PairPool(12), torch.Generator().manual_seed(0)
    pool.exchange(*pairs(0, 6), generator)
    again = PairPool(12)
    again.load_state_dict(pool.state_dict())
    for first, filled in ((6, 8), (10, 12), (14, 12)):
        lq, gt = again.exchange(*pairs(first, 4), generator)
        assert numbers_of(lq) == numbers_of(gt)
        assert len(again) == filled


def test_pairs_stay_together_and_none_is_lost() -> None:
    pool, generator = PairPool(6), torch.Generator().manual_seed(0)
    given_out: list[int] = []
    for first in range(0, 6, 2):
        lq, gt = pool.exchange(*pairs(first), generator)
        assert numbers_of(lq) == numbers_of(gt) == [first, first + 1]  # as they came, until the pool is full
        assert len(pool) == first + 2
    for first in range(6, 200, 2):
        lq, gt = pool.exchange(*pairs(first), generator)
        assert numbers_of(lq) == numbers_of(gt)
        given_out += numbers_of(lq)
    assert len(set(given_out)) == len(given_out) == 194
    mixed = sum(abs(a - b) > 1 for a, b in zip(given_out[::2], given_out[1::2], strict=True))
    assert mixed > 60  # of 97 batches


def test_what_goes_in_is_copied() -> None:
    pool, generator = PairPool(2), torch.Generator()
    lq, gt = pairs(0)
    out = pool.exchange(lq, gt, generator)[0]
    lq.zero_()
    out.zero_()
    assert sorted(numbers_of(pool.exchange(*pairs(7), generator)[0])) == [0, 1]


@pytest.mark.parametrize("levels", [True, False])
def test_a_stored_pool_goes_on_the_same_way(levels: bool) -> None:
    offset = 0.0 if levels else 0.001
    pool, generator = PairPool(4), torch.Generator().manual_seed(3)
    for first in (0, 2):
        pool.exchange(*(x + offset for x in pairs(first)), generator)
    other, same = PairPool(4), torch.Generator()
    state = pool.state_dict()
    assert state["lq"].dtype == (torch.uint8 if levels else torch.float32)
    other.load_state_dict(state)
    same.set_state(generator.get_state())
    for first in range(4, 20, 2):
        ours, theirs = (p.exchange(*pairs(first), g) for p, g in ((pool, generator), (other, same)))
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


class DividesLikeCUDA(TorchDispatchMode):
    """Numbers that divide tensors are inverted first."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.div.Tensor and (not isinstance(args[1], Tensor) or args[1].ndim == 0):
            return args[0] * (1 / torch.tensor(float(args[1])))
        return func(*args, **(kwargs or {}))


def test_a_stored_pool_comes_back_as_its_device_divides() -> None:
    pool, other, by_cpu = PairPool(256), PairPool(256), pairs(0, 256)[0]
    with DividesLikeCUDA():
        given = pairs(0, 256)
        assert (given[0] != by_cpu).any()
        pool.exchange(*given, torch.Generator())
        state = pool.state_dict()
    assert state["lq"].dtype == torch.uint8
    other.load_state_dict(state)  # on the CPU
    assert torch.equal(other.state_dict()["gt"], state["gt"])
    with DividesLikeCUDA():
        ours, theirs = (p.exchange(*pairs(0, 256), torch.Generator()) for p in (pool, other))
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


def test_a_pool_that_is_stored_half_full_goes_on_filling() -> None:
    pool, generator = PairPool(4), torch.Generator()
    empty = PairPool(4)
    empty.load_state_dict(pool.state_dict())
    assert len(empty) == 0
    pool.exchange(*pairs(0), generator)
    other = PairPool(4)
    other.load_state_dict(pool.state_dict())
    assert len(other) == 2
    assert numbers_of(other.exchange(*pairs(2), generator)[0]) == [2, 3]
    assert sorted(numbers_of(other.exchange(*pairs(4), generator)[1])) != [4, 5]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(OptionError, match="queue_size is 0"):
        PairPool(0)
    pool, generator = PairPool(4), torch.Generator()
    with pytest.raises(OptionError, match="queue_size 4 is not a multiple of the batch size 3"):
        pool.exchange(*pairs(0, 3), generator)
    with pytest.raises(OptionError, match="2 low-quality images, but 1"):
        pool.exchange(pairs(0)[0], pairs(0, 1)[1], generator)
    pool.exchange(*pairs(0), generator)
    with pytest.raises(OptionError, match="the pool holds pairs of"):
        pool.exchange(torch.zeros(2, 3, 5, 5), torch.zeros(2, 3, 20, 20), generator)
    with pytest.raises(OptionError, match="room for 4 pairs, but queue_size is 6"):
        PairPool(6).load_state_dict(pool.state_dict())

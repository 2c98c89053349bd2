"""Chunks of work on several threads."""

from __future__ import annotations

import threading

import pytest
import torch

from drct.engine.cpu.workers import for_each, split


@pytest.fixture(autouse=True)
def two_threads() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_every_item_once_on_threads_of_their_own() -> None:
    seen, settings = [], set()

    def work(item: int) -> None:
        assert torch.is_inference_mode_enabled()
        seen.append(item)
        settings.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))

    with torch.inference_mode():
        for_each(work, range(100))
    assert sorted(seen) == list(range(100))
    assert settings == {(False, 1)}
    assert torch.get_num_threads() == 2


def test_errors_come_back() -> None:
    def work(item: int) -> None:
        if item == 5:
            raise ValueError("five")

    with pytest.raises(ValueError, match="five"):
        for_each(work, range(10))
    for_each(work, range(5))


def test_two_callers_share_the_threads() -> None:
    counts = [0, 0]

    def caller(which: int) -> None:
        torch.set_num_threads(2)
        for_each(lambda item: counts.__setitem__(which, counts[which] + item), [1] * 20)

    callers = [threading.Thread(target=caller, args=(i,)) for i in range(2)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(timeout=30)
    assert all(count > 0 for count in counts)


@pytest.mark.parametrize(("total", "size"), [(64, 4), (1, 4), (7, 4), (9, 4), (100, 1000)])
def test_split(total: int, size: int) -> None:
    parts = split(total, size)
    assert [i for start, end in parts for i in range(start, end)] == list(range(total))
    assert max(end - start for start, end in parts) <= max(size, 1)

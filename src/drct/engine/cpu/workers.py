"""Threads that each work on whole chunks, one operator thread per worker.

Sharing single operators among threads would cost a barrier for each of some ten thousand small operators, and on a busy
machine every barrier waits for the unluckiest thread. Chunks are handed out one by one instead, and threads meet once per block.
Operators release the interpreter lock, so Python threads are enough.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}


def for_each(function: Callable[[T], None], items: Iterable[T]) -> None:
    """Call ``function`` once for each item, on as many threads as torch uses (``torch.get_num_threads()``).

    The order of calls is open; the first error is raised again. Single items run in the caller's thread, where the
    operators themselves may use all threads.
    """
    items = list(items)
    threads = _threads()
    if threads == 1 or len(items) == 1:
        for item in items:
            function(item)
        return
    remaining = iter(items)
    inference = torch.is_inference_mode_enabled()

    def work() -> None:
        with torch.inference_mode(inference):
            while True:
                with hand_out:
                    item = next(remaining, None)
                if item is None:
                    return
                function(item)

    hand_out = threading.Lock()
    futures: list[Future[None]] = []
    try:
        pool = _pool(threads)
        futures.extend(pool.submit(work) for _ in range(min(threads, len(items))))
    except RuntimeError:  # the main thread has ended: Python starts no threads any more, while others of the caller's go on
        work()
    _collect(futures)


def split(total: int, size: int) -> list[tuple[int, int]]:
    """Bounds of nearly equal parts of ``range(total)``: about ``size`` long, as many as keep all threads equally busy."""
    threads = torch.get_num_threads()
    count = -(-total // size)
    if count >= threads:
        count = -(-count // threads) * threads
    count = min(count, total)
    return [(total * i // count, total * (i + 1) // count) for i in range(count)]


def _collect(futures: list[Future[None]]) -> None:
    errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None:
            raise error


def get_ready() -> None:
    """Start the threads now: threads of the caller that are born while they start would go on with one thread each."""
    if (threads := _threads()) > 1:
        with contextlib.suppress(RuntimeError):  # as in for_each
            _pool(threads)


def _threads() -> int:
    """Threads that torch uses here; while a pool starts, this waits, since torch would tell a new thread 1."""
    with _lock:
        return torch.get_num_threads()


def _pool(threads: int) -> ThreadPoolExecutor:
    with _lock:
        if threads not in _pools:
            _pools[threads] = _start(threads)
        return _pools[threads]


def _start(threads: int) -> ThreadPoolExecutor:
    """A pool whose threads run operators alone; the caller's setting stays what it was."""
    ready = threading.Barrier(threads + 1)

    def one_thread_each() -> None:
        # holds for this thread only, but is also what threads born later start with; asking makes the thread keep its own
        torch.set_num_threads(1)
        torch.get_num_threads()
        ready.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="drct", initializer=one_thread_each)
    try:
        for _ in range(threads):
            pool.submit(int)
    except RuntimeError:  # no more threads can be had: those that wait for them are let go
        ready.abort()
        raise
    ready.wait()
    torch.set_num_threads(threads)
    return pool


def _forget_pools() -> None:
    """A forked child has none of its parent's threads, and OpenMP would wait for them for ever: it goes on with one.

    Loading weights and single operators start those threads, too, and nobody tells whether they did.
    """
    global _lock
    _lock = threading.Lock()
    _pools.clear()
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)

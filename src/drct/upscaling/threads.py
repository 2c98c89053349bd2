"""Threads that read and write while the caller's computes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class OneThread(ThreadPoolExecutor):
    """One thread beside the caller's.

    Python closes all executors when its main thread ends, though other threads of the caller's go on: from then on these do such
    work themselves.
    """

    def __init__(self, name: str) -> None:
        super().__init__(1, name)

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        """As for any executor; at the end of the main thread the call is over when this returns."""
        try:
            return super().submit(function, *args, **options)
        except RuntimeError as error:
            if "interpreter shutdown" not in str(error):
                raise
        done: Future[Any] = Future()
        try:
            done.set_result(function(*args, **options))
        except BaseException as error:
            done.set_exception(error)
        return done

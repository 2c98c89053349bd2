"""Callbacks of those who call: what they raise is theirs, and is never taken for an error of the work they hear of."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec

_P = ParamSpec("_P")


class _Raised(BaseException):
    """Carries what a callback raised past all handlers that take care of ``Exception`` at most, to the shield it came through."""

    def __init__(self, error: Exception, shield: object) -> None:
        super().__init__(error)
        self.error = error
        self.shield = shield


@contextlib.contextmanager
def shielded(callback: Callable[_P, None]) -> Iterator[Callable[_P, None]]:
    """Gives a callback whose errors are raised at the end of the block, and are seen by no handler within. Blocks may be nested."""
    shield = object()

    @functools.wraps(callback)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        except Exception as error:
            raise _Raised(error, shield) from error

    error: Exception | None = None
    try:
        yield call
    except _Raised as raised:
        if raised.shield is not shield:
            raise
        error = raised.error
    if error is not None:  # outside of the handler, so that nothing is added to its context
        raise error


def nothing_told(_: float) -> None:
    """Progress that nobody listens to."""

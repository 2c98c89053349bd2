"""Callbacks of those who call: what they raise is theirs, and is never taken for an error of the file in work."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec

_P = ParamSpec("_P")


class _Raised(BaseException):
    """Carries what a callback raised past the handlers of files, which take care of ``Exception`` at most."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


def shielded(callback: Callable[_P, None]) -> Callable[_P, None]:
    """A callback whose errors are seen by nothing but the :func:`delivered` around its call."""

    @functools.wraps(callback)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            callback(*args, **kwargs)
        except Exception as error:
            raise _Raised(error) from error

    return call


@contextlib.contextmanager
def delivered() -> Iterator[None]:
    """Raises here what a :func:`shielded` callback raised inside."""
    error: Exception | None = None
    try:
        yield
    except _Raised as raised:
        error = raised.error
    if error is not None:  # outside of the handler, so that nothing is added to its context
        raise error

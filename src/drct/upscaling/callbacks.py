"""Callbacks of those who call: what they raise is theirs, and is never taken for an error of the work they hear of."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Generic, ParamSpec

_P = ParamSpec("_P")


class _Raised(BaseException):
    """Carries what a callback raised past all handlers that take care of ``Exception`` at most, to the shield it came through."""

    def __init__(self, error: Exception, shield: object) -> None:
        super().__init__()
        self.error: Exception | None = error
        self.shield = shield


class _Shield(AbstractContextManager[Callable[_P, None]], Generic[_P]):
    # no generator: contextlib would turn StopIteration into another error

    def __init__(self, callback: Callable[_P, None]) -> None:
        self.callback = callback

    def __enter__(self) -> Callable[_P, None]:
        @functools.wraps(self.callback)
        def call(*args: _P.args, **kwargs: _P.kwargs) -> None:
            try:
                self.callback(*args, **kwargs)
            except Exception as error:
                raise _Raised(error, self) from None

        return call

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, traceback: TracebackType | None) -> None:
        if not isinstance(raised, _Raised) or raised.shield is not self or raised.error is None:
            return
        # The error goes on alone. Anything that led from it to the frames of the work, or back to itself, would keep an image of
        # the work in memory until Python happens to look for cycles.
        error, raised.error = raised.error, None
        raised.__context__ = None
        context = error.__context__
        try:
            raise error
        finally:
            error.__context__ = context
            del error, raised, traceback


def shielded(callback: Callable[_P, None]) -> AbstractContextManager[Callable[_P, None]]:
    """Gives a callback whose errors are raised at the end of the block, and are seen by no handler within. Blocks may be nested."""
    return _Shield(callback)


def nothing_told(_: float) -> None:
    """Progress that nobody listens to."""

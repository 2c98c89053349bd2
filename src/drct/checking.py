"""Options that cannot be, told in one line; for every room that checks its options by pydantic."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

from drct.errors import did_you_mean

if TYPE_CHECKING:
    from pydantic import ValidationError


def first_problem(
    error: ValidationError,
    known: Iterable[str],
    *,
    noun: str = "option",
    depth: int | None = None,
    branches: Collection[str] = (),
    expected: Mapping[str, str] | None = None,
) -> str:
    """The first problem of a validation error in one line.

    Args:
        error: as pydantic raised it.
        known: the valid keys, of which the one nearest to an unknown key is named.
        noun: what a key is called.
        depth: how far options are nested; what pydantic names below that are branches of unions and parts of a value.
        branches: steps of a location that are branches of a union and no keys.
        expected: what must stand at a location, where that is said more simply than pydantic does.
    """
    first = error.errors()[0]
    keys = [str(step) for step in first["loc"][:depth] if step not in branches]
    where = ".".join(keys)
    if first["type"] == "extra_forbidden":
        return f"{noun} '{where}' is unknown{did_you_mean(keys[-1], known)}"
    if first["type"] == "missing":
        return f"{noun} '{where}' is missing"
    message = first["msg"].removeprefix("Value error, ")
    if not where:
        return message
    if isinstance(first["input"], dict):  # a group of options, too long to repeat
        return f"{where}: {message}"
    return f"{where} is {first['input']!r}: {(expected or {}).get(where, message)}"

"""libvips, set up once for the whole house."""

from __future__ import annotations

import functools
import logging
import os

import pyvips

from drct.errors import ImageError

# libvips' own warnings reach Python through this logger; without a handler Python would print them to stderr.
logging.getLogger("pyvips").addHandler(logging.NullHandler())
# No operation cache: it would keep files open, and serve old pixels when a file changes under the same name.
pyvips.cache_set_max(0)

OLDEST = (8, 16)  # the oldest libvips that is tried; before 8.15 its savers had other options

# What libvips and its codecs say, in lower case, and what it means to a person.
CAUSES = (
    (("no space left",), "the disk is full"),
    (
        ("not been built in", "no decoder plugin", "unsupported codec"),
        "the installed libvips has no decoder for it: convert it to another format first",
    ),
    (("bad labq format",), "the installed libvips cannot read Lab of 8 bits: convert it to RGB, or to 16 bits, first"),
    (("out of memory", "unable to allocate", "cannot allocate"), "not enough memory"),
)
# what it says of files that are cut off or damaged when it reads them
CUT_OFF = (
    *("premature end", "truncated", "unexpected end", "end of file", "libpng read error", "failed to read directory"),
    *("io error", "not enough", "short read", "out of data", "no data", "references data outside", "unable to parse image"),
    *("invalid input", "invalid frame data", "incorrect data check", "incorrect header check"),
    "jxldecoderprocessinput",
)


class _Process:
    """Whether libvips works in this process: its threads do not survive a fork, and a child would wait for them for ever."""

    used = False
    forked = False


def _after_fork() -> None:
    _Process.forked = _Process.used


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def enter(what: object) -> None:
    """To be called before libvips computes anything.

    Raises:
        ImageError: in a process that was forked from one that had used libvips, or where libvips is too old.
    """
    if _Process.forked:
        raise ImageError(
            f"{what}: images cannot be processed in a process forked after its parent did: start it by spawn or forkserver"
        )
    found = pyvips.version(0), pyvips.version(1)
    if found < OLDEST:
        raise ImageError(
            f"libvips {found[0]}.{found[1]} is installed, but {OLDEST[0]}.{OLDEST[1]} or newer is needed: pip install pyvips-binary"
        )
    _Process.used = True


def cause(error: pyvips.Error, done: str = "decoded") -> str:
    """The one thing in libvips' many lines that a person wants to know; ``done`` is what was to be done with the picture."""
    lines = [line.strip() for line in str(error.detail).splitlines() if line.strip() and "bad seek" not in line]
    whole = " ".join(lines).lower()
    for needles, plain in CAUSES:
        if any(needle in whole for needle in needles):
            return plain
    if done == "decoded" and any(needle in whole for needle in CUT_OFF):
        return "the file is cut off or damaged"
    detail = next((line for line in lines if not line.rstrip(":").endswith("load error")), "")
    if detail:
        return f"cannot be {done} ({detail.split(': ', 1)[-1]})"
    return "the file is cut off or damaged" if done == "decoded" else f"cannot be {done}"


@functools.cache
def has_operation(name: str) -> bool:
    """Whether this libvips was built with an operation such as ``heifload_source``."""
    return bool(pyvips.type_find("VipsOperation", name))


__all__ = ["cause", "enter", "has_operation", "pyvips"]

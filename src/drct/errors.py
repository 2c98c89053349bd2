"""Errors that a user can act on.

Every mistake that a user, an option file or an input file can make ends in a subclass of :class:`Error` whose message is
one line: what was wrong, in which file, and what to do. ``code`` is stable across releases, so programs may branch on it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# what drivers, cuBLAS, cuDNN and torch on the CPU say in plain RuntimeErrors
MEMORY_FULL = re.compile(r"out of memory|ALLOC_FAILED|can't allocate memory|not enough memory", re.IGNORECASE)


class Error(Exception):
    """Base class of all errors that drct raises for reasons outside its own code.

    ``told`` is set when another process of the same run has shown the message, so that one line stays one line.
    """

    code = "error"
    told = False


class OptionError(Error):
    """An option is unknown, out of range, or does not go together with another one."""

    code = "option"


class ImageError(Error):
    """An image file cannot be read or written."""

    code = "image"


class VideoError(Error):
    """A video file cannot be read or written."""

    code = "video"


class CheckpointError(Error):
    """A weight file cannot be read, is unsafe, or does not fit the network."""

    code = "checkpoint"


class ModelNotFoundError(Error):
    """No bundled, downloaded or local model answers to the given name."""

    code = "model_not_found"


class DownloadError(Error):
    """A file could not be downloaded, or what arrived is not the file that was announced."""

    code = "download"


class DeviceError(Error):
    """The requested device, precision or kernel is not available here."""

    code = "device"


class OutOfMemoryError(Error):
    """The device or the computer has not enough memory: for the smallest tile, an image, a result, or a step of training."""

    code = "out_of_memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, in the words of torch, its libraries, drivers and Python."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and MEMORY_FULL.search(str(error)) is not None)


class DataError(Error):
    """A data set is empty, incomplete, or its pairs do not fit each other."""

    code = "data"


class ManifestError(Error):
    """The record of a folder of results cannot be read or written."""

    code = "manifest"


class MissingDependencyError(Error):
    """An optional package is needed; the message names the extra that brings it."""

    code = "missing_dependency"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the closest known word, or ``""`` when nothing is close."""
    match = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.6)
    return f" (did you mean '{match[0]}'?)" if match else ""

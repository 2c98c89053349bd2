"""How much memory tiles may take, and which tile size follows from it.

The choice must be the same on every run of one machine, or the bytes of the results would depend on what else was running. So it
follows from how much memory the device *has*, rounded down to a power of two; only where less than the need is free at the
moment is the next smaller size taken, and that is reported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from drct.imaging import PictureInfo
from drct.upscaling.tiles import ladder

LARGEST_TILE = 512  # measured: time per pixel is flat from 64 to 512, so that what larger tiles save is overlap, here 13 %
SHARE = 4  # a tile's working memory is at most this part of the device's
WHOLE = 1.5  # an image up to so many times the area of the largest tile is not cut
STRIP_BYTES = 512 << 20  # of the results of one row of tiles in 16-bit RGB
STRIPS_FROM = 32  # images that with their results take more than this part of the memory are read and written in strips


class Sized(Protocol):
    """A program that knows what it needs; :class:`drct.engine.Program` does."""

    @property
    def pad_multiple(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def memory_estimate(self, height: int, width: int, batch: int = 1) -> int: ...


def choose_tile(program: Sized, height: int, width: int) -> int | None:
    """The tile size for an image on the program's device; None for the image as a whole."""
    budget = memory_class(program.device) // SHARE
    largest = largest_tile(program)
    if height * width <= WHOLE * largest**2 and program.memory_estimate(height, width) <= budget:
        return None
    return largest


def largest_tile(program: Sized) -> int:
    """The largest size of the ladder whose working memory is at most its share of the device's; at least the smallest size."""
    budget = memory_class(program.device) // SHARE
    sizes = [size for size in ladder(program.pad_multiple) if size <= LARGEST_TILE]
    return max((size for size in sizes if program.memory_estimate(size, size) <= budget), default=sizes[0])


def choose_batch(program: Sized, tile: int | None) -> int:
    """Tiles that go through the network at once: one on a CPU, a few where a GPU would not be filled by one."""
    return 1 if tile is None or program.device.type != "cuda" else images_at_once(program, tile, tile)


def images_at_once(program: Sized, height: int, width: int) -> int:
    """How many images fill a GPU together: a power of two, 8 at most."""
    budget = memory_class(program.device) // SHARE
    count = 1
    while (
        count < 8 and 2 * count * height * width <= LARGEST_TILE**2 and program.memory_estimate(height, width, 2 * count) <= budget
    ):
        count *= 2
    return count


def strip_rows(width: int, scale: int) -> int:
    """Height of tiles whose results, side by side over the width of an image, take :data:`STRIP_BYTES`."""
    return STRIP_BYTES // (scale**2 * width * 3 * 2)


def wants_strips(info: PictureInfo, size: tuple[int, int]) -> bool:
    """Whether a picture, or its result of ``(height, width)``, is too large to be held as a whole.

    It decides about memory only: the bytes of the result are the same.
    """
    samples = (info.channels + info.has_alpha) * np.dtype(info.depth).itemsize
    total = (info.height * info.width + size[0] * size[1]) * samples
    return total > (1 << (system_memory().bit_length() - 1)) // STRIPS_FROM


def need(program: Sized, tile: int | None, height: int, width: int) -> int:
    """Bytes that the tiles of an image take on the device."""
    if tile is None:
        return program.memory_estimate(height, width)
    return program.memory_estimate(min(tile, height), min(tile, width), choose_batch(program, tile))


def memory_class(device: torch.device) -> int:
    """Bytes that the device has, rounded down to a power of two."""
    total = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else system_memory()
    return 1 << (total.bit_length() - 1)


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on the device now."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    return free_system_memory()


def system_memory() -> int:
    """Bytes of memory that this process may use: the computer's, or less where a container is limited."""
    limits = [limit for limit, _ in _cgroups()]
    return min([_physical_memory(), *limits])


def free_system_memory() -> int:
    """Bytes of memory that this process can still get without pushing others out."""
    free = [limit - used for limit, used in _cgroups()]
    available = _proc_meminfo("MemAvailable")
    return max(0, min([_physical_memory() if available is None else available, *free]))


def _physical_memory() -> int:
    total = _proc_meminfo("MemTotal")
    if total is not None:
        return total
    if sys.platform == "win32":
        import ctypes

        class Status(ctypes.Structure):  # MEMORYSTATUSEX
            _fields_ = (
                ("length", ctypes.c_ulong),
                ("load", ctypes.c_ulong),
                ("total", ctypes.c_ulonglong),
                ("others", ctypes.c_ulonglong * 6),
            )

        status = Status(length=ctypes.sizeof(Status))
        ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status))
        return int(status.total)
    import os

    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _proc_meminfo(name: str) -> int | None:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return None
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    return None


def _cgroups(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of every control group (version 2 and 1) that bounds this process.

    The use is without the cache of files that were not read lately: the kernel gives it up before anybody lacks memory.
    """
    if not own.is_file():
        return
    for line in own.read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        if controllers:
            top, limit_file, use_file = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"  # that of the groups below counts too, as their use does
        else:
            top, limit_file, use_file, cache = root, "memory.max", "memory.current", "inactive_file"
        group = top / name.lstrip("/")
        # inside a container the path of the group is that of the host, and the limit stands at the top
        for folder in dict.fromkeys([group, *group.parents, top]):
            if folder.is_relative_to(top) and (folder / limit_file).is_file() and (folder / use_file).is_file():
                limit = (folder / limit_file).read_text().strip()
                if limit.isdigit() and int(limit) < 1 << 60:
                    used = int((folder / use_file).read_text()) - _statistic(folder / "memory.stat", cache)
                    yield int(limit), max(0, used)


def _statistic(path: Path, name: str) -> int:
    """A number of a file with a name and a number in each line; 0 if it is not there."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((int(value) for key, _, value in (line.partition(" ") for line in lines) if key == name), 0)

"""The processes that train together, and how a run is told to stop."""

from __future__ import annotations

import dataclasses
import os
import signal
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from drct.errors import DeviceError


@dataclasses.dataclass(frozen=True)
class Process:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all must ask."""
        if self.world_size == 1:
            return flag
        raised = torch.tensor(int(flag), device=self.device)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return bool(raised)

    def gather(self, thing: Any) -> list[Any]:
        """What each process brings, in the main process; an empty list in the others. All must take part."""
        if self.world_size == 1:
            return [thing]
        things: list[Any] = [None] * self.world_size
        dist.gather_object(thing, things if self.is_main else None)
        return things if self.is_main else []


class processes(AbstractContextManager[Process]):
    """Join the other processes that torchrun started, if it did; leave them at the end.

    Args:
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.

    Raises:
        DeviceError: CUDA was asked for and is not there.
    """

    def __init__(self, device: str) -> None:
        self.wanted = device

    def __enter__(self) -> Process:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
        cuda = torch.cuda.is_available()
        if self.wanted.startswith("cuda") and not cuda:
            raise DeviceError(f"device '{self.wanted}' was asked for, but this torch finds no CUDA GPU: use --device cpu")
        name = self.wanted if self.wanted != "auto" else "cuda" if cuda else "cpu"
        device = torch.device(f"cuda:{local}" if name == "cuda" and world_size > 1 else name)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        self.joined = world_size > 1
        if self.joined:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return Process(rank, world_size, device)

    def __exit__(self, *exc: object) -> None:
        if self.joined:
            dist.destroy_process_group()


class StopSignals(AbstractContextManager["StopSignals"]):
    """Remembers the first SIGINT or SIGTERM in ``raised``, for a checkpoint and a clean end; a second one ends at once."""

    def __init__(self) -> None:
        self.raised = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        def handle(number: int, frame: FrameType | None) -> None:
            self.raised = True
            signal.signal(number, self.before[number])

        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, handle)
        except ValueError:
            self.before = {}  # not in the main thread: the caller's own handling stays
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

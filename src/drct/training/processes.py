"""The processes that train together, and how a run is told to stop."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from drct.engine.devices import resolve_device
from drct.errors import Error
from drct.training.peers import LISTENING, Peers

PATIENCE = timedelta(minutes=30)  # for a collective; long, since the others wait while rank 0 validates


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

    def share(self, thing: Any) -> list[Any]:
        """What each process brings, in all of them, by rank. All must take part."""
        if self.world_size == 1:
            return [thing]
        things: list[Any] = [None] * self.world_size
        dist.all_gather_object(things, thing)
        return things


class processes(AbstractContextManager[Process]):
    """Join the other processes that torchrun started, if it did; leave them at the end.

    When one of them ends early, the others raise :class:`drct.training.peers.ProcessError`; a process that is held up in a
    collective which does not return says so itself and exits with code 1.

    Args:
        device: ``"auto"`` (each process its CUDA GPU, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        advice: says how to go on after that.

    Raises:
        DeviceError: there is no such device.
    """

    def __init__(self, device: str, advice: Callable[[], str] = lambda: "start again") -> None:
        self.wanted, self.advice = device, advice
        self.peers: Peers | None = None
        self.before: Any = None

    def __enter__(self) -> Process:
        world_size = int(os.environ.get("WORLD_SIZE", "1"))
        rank, local = int(os.environ.get("RANK", "0")), int(os.environ.get("LOCAL_RANK", "0"))
        name = self.wanted if self.wanted != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        with one_voice():
            device = resolve_device(f"cuda:{local}" if name == "cuda" and world_size > 1 else name)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        if world_size > 1:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
            with contextlib.suppress(ValueError):  # not in the main thread
                self.before = signal.signal(signal.SIGTERM, _end_soon)
            self.peers = Peers(rank, world_size, device, self.advice)
        return Process(rank, world_size, device)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self.peers is None:
            return
        if error is not None:
            raised = self.peers.fail(error)
            # what is left of the collectives may wait for those that are gone
            leaving = threading.Thread(target=dist.destroy_process_group, daemon=True)
            leaving.start()
            leaving.join(LISTENING)
            if raised is not error:
                raise raised from error
            return
        self.peers.leave()
        dist.destroy_process_group()
        if self.before is not None:
            signal.signal(signal.SIGTERM, self.before)


def _end_soon(number: int, frame: FrameType | None) -> None:
    """torchrun sends SIGTERM to all when one process is gone: leave time to say why."""
    signal.signal(number, signal.SIG_DFL)
    timer = threading.Timer(LISTENING, os.kill, (os.getpid(), number))
    timer.daemon = True
    timer.start()


@contextlib.contextmanager
def one_voice() -> Iterator[None]:
    """For errors that all processes of a machine run into alike, before they have met: only the first one says it."""
    try:
        yield
    except Error as error:
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(2 * LISTENING)  # torchrun ends all when one leaves; the first may be slower
            error.told = True
        raise


class StopSignals(AbstractContextManager["StopSignals"]):
    """Remembers SIGINT or SIGTERM in ``raised``, for a checkpoint and a clean end; a second SIGINT ends at once.

    Further SIGTERMs are ignored: Slurm and torchrun send one each, and saving may take longer than they lie apart.
    """

    def __init__(self) -> None:
        self.raised = False
        self.before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        def handle(number: int, frame: FrameType | None) -> None:
            self.raised = True
            if number == signal.SIGINT:
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

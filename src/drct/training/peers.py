"""Notices at once that a process of a distributed run has ended, and has it said in one line by one process.

Collectives notice it too, each in its way: Gloo by an exception from wherever the process stands, NCCL by a timeout of minutes or
by taking the process down with pages of text. So the processes hold plain TCP connections beside them, in a star around rank 0:
whatever ends a process, ``kill -9`` too, its system closes them.

A process sends one line before it ends: ``null`` when its work is done, else whose error stopped it, and which.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, TextIO

import torch
import torch.distributed as dist

from drct.errors import Error

CONNECTING = 120.0  # seconds until all processes must have found the first one
LONGEST = 1 << 16  # characters of a line
LISTENING = 5.0  # seconds that a process waits for what the others say about an error


class ProcessError(Error):
    """Another process of the run has ended, so this one cannot go on."""

    code = "process"


class Peers:
    """The other processes that train together.

    Args:
        rank: of this process.
        world_size: number of processes; the default process group has been initialized by all of them.
        device: where collectives keep their tensors.
        advice: says what is left and how to go on; the end of the line.

    Attributes:
        noticed: set when another process has ended before its work was done.
    """

    def __init__(self, rank: int, world_size: int, device: torch.device, advice: Callable[[], str]) -> None:
        self.rank, self.world_size, self.advice = rank, world_size, advice
        # Gloo raises in the main thread, which should end the run by itself; NCCL would write its pages meanwhile
        self.grace = LISTENING if device.type == "cpu" else 0.2
        self.noticed = threading.Event()
        self._ended: tuple[int, str] | None = None
        self._left = False  # rank 0 has, its work done
        self._leaving = threading.Event()
        self._lock = threading.Lock()
        self._links: dict[int, tuple[socket.socket, TextIO]] = self._connect(device)
        self._listeners = [threading.Thread(target=self._listen, args=(r,), name="drct-peer", daemon=True) for r in self._links]
        for listener in self._listeners:
            listener.start()

    def _connect(self, device: torch.device) -> dict[int, tuple[socket.socket, TextIO]]:
        """One connection to each process in rank 0, one to rank 0 in the others."""
        alone = os.environ.get("LOCAL_WORLD_SIZE") == str(self.world_size)
        host = "127.0.0.1" if alone else os.environ.get("MASTER_ADDR", "127.0.0.1")
        if self.rank == 0:
            server = socket.create_server(("127.0.0.1" if alone else "", 0), backlog=self.world_size)
            server.settimeout(CONNECTING)
        met: list[Any] = [server.getsockname()[1], secrets.token_hex(16)] if self.rank == 0 else [None, None]
        dist.broadcast_object_list(met, device=device)
        port, word = met
        links: dict[int, tuple[socket.socket, TextIO]] = {}
        try:
            if self.rank:
                link = socket.create_connection((host, port), timeout=CONNECTING)
                link.sendall(f"{word} {self.rank}\n".encode())
                links[0] = link, link.makefile("r", encoding="utf-8")
            else:
                with server:
                    while len(links) < self.world_size - 1:
                        link, _ = server.accept()
                        link.settimeout(CONNECTING)
                        file = link.makefile("r", encoding="utf-8", errors="replace")
                        greeting = file.readline(LONGEST).split()
                        if len(greeting) == 2 and greeting[0] == word:
                            links[int(greeting[1])] = link, file
                        else:
                            link.close()  # a stranger
        except OSError as error:
            raise ProcessError(
                f"the process of rank {self.rank} found no connection to {host}:{port} of rank 0 ({error})"
            ) from None
        for link, _ in links.values():
            link.settimeout(None)
            _keep_alive(link)
        return links

    # ------------------------------------------------------------------------------------------------- listening

    def _listen(self, rank: int) -> None:
        """Wait for the one line of a process, or for its end without it."""
        try:
            line = self._links[rank][1].readline(LONGEST)
        except OSError:
            line = ""
        if not line.endswith("\n"):
            ended, why = rank, ""
        elif (said := json.loads(line)) is None:
            self._left = True
            return
        else:
            ended, why = said
        with self._lock:
            if self._ended is not None or self._leaving.is_set():
                return
            self._ended = ended, why
        self.noticed.set()
        if self.rank == 0:
            self._send([ended, why])
        if not self._leaving.wait(self.grace):
            # the main thread is where no exception reaches it: inside a collective of the GPU, or at work for long
            error = self.error()
            if not error.told:
                print(f"drct: error: {error}", file=sys.stderr, flush=True)
            os._exit(1)

    def error(self) -> ProcessError:
        """What has happened, after :attr:`noticed`."""
        assert self._ended is not None
        rank, why = self._ended
        what = f"was stopped by an error ({why})" if why else "was killed or crashed"
        error = ProcessError(f"the process of rank {rank} {what}, so training has ended; {self.advice()}")
        if self.rank:
            # rank 0 speaks for all; when it is the one that was killed, the first of each machine does
            first = self.rank == 1 or os.environ.get("LOCAL_RANK") == "0"
            error.told = bool(why) or rank != 0 or not first
        return error

    # --------------------------------------------------------------------------------------------------- leaving

    def leave(self) -> None:
        """The work is done."""
        self._leaving.set()
        self._send(None)
        for link, _ in self._links.values():
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def fail(self, error: BaseException) -> BaseException:
        """Tell the others that this process ends by an exception; returns the one to raise, this or a clearer one."""
        if isinstance(error, RuntimeError | OSError):
            if self.noticed.wait(LISTENING):  # what the collectives make of it
                self._leaving.set()
                return self.error()
            if re.search(r"time[d ]*out", str(error), re.IGNORECASE):
                error = ProcessError(f"the processes did not answer each other in time, so training has ended; {self.advice()}")
        self._leaving.set()
        why = str(error) if isinstance(error, Error) else f"{type(error).__name__} {error}"
        self._send([self.rank, " ".join(why.split())])
        if self.rank and isinstance(error, Error):
            # torchrun ends all when one leaves: stay until rank 0 has said the line and closed its end
            self._listeners[0].join(LISTENING)
            error.told = not self._listeners[0].is_alive() and not self._left
        return error

    def _send(self, line: Any) -> None:
        for link, _ in self._links.values():
            with contextlib.suppress(OSError):  # that one is gone already
                link.sendall(json.dumps(line).encode() + b"\n")


def _keep_alive(link: socket.socket) -> None:
    """Notice within a minute that a machine has lost power or network."""
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 4)):
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

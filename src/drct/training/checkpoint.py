"""Checkpoints: everything a run needs to go on with the same numbers, written so that a crash never leaves half a file."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from drct.errors import CheckpointError, OptionError
from drct.places import locked
from drct.weights.files import read_pickle
from drct.weights.save import write_atomically


@dataclasses.dataclass
class State:
    """State of a run after ``iteration`` optimizer steps.

    Data order and random numbers need no entry: both follow from the seed and the iteration. ``discriminator`` holds the state of
    that network and its optimizer, ``pairs`` for each process what its pool of training pairs holds; both may be empty. ``images``
    is the number of training images, 0 where it was not noted, ``judged`` a hash of what ``best`` was measured by, and ``rates`` by
    key what may be changed before the run goes on, see :func:`drct.training.loop.changeable_rates`.
    """

    iteration: int
    network: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    ema_updates: int
    optimizer: dict[str, Any]
    best: dict[str, float]
    options_sha256: str
    discriminator: dict[str, Any] = dataclasses.field(default_factory=dict)
    pairs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    images: int = 0
    judged: str = ""
    rates: dict[str, float | None] = dataclasses.field(default_factory=dict)


def save_atomically(content: Any, path: Path) -> None:
    """``torch.save`` to a temporary name, flushed to disk, then renamed. A full disk leaves earlier checkpoints as they were."""
    try:
        write_atomically(path, functools.partial(torch.save, content))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; what was saved earlier is intact: make room and go on with --resume auto") from error


def save_state(state: State, folder: Path, keep: int = 2) -> Path:
    """Write ``iteration_N.state`` and remove all but the newest ``keep``; what was just written stays in any case."""
    path = folder / f"iteration_{state.iteration:08d}.state"
    save_atomically({f.name: getattr(state, f.name) for f in dataclasses.fields(state)}, path)
    for old in list_states(folder)[:-keep]:
        if old != path:
            old.unlink()
    return path


def list_states(folder: Path) -> list[Path]:
    """Checkpoints of a run, oldest first."""
    return sorted(p for p in folder.glob("iteration_*.state") if re.fullmatch(r"iteration_\d+\.state", p.name))


def newer_states(folder: Path, iteration: int) -> list[Path]:
    """Checkpoints of more than ``iteration`` steps, oldest first."""
    return [p for p in list_states(folder) if steps_of(p) > iteration]


def steps_of(state: Path) -> int:
    """Of how many steps a checkpoint is, as its name tells."""
    return int(state.name[len("iteration_") : -len(".state")])


def set_aside(states: list[Path]) -> None:
    """Rename checkpoints that a run went back behind to ``iteration_N.state.abandoned``, and the best weights of that time alike;
    where something of this name is there from an earlier return, to ``.abandoned.2`` and so on.

    No run goes on from them, and none removes them: taking the ending away brings them back.
    """
    for path in states:
        names = (path.with_name(f"{path.name}.abandoned{number}") for number in ("", *(f".{n}" for n in range(2, 10_000))))
        path.replace(next(name for name in names if not name.exists()))


def load_state(path: Path) -> State:
    """Read a checkpoint by the safe unpickler.

    Raises:
        CheckpointError: it is missing or damaged, or something else.
    """
    if path.is_file() and not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path} is no checkpoint of a training run, or cut off: give the file iteration_N.state of a run")
    content = read_pickle(path)
    try:
        state = State(**content)
    except TypeError:
        raise CheckpointError(f"{path} is no checkpoint of a training run") from None
    kinds = {"iteration": int, "ema_updates": int, "options_sha256": str, "pairs": list, "images": int, "judged": str}
    for field in dataclasses.fields(State):
        if not isinstance(getattr(state, field.name), kinds.get(field.name, dict)):
            raise CheckpointError(f"{path} is a damaged checkpoint: its {field.name} is of another type")
    return state


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside, this process alone trains in the folder of a run; the system lets go of it however the process ends.

    Raises:
        OptionError: another process does.
        OSError: the folder cannot be written.
    """
    with locked(folder) as alone:
        if not alone:
            raise OptionError(f"another process is training in {folder}: choose another name, or wait for it")
        yield

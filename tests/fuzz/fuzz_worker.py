"""The process that opens the mutants, under a bound on its memory and a watchdog.

It runs apart, so that a crash, a hang or a runaway is seen and not suffered. What it is at stands in a small file that outlives it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz_mutations import mutate

from drct.datasets.pack import Pack
from drct.errors import Error
from drct.imaging import read, read_size, write
from drct.training.checkpoint import State, load_state
from drct.weights import load_network

SECONDS = 10  # of processor time, for one file
WAIT = 300  # seconds in all: a file that makes a thread wait for ever takes no processor time
ROOM = 1 << 30  # bytes of address space beyond what opening the whole corpus took
MAX_PIXELS = 4_000_000
WRITTEN = 8  # of so many pictures one is written again

RECORD = struct.Struct("<qqqqq")  # number at work, opened, errors, milliseconds of the slowest, its number


class Failure(Exception):
    """Something that no file may bring about."""


def main(folder: Path, first: int, last: int, report: Path) -> None:
    """Open mutants of a corpus."""
    corpus = load_corpus(folder)
    work = _bounded(folder, corpus)
    good = bad = slowest = slowest_number = 0
    said = os.fstat(2).st_size
    with open(report, "r+b", buffering=0) as file:
        for number in range(first, last):
            os.pwrite(file.fileno(), RECORD.pack(number, good, bad, slowest, slowest_number), 0)
            name, data = mutate(number, corpus)
            start = time.process_time()
            with _watched():
                outcome = open_one(work, name, data, write_again=number % WRITTEN == 0)
            took = int(1000 * (time.process_time() - start))
            good, bad = good + outcome, bad + (not outcome)
            if took > slowest:
                slowest, slowest_number = took, number
            if os.fstat(2).st_size != said:
                raise Failure("a library wrote to standard error")
        os.pwrite(file.fileno(), RECORD.pack(last, good, bad, slowest, slowest_number), 0)


def open_files(folder: Path, corpus: Path) -> None:
    """Open the files of a folder as they are, under the same bounds; prints what became of each."""
    work = _bounded(corpus, load_corpus(corpus))
    for path in sorted(folder.iterdir()):
        start = time.process_time()
        print(f'["{path.name}", ', end="", flush=True)  # stays if the process does not survive the file
        data = path.read_bytes()
        try:
            with _watched():
                outcome = "opened" if open_one(work, path.name, data, write_again=False) else "refused"
        except Failure as failure:
            outcome = str(failure)
        print(f"{json.dumps(outcome)}, {time.process_time() - start:.2f}]", flush=True)


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """The system ends the process when a file takes too long, whatever code it is in."""
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    faulthandler.dump_traceback_later(WAIT, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()


def _bounded(folder: Path, corpus: list[tuple[str, bytes]]) -> Path:
    """A folder to work in, when the bound on memory is set; before, the whole corpus was opened once."""
    work = folder / f"work-{os.getpid()}"
    work.mkdir()
    for name, data in corpus:
        with _watched():
            open_one(work, name, data, write_again=True)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    return work


def load_corpus(folder: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file() and path.suffix != ".report"]


def open_one(work: Path, name: str, data: bytes, write_again: bool) -> bool:
    """Open a file as drct would; returns whether that gave something, and raises Failure where it gave what it must not."""
    path = work / f"mutant-{name}"
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _OPENERS.get(path.suffix, _image)(path, write_again)
    except Error as error:
        text = str(error)
        if "\n" in text or not text.isprintable() or len(text) > 2000:
            raise Failure(f"not one printable line: {text!r}") from error
        if work.name not in text:
            raise Failure(f"the file is not named: {text}") from error
        if "not enough memory" in text:
            raise Failure(f"more memory than allowed: {text}") from error
        return False
    finally:
        left = {p.name for p in work.iterdir()} - {path.name}
        path.unlink()
    if left - {"pack"}:
        raise Failure(f"left behind: {sorted(left)}")
    return True


def _image(path: Path, write_again: bool) -> None:
    picture = read(path, max_pixels=MAX_PIXELS)
    if picture.pixels.size == 0 or read_size(path, max_pixels=MAX_PIXELS) != picture.pixels.shape[:2]:
        raise Failure(f"size {picture.pixels.shape}, but by its header {read_size(path, max_pixels=MAX_PIXELS)}")
    if write_again:
        again = path.with_name("again.png")
        write(again, picture)
        if read_size(again) != picture.pixels.shape[:2]:
            raise Failure("what was written has another size")
        again.unlink()


def _network(path: Path, write_again: bool) -> None:
    load_network(path)


def _state(path: Path, write_again: bool) -> None:
    state = load_state(path)
    if not isinstance(state, State):
        raise Failure(f"a {type(state).__name__}, not a State")


def _pack(path: Path, write_again: bool) -> None:
    """The mutant as the index of a pack whose pixels are sound."""
    folder = path.parent / "pack"
    folder.mkdir(exist_ok=True)
    (folder / "pixels.bin").write_bytes((path.parents[1] / "pack" / "pixels.bin").read_bytes())
    path.replace(folder / "index.json")
    path.touch()
    pack = Pack(folder)
    for i in range(len(pack)):
        if pack[i].shape != (*pack.shape(i), 3) or not isinstance(pack.name(i), str):
            raise Failure(f"image {i} has shape {pack[i].shape}, but {pack.shape(i)} by the index")


_OPENERS: dict[str, Callable[[Path, bool], None]] = {
    ".pth": _network,
    ".safetensors": _network,
    ".state": _state,
    ".json": _pack,
}

if __name__ == "__main__":
    faulthandler.enable()
    try:
        if len(sys.argv) == 3:
            open_files(Path(sys.argv[1]), Path(sys.argv[2]))
        else:
            main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    except Failure as failure:
        sys.exit(json.dumps(str(failure)))

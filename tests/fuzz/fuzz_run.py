"""Open mutants by the thousand and name those that do harm.

python tests/fuzz/fuzz_run.py --count 100000
python tests/fuzz/fuzz_run.py --first 4711 --count 1 --keep mutant.bin     one of them again, and as a file
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz_corpus import make_corpus
from fuzz_mutations import mutate
from fuzz_worker import RECORD, load_corpus

PIECE = 2000  # mutants per process
WORKER = Path(__file__).with_name("fuzz_worker.py")


@dataclasses.dataclass
class Tally:
    """What became of the mutants.

    Attributes:
        good: gave a picture, a network, a state or a pack.
        bad: gave the one-line error.
        slowest: milliseconds of the slowest and its number.
        failures: the numbers that did harm, each with what it did.
    """

    good: int = 0
    bad: int = 0
    slowest: tuple[int, int] = (0, 0)
    failures: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.good += other.good
        self.bad += other.bad
        self.slowest = max(self.slowest, other.slowest)
        self.failures += other.failures


def run(folder: Path, first: int, count: int, workers: int = 1, say: Callable[[str], None] = lambda line: None) -> Tally:
    """Open the mutants ``first`` to ``first + count - 1`` of a corpus in ``folder``; ``say`` hears of failures and progress."""
    total = Tally()
    pieces = [(start, min(start + PIECE, first + count)) for start in range(first, first + count, PIECE)]
    with ThreadPoolExecutor(workers) as pool:
        for (_, last), tally in zip(pieces, pool.map(lambda piece: _piece(folder, *piece, say), pieces), strict=True):
            total.add(tally)
            say(
                f"to {last}: {total.good} opened, {total.bad} errors, {len(total.failures)} failures, slowest {total.slowest[0]} ms"
            )
    return total


def _piece(folder: Path, first: int, last: int, say: Callable[[str], None]) -> Tally:
    """A run of mutants; after one that does harm a fresh process goes on with the next."""
    tally = Tally()
    while first < last:
        report = folder / f"{first}.report"
        report.write_bytes(RECORD.pack(-1, 0, 0, 0, 0))
        command = [sys.executable, str(WORKER), str(folder), str(first), str(last), str(report)]
        with tempfile.TemporaryFile() as stderr:
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1"}
            code = subprocess.run(command, stderr=stderr, stdout=subprocess.DEVNULL, env=environment).returncode
            stderr.seek(0)
            said = stderr.read().decode(errors="replace").strip()
        number, good, bad, slowest, slowest_number = RECORD.unpack(report.read_bytes())
        report.unlink()
        tally.add(Tally(good, bad, (slowest, int(slowest_number))))
        if code == 0:
            break
        if number < 0:
            raise RuntimeError(f"the worker did not come to the first mutant: {said[-1500:]}")
        corpus = load_corpus(folder)
        how = f"signal {-code}" if code < 0 else said if "\n" not in said else said[-1500:]
        tally.failures.append(f"mutant {number} (of {corpus[number % len(corpus)][0]}): {how}")
        say(tally.failures[-1])
        first = number + 1
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description="Open mutants by the thousand and name those that do harm.")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="write the mutant FIRST here and stop")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_corpus(folder)
        if arguments.keep is not None:
            origin, data = mutate(arguments.first, load_corpus(folder))
            arguments.keep.write_bytes(data)
            print(f"mutant {arguments.first} of {origin}: {len(data)} bytes")
            return 0
        start = time.monotonic()
        tally = run(folder, arguments.first, arguments.count, arguments.workers, lambda line: print(line, flush=True))
    slowest, number = tally.slowest
    seconds = time.monotonic() - start
    print(f"{arguments.count} mutants in {seconds:.0f} s: {tally.good} opened, {tally.bad} errors, {len(tally.failures)} failures")
    print(f"slowest: number {number}, {slowest} ms")
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Hostile files: thousands of damaged ones end in what they hold or in the one-line error, soon and in little memory.

``python -m pytest -m fuzz`` opens 100,000; ``python tests/fuzz/fuzz_run.py`` does the same and can repeat a single one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fuzz_run
import fuzz_worker
import pytest
from fuzz_bombs import BOMBS, make_bombs
from fuzz_corpus import make_corpus
from fuzz_mutations import mutate

from drct.errors import ImageError

HUNDRED_THOUSAND = 100_000
OPENED = {  # the others are refused
    *("canvas.gif", "exif.jpg", "loop.tif", "many-frames.gif", "many-frames.png", "many-texts.png", "pages.tif"),
    *("profile.jpg", "profile.png", "sub-loop.tif", "text.png", "xmp.png"),
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    make_corpus(folder)
    return folder


def test_two_thousand_mutants(corpus: Path) -> None:
    tally = fuzz_run.run(corpus, 0, 2000)
    assert tally.failures == []
    assert tally.good + tally.bad == 2000
    assert tally.good > 200
    assert tally.bad > 1000


@pytest.mark.slow
@pytest.mark.fuzz
@pytest.mark.parametrize("first", range(0, HUNDRED_THOUSAND, 10_000))
def test_hundred_thousand_mutants(corpus: Path, first: int) -> None:
    tally = fuzz_run.run(corpus, first, 10_000, workers=max(1, (os.cpu_count() or 2) // 2))
    assert tally.failures == []
    assert tally.good + tally.bad == 10_000


def test_bombs(corpus: Path, tmp_path: Path) -> None:
    make_bombs(tmp_path)
    command = [sys.executable, str(Path(fuzz_worker.__file__)), str(tmp_path), str(corpus)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-200:] + done.stderr[-2000:]
    outcomes = {name: outcome for name, outcome, _ in map(json.loads, done.stdout.splitlines())}
    assert outcomes == {name: "opened" if name in OPENED else "refused" for name in BOMBS}
    assert done.stderr == ""


def test_mutants_are_always_the_same(corpus: Path) -> None:
    files = fuzz_worker.load_corpus(corpus)
    mutants = [mutate(seed, files) for seed in range(200)]
    assert mutants == [mutate(seed, files) for seed in range(200)]
    originals = dict(files)
    assert sum(originals[name] != data for name, data in mutants) > 180
    assert {name for name, _ in mutants} == set(originals)


# The harness notices what it is there to notice


def opened_by(monkeypatch: pytest.MonkeyPatch, opener) -> None:
    monkeypatch.setitem(fuzz_worker._OPENERS, ".x", opener)


@pytest.mark.parametrize(
    ("message", "harm"),
    [
        ("{path}: bad\nworse", "not one printable line"),
        ("{path}: \x1b[31m", "not one printable line"),
        ("some file is bad", "the file is not named"),
        ("{path}: not enough memory", "more memory than allowed"),
    ],
)
def test_bad_messages_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, harm: str) -> None:
    def opener(path: Path, write_again: bool) -> None:
        raise ImageError(message.format(path=path))

    opened_by(monkeypatch, opener)
    with pytest.raises(fuzz_worker.Failure, match=harm):
        fuzz_worker.open_one(tmp_path, "a.x", b"", write_again=False)


def test_other_errors_and_left_files_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened_by(monkeypatch, lambda path, again: path.with_name("left.part").touch())
    with pytest.raises(fuzz_worker.Failure, match=r"left behind: \['left\.part'\]"):
        fuzz_worker.open_one(tmp_path, "a.x", b"", write_again=False)
    opened_by(monkeypatch, lambda path, again: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        fuzz_worker.open_one(tmp_path, "a.x", b"", write_again=False)


WORKER = """
import os, struct, sys, time
first, last, report = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with open(report, "r+b", buffering=0) as file:
    for number in range(first, last):
        os.pwrite(file.fileno(), struct.pack("<qqqqq", number, number - first, 0, 5, first), 0)
        if number == 3:
            os.abort()
        if number == 6:
            sys.exit("said something")
    os.pwrite(file.fileno(), struct.pack("<qqqqq", last, last - first, 0, 5, first), 0)
"""


def test_crashes_are_named_and_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    (tmp_path / "worker").mkdir()
    worker = tmp_path / "worker" / "worker.py"
    worker.write_text(WORKER)
    monkeypatch.setattr(fuzz_run, "WORKER", worker)
    tally = fuzz_run.run(tmp_path, 0, 10)
    assert tally.failures == ["mutant 3 (of a.png): signal 6", "mutant 6 (of a.png): said something"]
    assert (tally.good, tally.bad) == (8, 0)

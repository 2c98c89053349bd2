"""Two processes that train together, of which one ends early: one line from one of them, exit code 1, checkpoints intact."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from training_helpers import run

from drct.training.checkpoint import list_states, load_state, save_state
from drct.training.processes import StopSignals

Make = Callable[..., dict[str, Any]]


def free_port() -> str:
    """One that no connection gets by chance until it is used: systems take those from 32768 on."""
    for port in range(20_000 + os.getpid() % 10_000, 32_000):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return str(port)
    raise AssertionError("no port is free")


def start_two(arguments: list[str]) -> list[subprocess.Popen[str]]:
    """What torchrun does, without its own report and without its SIGTERM."""
    shared = {**os.environ, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]


def ends(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and error output, without what torch says about the connection of its own store."""
    try:
        _, said = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, "".join(line for line in said.splitlines(True) if not line.startswith("[W"))


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_costs_one_line(option_dict: Make, tmp_path: Path, killed: int) -> None:
    folder, options = tmp_path / "run", tmp_path / "options.yml"
    options.write_text(yaml.safe_dump(option_dict(total_iter=100_000)))
    both = start_two(["-m", "drct", "train", "-opt", str(options), "--device", "cpu", "--output", str(folder)])
    try:
        deadline = time.monotonic() + 300
        while not list_states(folder):
            assert both[0].poll() is None, both[0].communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        both[killed].send_signal(signal.SIGKILL)
        code, said = ends(both[1 - killed])
    finally:
        for process in both:
            process.kill()
    assert code == 1
    newest = list_states(folder)[-1]
    assert said == (
        f"drct: error: the process of rank {killed} was killed or crashed, so training has ended; {newest} and what was written "
        "before it are intact: go on by the same command with --resume auto\n"
    )
    # the line is true: a run goes on from there
    reached = load_state(newest).iteration
    run(option_dict(total_iter=100_000), folder, resume="auto", stop_after=1)
    assert load_state(list_states(folder)[-1]).iteration == reached + 1


# a collective of the GPU does not return when the other side is gone, and no exception reaches who waits in it
STUCK = """
import os, signal, sys, time
from drct.training.processes import processes
with processes("cpu", lambda: "as before") as process:
    process.any(False)  # both are inside
    if process.rank == int(sys.argv[1]):
        time.sleep(600)
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise ValueError("no such thing")
"""


@pytest.mark.parametrize(
    ("stuck", "way", "line"),
    [
        (0, "killed", "the process of rank 1 was killed or crashed"),
        pytest.param(1, "killed", "the process of rank 0 was killed or crashed", marks=pytest.mark.slow),
        pytest.param(
            0, "raised", "the process of rank 1 was stopped by an error (ValueError no such thing)", marks=pytest.mark.slow
        ),
        pytest.param(1, "raised", None, marks=pytest.mark.slow),  # rank 0 has said it by its own traceback
    ],
)
def test_a_process_that_is_stuck_ends_too(stuck: int, way: str, line: str | None) -> None:
    both = start_two(["-c", STUCK, str(stuck), way])
    try:
        found = [ends(process) for process in both]
    finally:
        for process in both:
            process.kill()
    assert found[stuck] == (1, "" if line is None else f"drct: error: {line}, so training has ended; as before\n")
    assert ("ValueError: no such thing" in found[1 - stuck][1]) == (way == "raised")


@pytest.mark.slow
def test_an_error_of_one_process_is_said_once(option_dict: Make, tmp_path: Path) -> None:
    """Rank 1 alone finds its images unreadable; rank 0 speaks, for it knows what is left."""
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys\n"
        "from drct.cli import main\n"
        "from drct.datasets import loader\n"
        "from drct.errors import DataError\n"
        "cut = loader.PatchSet.raw_batch\n"
        "def broken(self, samples):\n"
        "    if os.environ['RANK'] == '1' and samples[0] > 30:\n"
        "        raise DataError('a.png cannot be read')\n"
        "    return cut(self, samples)\n"
        "loader.PatchSet.raw_batch = broken\n"
        "main(sys.argv[1:])\n"
    )
    folder, options = tmp_path / "run", tmp_path / "options.yml"
    options.write_text(yaml.safe_dump(option_dict(total_iter=100_000)))
    both = start_two([str(script), "train", "-opt", str(options), "--device", "cpu", "--output", str(folder)])
    (code, said), (other_code, other_said) = [ends(process) for process in both]
    assert (code, other_code, other_said) == (1, 1, "")
    assert re.fullmatch(
        r"drct: error: the process of rank 1 was stopped by an error \(a\.png cannot be read\), so training has ended; "
        r".*iteration_00000005\.state and what was written before it are intact: go on by the same command with --resume auto\n",
        said,
    )


def test_processes_that_see_different_checkpoints_do_not_train(option_dict: Make, tmp_path: Path) -> None:
    """As on two machines whose disks are not shared."""
    options = tmp_path / "options.yml"
    options.write_text(yaml.safe_dump(option_dict(total_iter=30)))
    folders = tmp_path / "0", tmp_path / "1"
    run(option_dict(), folders[0], stop_after=5)
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys\n"
        "from drct.cli import main\n"
        f"main(['train', '-opt', {str(options)!r}, '--device', 'cpu', '--resume', 'auto', "
        f"'--output', {str(tmp_path)!r} + '/' + os.environ['RANK']])\n"
    )
    (code, said), (other_code, other_said) = [ends(process) for process in start_two([str(script)])]
    assert (code, other_code, other_said) == (1, 1, "")
    assert said == (
        "drct: error: the process of rank 0 goes on from iteration 5, but that of rank 1 from iteration 0: all must see the same "
        "checkpoint\n"
    )


def test_further_terminations_do_not_cost_the_checkpoint() -> None:
    """Slurm and torchrun send a SIGTERM each. A second interrupt from the keyboard ends at once."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells let what runs in the background ignore it
    try:
        with StopSignals() as signals:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGTERM)
            assert signals.raised
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_termination_during_the_last_save_is_survived(option_dict: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_and_terminate(*args: Any) -> Path:
        os.kill(os.getpid(), signal.SIGTERM)
        return save_state(*args)

    monkeypatch.setattr("drct.training.loop.save_state", save_and_terminate)
    folder = run(option_dict(total_iter=2), tmp_path / "run")
    assert load_state(list_states(folder)[-1]).iteration == 2


@pytest.mark.slow
def test_an_error_of_all_processes_is_said_once(option_dict: Make, tmp_path: Path) -> None:
    data = option_dict()
    data["datasets"]["train"]["gt_size"] = 128  # larger than the images
    options = tmp_path / "options.yml"
    options.write_text(yaml.safe_dump(data))
    both = start_two(["-m", "drct", "train", "-opt", str(options), "--device", "cpu", "--output", str(tmp_path / "run")])
    (code, said), (other_code, other_said) = [ends(process) for process in both]
    assert (code, other_code, other_said) == (1, 1, "")
    assert said.count("\n") == 1
    assert "smaller than a patch" in said

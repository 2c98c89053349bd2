"""Chunks of work on several threads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from drct.engine.cpu.workers import for_each, split


@pytest.fixture(autouse=True)
def two_threads() -> object:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def test_every_item_once_on_threads_of_their_own() -> None:
    seen, settings = [], set()

    def work(item: int) -> None:
        assert torch.is_inference_mode_enabled()
        seen.append(item)
        settings.add((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))

    with torch.inference_mode():
        for_each(work, range(100))
    assert sorted(seen) == list(range(100))
    assert settings == {(False, 1)}
    assert torch.get_num_threads() == 2


def test_errors_come_back() -> None:
    def work(item: int) -> None:
        if item == 5:
            raise ValueError("five")

    with pytest.raises(ValueError, match="five"):
        for_each(work, range(10))
    for_each(work, range(5))


def test_two_callers_share_the_threads() -> None:
    counts = [0, 0]

    def caller(which: int) -> None:
        torch.set_num_threads(2)
        for_each(lambda item: counts.__setitem__(which, counts[which] + item), [1] * 20)

    callers = [threading.Thread(target=caller, args=(i,)) for i in range(2)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(timeout=30)
    assert all(count > 0 for count in counts)


@pytest.mark.parametrize(("total", "size"), [(64, 4), (1, 4), (7, 4), (9, 4), (100, 1000)])
def test_split(total: int, size: int) -> None:
    parts = split(total, size)
    assert [i for start, end in parts for i in range(start, end)] == list(range(total))
    assert max(end - start for start, end in parts) <= max(size, 1)


FORK = """
import os, signal, sys, torch, drct
from drct import engine
from drct.networks import create_network
torch.set_num_threads(2)
{options}
network = create_network({name!r}, scale=2, **options).eval()
x = torch.rand(1, 3, 64, 64)
{before}
child = os.fork()
if child == 0:
    signal.alarm(240)
    program = engine.compile(network, "cpu")
    os._exit(0 if program(x).shape == (1, 3, 128, 128) else 3)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
LIGHT = "options = dict(embed_dim=16, gc=16, depths=[1], num_heads=[1], window_size=8)"
MAMBA = "options = dict(embed_dim=16, gc=16, depths=[1], d_state=8)"  # which no compiled program fits


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize(
    ("name", "options", "before"),
    [
        ("drct_light", LIGHT, "engine.compile(network)(x)"),
        ("drct_light", LIGHT, "engine.compile(network)"),
        ("drct_light", LIGHT, "network(torch.rand(4, 3, 64, 64))"),
        ("drct_light", LIGHT, "drct.load_network('drct-light-x4')"),
        ("drct_light", LIGHT, "drct.Upscaler('drct-light-x4').program(4)"),
        ("mamba_drct", MAMBA, "engine.compile(network)(x)"),
    ],
)
def test_a_forked_child_does_not_wait_for_its_parents_threads(name: str, options: str, before: str) -> None:
    program = FORK.format(name=name, options=options, before=before)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


TOGETHER = """
import threading, torch
from drct import engine
from drct.engine.cpu.workers import for_each
from drct.networks import create_network
torch.set_num_threads(2)
program = engine.compile(create_network("drct_light", scale=2, embed_dim=16, gc=16, depths=[1], num_heads=[1], window_size=8))
go, seen = threading.Barrier(16), []
def request():
    go.wait()
    program(torch.rand(1, 3, 32, 32))
    seen.append(torch.get_num_threads())
threads = [threading.Thread(target=request) for _ in range(16)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert seen == [2] * 16, seen
"""


def test_threads_that_begin_together_keep_the_number_of_threads() -> None:
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", TOGETHER], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr


def test_threads_that_outlive_the_main_thread_go_on() -> None:
    """Python closes its pools when the main thread ends, and then waits for the caller's threads."""
    script = """
        import threading, time, torch
        from drct.engine.cpu.workers import for_each, get_ready

        torch.set_num_threads(2)
        for_each(id, [1, 2])  # a pool of two is there, of three is none

        def work():
            threading.main_thread().join()
            for threads in (2, 3):
                torch.set_num_threads(threads)
                get_ready()
                found = []
                for_each(found.append, range(5))
                print(sorted(found))

        threading.Thread(target=work).start()
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.stderr, run.returncode) == ("[0, 1, 2, 3, 4]\n" * 2, "", 0)

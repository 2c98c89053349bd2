"""A drop folder: what is whole is taken, once, until told to stop."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from upscaling_helpers import Nursery, content, smooth_image

from drct.errors import OptionError
from drct.imaging import read, write
from drct.upscaling import FileResult, Listener, Report, UpscaleOptions, batch, upscale, watch, watch_folders
from drct.upscaling.jobs import Job
from drct.upscaling.manifest import Manifest


class Watched(Listener):
    """A watch in a thread, and what it told."""

    def __init__(self, options: UpscaleOptions) -> None:
        self.model = options.model
        self.results: list[FileResult] = []
        self.report: Report | None = None
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(options,), daemon=True)
        self.thread.start()

    def _run(self, options: UpscaleOptions) -> None:
        self.report = watch_folders(options, self, stop=self.stop)

    def finished(self, result: FileResult) -> None:
        self.results.append(result)

    def wait(self, condition: Callable[[], bool], seconds: float = 300) -> None:
        deadline = time.monotonic() + seconds
        while not condition() and self.thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert condition()

    def end(self) -> Report:
        self.stop.set()
        self.thread.join(timeout=300)
        assert self.report is not None
        return self.report


class Stopping(Watched):
    """A watch that is stopped when the first part of a picture is through the network."""

    parts = 0

    def progress(self, job: Job, done: float) -> None:
        self.parts += 1
        self.stop.set()


@pytest.fixture
def drop(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(watch, "LOOK", 0.02)
    monkeypatch.setattr(watch, "SETTLE", 0.2)
    (quick_path / "drop").mkdir()
    return quick_path / "drop"


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows with every look at the folders that has ended."""
    ended: list[object] = []
    look = watch._Folders.look

    def counted(folders: watch._Folders) -> object:
        found = look(folders)
        ended.append(found)
        return found

    monkeypatch.setattr(watch._Folders, "look", counted)
    return ended


@pytest.fixture
def watched(drop: Path, model: Path) -> Iterator[Watched]:
    watched = Watched(UpscaleOptions(inputs=(drop,), output=drop.parent / "out", model=model, device="cpu", recursive=True))
    yield watched
    watched.end()


@pytest.mark.parametrize(("folder", "message"), [("x" * 300, "is not a folder"), ("/", "has no folder above it")])
def test_folders_that_cannot_be_watched(folder, message):
    with pytest.raises(OptionError, match=message):
        watch_folders(UpscaleOptions(inputs=(folder,)))


def test_files_are_taken_as_they_come(watched, drop):
    write(drop / "a.png", smooth_image(8, 9))
    watched.wait(lambda: len(watched.results) == 1)
    (drop / "sub").mkdir()
    write(drop / "sub" / "b.png", smooth_image(9, 8))
    (drop / "notes.txt").write_text("no image")
    watched.wait(lambda: len(watched.results) == 2)
    write(drop / "a.png", smooth_image(10, 11, seed=1))
    watched.wait(lambda: len(watched.results) == 3)
    report = watched.end()
    assert [r.source.name for r in watched.results] == ["a.png", "b.png", "a.png"]
    assert (report.count("done"), report.count("skipped"), report.count("failed")) == (3, 0, 0)
    out = drop.parent / "out"
    assert sorted(content(out)) == ["a_x4.png", "sub/b_x4.png"]
    assert read(out / "a_x4.png").width == 44


def test_a_file_is_left_alone_while_it_grows(looks, drop, model, monkeypatch):
    """By a clock that goes on only here, however slow the machine is."""
    now = 1000.0
    clock = SimpleNamespace(monotonic=lambda: now, perf_counter=time.perf_counter, time_ns=time.time_ns)
    monkeypatch.setattr(watch, "time", clock)
    write(drop.parent / "whole.png", smooth_image(40, 40))
    data = (drop.parent / "whole.png").read_bytes()
    watched = Watched(UpscaleOptions(inputs=(drop,), output=drop.parent / "out", model=model, device="cpu"))
    with (drop / "slow.png").open("wb") as file:
        for begin in range(0, len(data), len(data) // 10):
            file.write(data[begin : begin + len(data) // 10])
            file.flush()
            before = len(looks)
            watched.wait(lambda before=before: len(looks) >= before + 2)  # the second one began after the writing
            now += 0.9 * watch.SETTLE
            assert watched.results == []
    for _ in range(3):
        before = len(looks)
        watched.wait(lambda before=before: len(looks) >= before + 2 or len(watched.results) > 0)
        now += 0.9 * watch.SETTLE
    watched.wait(lambda: len(watched.results) >= 1)
    watched.end()
    assert [(r.source.name, r.status) for r in watched.results] == [("slow.png", "done")]


def test_what_failed_is_tried_again_when_it_has_changed(watched, drop):
    write(drop.parent / "good.png", smooth_image(20, 20))
    data = (drop.parent / "good.png").read_bytes()
    (drop / "a.png").write_bytes(data[:100])
    watched.wait(lambda: len(watched.results) == 1)
    assert watched.results[0].status == "failed"
    time.sleep(0.5)
    assert len(watched.results) == 1
    (drop / "a.png").write_bytes(data)
    watched.wait(lambda: len(watched.results) == 2)
    assert watched.results[1].status == "done"


def test_a_folder_that_vanishes_is_told_once_and_may_come_back(looks, watched, drop):
    watched.wait(lambda: len(looks) > 0)  # a folder that was never there is an error
    drop.rename(drop.parent / "away")
    watched.wait(lambda: len(watched.results) == 1)
    time.sleep(0.3)
    assert len(watched.results) == 1
    assert "gone" in watched.results[0].error
    (drop.parent / "away").rename(drop)
    write(drop / "a.png", smooth_image(8, 8))
    watched.wait(lambda: len(watched.results) == 2)
    assert watched.results[1].status == "done"


def test_only_folders_are_watched_and_never_the_results(model, tmp_path):
    write(tmp_path / "a.png", smooth_image(8, 8))
    with pytest.raises(OptionError, match="not a folder"):
        watch_folders(UpscaleOptions(inputs=(tmp_path / "a.png",), model=model))
    with pytest.raises(OptionError, match="upscaled again"):
        watch_folders(UpscaleOptions(inputs=(tmp_path,), output=tmp_path / "x" / "..", model=model))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_cleanly(nursery: Nursery, model, quick_path, number):
    (quick_path / "drop").mkdir()
    write(quick_path / "drop" / "a.png", smooth_image(8, 8))
    out = quick_path / "out"
    nursery.log.write_text("")
    child = nursery.start("upscale", quick_path / "drop", "-o", out, "--watch", "-m", model, "--device", "cpu", "--json")
    deadline = time.monotonic() + 300
    while "a_x4.png" not in nursery.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child, number)
    assert nursery.wait(child) == 0
    (line,) = nursery.log.read_text().splitlines()
    assert json.loads(line)["status"] == "done"
    assert sorted(content(out)) == ["a_x4.png"]


@pytest.mark.parametrize(("device", "strips"), [("cpu", "auto"), ("cpu", "on"), ("cpu,cpu", "auto")])
def test_a_stop_gives_up_pictures_in_the_network(drop, model, device, strips):
    for name in ("a.png", "b.png"):
        write(drop / name, smooth_image(40, 40))
    out = drop.parent / "out"
    options = UpscaleOptions(inputs=(drop,), output=out, model=model, device=device, strips=strips, tile=16, overlap=4)
    watched = Stopping(options)
    watched.thread.join(timeout=60)
    assert watched.report is not None
    assert (watched.parts, watched.results, content(out)) == (1, [], {})
    manifest = Manifest(out)
    assert not any(entry and entry.held for entry in manifest.look([out / "a_x4.png", out / "b_x4.png"]))
    manifest.close()
    assert [result.status for result in upscale(options).results] == ["done", "done"]


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_a_stop_tells_what_is_finished(drop, model, device, monkeypatch):
    begun = threading.Event()

    class StoppingLater(Watched):
        """Stopped with the last picture in the network and the first one being written."""

        def progress(self, job: Job, done: float) -> None:
            if job.source.name == "c.png":
                assert begun.wait(60)
                self.stop.set()

    def write_late(path: Path, *arguments: Any, **options: Any) -> list[str]:
        begun.set()
        assert watched.stop.wait(60)
        return write(path, *arguments, **options)

    monkeypatch.setattr(batch, "write", write_late)
    write(drop / "a.png", smooth_image(8, 8))
    (drop / "b.png").write_bytes(b"no image")
    write(drop / "c.png", smooth_image(40, 40))
    out = drop.parent / "out"
    options = UpscaleOptions(inputs=(drop,), output=out, model=model, device=device, tile=16, overlap=4)
    watched = StoppingLater(options)
    watched.thread.join(timeout=60)
    assert watched.report is not None
    told = {(r.source.name, r.status) for r in watched.results}
    assert {("a.png", "done"), ("b.png", "failed")} <= told
    made = sorted(r.target.name for r in watched.results if r.status == "done")
    assert made == sorted(content(out))  # with several devices, the last one may be ready before the stop is known
    assert (watched.report.count("done"), watched.report.count("failed")) == (len(made), 1)


def test_a_stop_between_pictures_begins_no_other(drop, model):
    class StoppingAtResult(Stopping):
        def finished(self, result: FileResult) -> None:
            super().finished(result)
            self.stop.set()

    (drop / "a.png").write_bytes(b"no image")
    write(drop / "b.png", smooth_image(40, 40))
    out = drop.parent / "out"
    watched = StoppingAtResult(UpscaleOptions(inputs=(drop,), output=out, model=model, device="cpu"))
    watched.thread.join(timeout=60)
    assert watched.report is not None
    assert [(r.source.name, r.status) for r in watched.results] == [("a.png", "failed")]
    assert (watched.parts, content(out)) == (0, {})


@pytest.mark.parametrize("device", ["cpu", "cpu,cpu"])
def test_a_stop_ends_the_wait_for_other_processes(drop, model, device):
    out = drop.parent / "out"
    out.mkdir()
    other = Manifest(out)
    assert other.claim([(out / f"{name}_x4.png", None) for name in "ab"]) == [True, True]
    waits = threading.Event()

    class Waiting(Watched):
        def waiting(self, files: int) -> None:
            waits.set()

    for name in ("a.png", "b.png"):
        write(drop / name, smooth_image(8, 8))
    watched = Waiting(UpscaleOptions(inputs=(drop,), output=out, model=model, device=device))
    assert waits.wait(60)
    watched.stop.set()
    watched.thread.join(timeout=20)
    other.close()
    assert watched.report is not None
    assert watched.results == []


def test_results_that_are_removed_meanwhile_begin_anew(watched, drop):
    out = drop.parent / "out"
    write(drop / "a.png", smooth_image(8, 9))
    watched.wait(lambda: len(watched.results) == 1)
    while out.exists():
        shutil.rmtree(out, ignore_errors=True)  # the manifest's journal may vanish by itself meanwhile
    write(drop / "b.png", smooth_image(9, 8))
    watched.wait(lambda: len(watched.results) == 2)
    assert [r.status for r in watched.results] == ["done", "done"]
    assert sorted(content(out)) == ["b_x4.png"]
    watched.end()
    again = upscale(UpscaleOptions(inputs=(drop,), output=out, model=watched.model, device="cpu", recursive=True))
    assert sorted(r.status for r in again.results) == ["done", "skipped"]

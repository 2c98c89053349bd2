"""Full disks, vanished files and folders, odd names, several devices: each file has its own fate."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from upscaling_helpers import content, smooth_image

from drct.errors import ManifestError
from drct.imaging import read, write
from drct.upscaling import FileResult, Listener, UpscaleOptions, batch, upscale
from drct.upscaling.jobs import Job


@pytest.fixture
def photos(quick_path: Path) -> Path:
    folder = quick_path / "photos"
    folder.mkdir()
    for i in range(5):
        write(folder / f"p{i}.png", smooth_image(12 + i, 14, seed=i))
    return folder


def run(model: Path, folder: Path, out: Path, listener: Listener | None = None, **options) -> list[FileResult]:
    options = {"device": "cpu", **options}
    return list(upscale(UpscaleOptions(inputs=(folder,), output=out, model=model, **options), listener).results)


def states(results: list[FileResult]) -> str:
    return " ".join(result.status for result in results)


@pytest.fixture
def small_disk(quick_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder in which large files cannot be written, and what the system says then: a small file system if this process may
    mount one, else a limit on the size of files."""
    folder = quick_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") is not None and (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "none", folder], capture_output=True).returncode == 0
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not mounted:
        resource.setrlimit(resource.RLIMIT_FSIZE, (256 << 10, limits[1]))
    yield folder, "full|No space" if mounted else "too large|full"
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    if mounted:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk(model, photos, small_disk):
    disk, words = small_disk
    # noise packs badly: more than half a megabyte
    write(photos / "p2.png", np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8))
    results = run(model, photos, disk / "out")
    assert states(results) == "done done failed done done"
    assert any(word in results[2].error for word in words.split("|"))
    assert "p2" in results[2].error
    assert "\n" not in results[2].error
    assert sorted(content(disk / "out")) == ["p0_x4.png", "p1_x4.png", "p3_x4.png", "p4_x4.png"]
    assert states(run(model, photos, disk / "out")) == "skipped skipped failed skipped skipped"


@pytest.mark.parametrize("format", ["tiff", "webp"])
def test_a_full_disk_in_strips(model, photos, small_disk, format):
    """What the failed result took is free again, though the encoder that wrote it may still hold its descriptor."""
    disk, _ = small_disk
    write(photos / "p2.png", np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8))
    collected = gc.isenabled()
    gc.disable()
    try:
        results = run(model, photos, disk / "out", strips="on", format=format, lossless=format == "webp")
    finally:
        if collected:
            gc.enable()
    assert states(results) == "done done failed done done"
    assert "damaged" not in results[2].error


def test_a_disk_too_full_for_the_manifest(model, photos, small_disk):
    disk, _ = small_disk
    out = disk / "out"
    assert states(run(model, photos / "p0.png", out)) == "done"
    with contextlib.suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
        while ballast.tell() < 1 << 20:
            ballast.write(b"\0" * 4096)
    if os.statvfs(disk).f_bavail == 0:  # the small file system, not the limit on sizes
        with pytest.raises(ManifestError, match="No space left"):
            run(model, photos, out)
    (disk / "ballast").unlink()
    assert states(run(model, photos, out)) == "skipped done done done done"


class At(Listener):
    """Does something when a file goes through the network."""

    def __init__(self, name: str, action) -> None:
        self.name, self.action = name, action

    def progress(self, job: Job, done: float) -> None:
        if job.source.name == self.name:
            self.name = ""
            self.action()


def test_files_that_vanish_fail_alone(model, photos, quick_path):
    results = run(model, photos, quick_path / "out", At("p0.png", (photos / "p4.png").unlink))
    assert states(results) == "done done done done failed"
    assert "p4.png: no such file" in results[4].error or "p4.png: No such file" in results[4].error


def test_an_input_folder_that_vanishes(model, photos, quick_path):
    results = run(model, photos, quick_path / "out", At("p0.png", lambda: shutil.rmtree(photos)))
    assert results[0].status == "done"
    assert results[-1].status == "failed"
    assert len(results) == 5


def test_a_results_folder_that_vanishes(model, photos, quick_path):
    out = quick_path / "out"
    results = run(model, photos, out, At("p1.png", lambda: shutil.rmtree(out)))
    assert len(results) == 5
    assert all(r.error and "\n" not in r.error for r in results if r.status == "failed")
    again = run(model, photos, out)
    assert "failed" not in states(again)
    assert len(content(out)) == 5


def test_a_file_that_may_not_be_read(model, photos, quick_path, monkeypatch):
    """As on a network drive; root, who may run the tests, can read every local file."""
    real = Path.open

    def opened(path: Path, *args, **kwargs):
        if path.name == "p2.png":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    results = run(model, photos, quick_path / "out")
    assert states(results) == "done done failed done done"
    assert results[2].error == f"{photos / 'p2.png'}: cannot be opened (Permission denied)"


def test_odd_names_and_loops_of_links(model, photos, quick_path):
    names = ["-r.png", " .png", "new\nline.png", "ü图.png", os.fsdecode(b"latin\xe9.png"), "a" * 251 + ".png", "%s'\"$HOME.png"]
    for name in names:
        write(photos / name, smooth_image(4, 5))
    (photos / "loop").symlink_to("loop")
    (photos / "up").symlink_to(photos)
    (photos / "nothing.png").symlink_to("gone.png")
    os.mkfifo(photos / "pipe.png")
    out = quick_path / "out"
    results = run(model, photos, out, recursive=True)
    failed = {r.source.name for r in results if r.status == "failed"}
    assert failed == {"nothing.png", "pipe.png"}
    assert len(content(out)) == 5 + len(names)
    assert states(run(model, photos, out, recursive=True)).count("skipped") == 5 + len(names)


# Several devices


def test_devices_share_the_work(model, photos, quick_path):
    threads = set()
    finished = []

    class Heard(Listener):
        def progress(self, job: Job, done: float) -> None:
            threads.add(threading.get_ident())

        def finished(self, result: FileResult) -> None:
            threads.add(threading.get_ident())
            finished.append(result.source.name)

    options = UpscaleOptions(inputs=(photos,), output=quick_path / "out", model=model, device="cpu, cpu,cpu")
    report = upscale(options, Heard())
    assert threads == {threading.get_ident()}
    assert report.device == "cpu, cpu, cpu"
    assert [r.source.name for r in report.results] == [f"p{i}.png" for i in range(5)]
    assert report.count("done") == 5
    assert sorted(finished) == [f"p{i}.png" for i in range(5)]
    run(model, photos, quick_path / "alone")
    assert content(quick_path / "out") == content(quick_path / "alone")
    assert not [t for t in threading.enumerate() if t.name.startswith("drct-")]


def test_each_device_gets_a_network_and_no_more_than_there_are_files(model, photos, quick_path, monkeypatch):
    made = []
    real = batch.create_upscaler

    def create(options: UpscaleOptions, device: str):
        made.append(device)
        return real(options, "cpu")

    monkeypatch.setattr(batch, "create_upscaler", create)
    monkeypatch.setattr(batch.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(batch.torch.cuda, "device_count", lambda: 4)
    assert states(run(model, photos / "p0.png", quick_path / "out", device="auto")) == "done"
    assert made == ["cuda:0"]
    made.clear()
    assert states(run(model, photos, quick_path / "out", device="cuda")) == "skipped done done done done"
    assert sorted(made) == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    assert batch.worker_devices("cuda:1") == ["cuda:1"]
    assert batch.worker_devices("cpu") == ["cpu"]


def test_a_device_that_fails_ends_the_run(model, photos, quick_path, monkeypatch):
    real = batch.create_upscaler

    def create(options: UpscaleOptions, device: str):
        if device == "cuda:1":
            raise RuntimeError("no such thing")
        return real(options, "cpu")

    monkeypatch.setattr(batch, "create_upscaler", create)
    with pytest.raises(RuntimeError, match="no such thing"):
        run(model, photos, quick_path / "out", device="cpu,cuda:1")
    assert not [t for t in threading.enumerate() if t.name.startswith("drct-")]
    assert states(run(model, photos, quick_path / "out")).count("failed") == 0


def test_an_interruption_stops_all_devices(model, photos, quick_path):
    class Interrupt(Listener):
        def progress(self, job: Job, done: float) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, photos, quick_path / "out", Interrupt(), device="cpu,cpu")
    assert not [t for t in threading.enumerate() if t.name.startswith("drct-")]
    assert all(read(p).width for p in (quick_path / "out").glob("*.png"))
    assert "failed" not in states(run(model, photos, quick_path / "out"))

"""Many files: results, failures, interruption."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from upscaling_helpers import content, smooth_image

import drct
from drct.imaging import Picture, part_path, read, write, write_pages
from drct.upscaling import FileResult, Listener, UpscaleOptions, batch, upscale
from drct.upscaling.jobs import Job, Jobs


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(5):
        write(folder / f"p{i}.png", smooth_image(20 + i, 30 - i, seed=i))
    return folder


class Recorder(Listener):
    def __init__(self) -> None:
        self.total = -1
        self.results: list[FileResult] = []
        self.steps: list[tuple[str, float]] = []
        self.threads: set[int] = set()

    def started(self, jobs: Jobs) -> None:
        self.total = len(jobs.jobs)

    def progress(self, job: Job, done: float) -> None:
        self.threads.add(threading.get_ident())
        self.steps.append((job.source.name, done))

    def finished(self, result: FileResult) -> None:
        self.threads.add(threading.get_ident())
        self.results.append(result)


def run(model: Path, *inputs: Path, listener: Listener | None = None, **options):
    return upscale(UpscaleOptions(inputs=inputs, model=model, device="cpu", **options), listener)


def test_options_of_videos_without_a_video_are_told_of(model, photos, tmp_path):
    report = run(model, photos / "p0.png", output=tmp_path / "a.png", start="1", crf=20)
    assert report.exit_code == 0
    assert "crf, start: without effect, since no input is a video" in report.notices


def test_options_that_no_result_takes_are_told_of(model, photos, tmp_path):
    def notices(*names: str, **options) -> list[str]:
        jobs = tuple(Job(Path(name), Path(target)) for name, target in (name.split(">") for name in names))
        return batch._without_effect(UpscaleOptions(inputs=("x",), **options), jobs)

    given = {"lossless": True, "format": "webp", "alpha": "resize", "crf": 20}
    assert notices("a.mp4>b.mp4", **given) == ["alpha, format, lossless: without effect, since all inputs are videos"]
    assert notices("a.mp4>b.mp4", "a.png>b.webp", **given) == []
    assert notices("a.mp4>b.mp4", quality=50, strip=True) == ["quality: without effect, since all inputs are videos"]
    lossy = "quality: without effect, since no result is one of JPEG, WebP, AVIF, JPEG XL, DeepZoom"
    assert notices("a.jpg>b.png", "a.gif>b.tiff", quality=50) == [lossy]
    assert notices("a.jpg>b.png", "a.gif>b.jpg", quality=50) == notices("a.jpg>b.dzi", quality=50) == notices(quality=50) == []
    assert lossy in run(model, photos / "p0.png", output=tmp_path / "a.png", quality=50).notices


def test_a_folder(model, photos, tmp_path):
    recorder = Recorder()
    report = run(model, photos, output=tmp_path / "out", listener=recorder)
    assert report.exit_code == 0
    assert [r.source.name for r in report.results] == [f"p{i}.png" for i in range(5)]
    assert recorder.results == list(report.results)
    assert recorder.total == 5
    assert recorder.threads == {threading.get_ident()}
    assert [name for name, done in recorder.steps if done == 1] == [f"p{i}.png" for i in range(5)]
    for i, result in enumerate(report.results):
        assert (result.status, result.input_size, result.output_size) == ("done", (30 - i, 20 + i), (4 * (30 - i), 4 * (20 + i)))
        picture = read(tmp_path / "out" / f"p{i}_x4.png")
        assert (picture.width, picture.height) == result.output_size


def test_same_bytes_again_and_again(model, photos, tmp_path):
    for out in ("one", "two"):
        run(model, photos, output=tmp_path / out, tile=16 * 4)
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_existing_results_are_skipped_unless_overwritten(model, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "p1_x4.png").write_bytes(b"mine")
    report = run(model, photos, output=out)
    assert [r.status for r in report.results] == ["done", "skipped", "done", "done", "done"]
    assert (out / "p1_x4.png").read_bytes() == b"mine"
    assert [r.status for r in run(model, photos, output=out).results] == ["skipped"] * 5
    report = run(model, photos, output=out, overwrite=True)
    assert [r.status for r in report.results] == ["done"] * 5
    assert read(out / "p1_x4.png").width == 116


def test_failures_do_not_stop_the_others(model, photos, tmp_path):
    (photos / "p1.png").write_bytes((photos / "p1.png").read_bytes()[:200])
    (photos / "p2.png").write_bytes(b"")
    report = run(model, photos, tmp_path / "missing.jpg", output=tmp_path / "out")
    assert report.exit_code == 1
    assert [r.status for r in report.results] == ["done", "failed", "failed", "done", "done", "failed"]
    for result in report.results:
        if result.status == "failed":
            assert str(result.source) in result.error
            assert "\n" not in result.error
            assert result.code == "image"
    assert list(content(tmp_path / "out")) == ["p0_x4.png", "p3_x4.png", "p4_x4.png"]


def test_every_kind_of_failure_behind_the_network_is_one_line(model, photos, tmp_path):
    out = tmp_path / "out"
    (out / "p0_x4.png").mkdir(parents=True)  # a folder stands where the result should go
    report = run(model, photos, output=out)
    assert [r.status for r in report.results] == ["failed"] + ["done"] * 4
    assert "p0_x4.png" in report.results[0].error
    (tmp_path / "file").write_bytes(b"")
    report = run(model, photos / "p0.png", output=tmp_path / "file" / "deep" / "x.png")
    assert report.results[0].status == "failed"
    assert str(tmp_path / "file") in report.results[0].error


def test_a_picture_too_large_for_its_wish_fails_alone(model, photos, tmp_path):
    write(photos / "tiny.png", np.zeros((2, 2, 3), np.uint8))
    report = run(model, photos, width=64, output=tmp_path / "out")
    assert [r.status for r in report.results] == ["done"] * 5 + ["failed"]
    assert "tiny.png" in report.results[-1].error
    assert "at most 16" in report.results[-1].error


def test_stale_temporary_files_are_removed_and_others_kept(model, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    stale = part_path(out / "gone_x4.png")  # of a result that is not made again
    stale.write_bytes(b"half")
    other = out / ".thesis.txt.part"
    other.write_bytes(b"not ours")
    run(model, photos / "p0.png", output=str(out))
    assert not stale.exists()
    assert other.exists()


def test_floats_stay_tiff(model, tmp_path):
    write(tmp_path / "f.tiff", smooth_image(8, 9, 1).astype(np.float32) / np.float32(255))
    write(tmp_path / "i.tiff", smooth_image(8, 9))
    report = run(model, tmp_path / "f.tiff", tmp_path / "i.tiff")
    assert [r.target.name for r in report.results] == ["f_x4.tiff", "i_x4.png"]
    assert read(tmp_path / "f_x4.tiff").pixels.dtype == np.float32
    assert [r.status for r in run(model, tmp_path / "f.tiff", tmp_path / "i.tiff").results] == ["skipped", "skipped"]


def test_jpeg_and_quality(model, photos, tmp_path):
    sizes = []
    for quality in (20, 90):
        run(model, photos / "p0.png", output=tmp_path / "x.jpg", quality=quality, overwrite=True)
        assert read(tmp_path / "x.jpg").source_format == "jpeg"
        sizes.append((tmp_path / "x.jpg").stat().st_size)
    assert sizes[0] < sizes[1]


def test_the_report_is_json(model, photos, tmp_path):
    (photos / "p4.png").write_bytes(b"no image")
    (photos / "readme.txt").write_bytes(b"")
    report = run(model, photos, output=tmp_path / "out", tile=64, verify_tiles=True)
    document = json.loads(json.dumps(report.to_json()))
    assert set(document) == {
        *("model", "device", "precision", "files", "other_files", "done", "skipped", "failed", "notices", "seconds")
    }
    assert (document["done"], document["skipped"], document["failed"]) == (4, 0, 1)
    assert document["other_files"] == [str(photos / "readme.txt")]
    first, last = document["files"][0], document["files"][-1]
    assert set(first) == {
        *("input", "output", "status", "input_size", "output_size", "seconds", "choice", "frames", "passes", "notices"),
        *("tile_difference", "error"),
    }
    assert first["input_size"] == [30, 20]
    assert first["passes"][0]["scale"] == 4
    assert set(first["passes"][0]["plan"]) >= {"tile_height", "tile_width", "rows", "columns", "overlap", "batch"}
    assert first["tile_difference"] == {"mean": 0, "max": 0}
    assert last["status"] == "failed"
    assert last["error"]["code"] == "image"


def test_reading_and_writing_go_on_beside_the_network(model, photos, tmp_path, monkeypatch):
    threads: dict[str, set[str]] = {"read": set(), "write": set()}
    real_read, real_write = batch.read, batch.write

    def spy_read(*args, **kwargs):
        threads["read"].add(threading.current_thread().name)
        return real_read(*args, **kwargs)

    def spy_write(*args, **kwargs):
        threads["write"].add(threading.current_thread().name)
        return real_write(*args, **kwargs)

    monkeypatch.setattr(batch, "read", spy_read)
    monkeypatch.setattr(batch, "write", spy_write)
    run(model, photos, output=tmp_path / "out")
    assert len(threads["read"]) == len(threads["write"]) == 1
    assert threads["read"].isdisjoint(threads["write"])
    assert threading.main_thread().name not in threads["read"] | threads["write"]


def test_few_pictures_are_held_however_many_there_are(model, photos, tmp_path, monkeypatch):
    for i in range(5, 25):
        write(photos / f"q{i:02}.png", smooth_image(8, 8, seed=i))
    ahead, alive = [], [0, 0]
    real_read = batch.read

    def count_read(path):
        alive[0] += 1
        ahead.append(alive[0] - alive[1])
        return real_read(path)

    class Count(Listener):
        def finished(self, result: FileResult) -> None:
            alive[1] += 1

    monkeypatch.setattr(batch, "read", count_read)
    report = run(model, photos, output=tmp_path / "out", listener=Count())
    assert report.count("done") == 25
    assert max(ahead) <= batch.READ_AHEAD + batch.WRITE_BEHIND + 3


def test_an_interruption_ends_cleanly(model, photos, tmp_path):
    class Interrupt(Listener):
        def progress(self, job: Job, done: float) -> None:
            if job.source.name == "p2.png":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(model, photos, output=tmp_path / "out", listener=Interrupt())
    assert not [t for t in threading.enumerate() if t.name.startswith("drct-")]
    assert all(read(p).width > 0 for p in (tmp_path / "out").glob("*.png"))
    assert not list((tmp_path / "out").glob(".*.part"))
    assert run(model, photos, output=tmp_path / "out").exit_code == 0


@pytest.mark.parametrize("strips", ["on", "off"])
@pytest.mark.parametrize("error", [drct.ImageError("mine"), PermissionError(13, "mine"), MemoryError("mine")])
def test_what_a_listener_raises_is_no_error_of_the_file(model, photos, tmp_path, error: Exception, strips: str):
    class Broken(Listener):
        def progress(self, job: Job, done: float) -> None:
            raise error

    with pytest.raises(type(error)) as raised:
        run(model, photos, output=tmp_path / "out", strips=strips, listener=Broken())
    assert raised.value is error
    assert error.__cause__ is None
    assert not [t for t in threading.enumerate() if t.name.startswith("drct-")]
    assert run(model, photos, output=tmp_path / "out").exit_code == 0


def test_results_of_other_pictures_do_not_stand_for_an_animation(model, tmp_path):
    """a.jpg and a.gif have results beside them, of different names if a.gif is animated."""
    frames = [Picture(smooth_image(16, 12)), Picture(smooth_image(16, 12)[::-1].copy())]
    write(tmp_path / "a.jpg", frames[0])
    write_pages(tmp_path / "a.gif", dataclasses.replace(frames[0].info, frames=2, delays=(100, 100)), frames)
    for name, result in (("a.jpg", "a_x4.png"), ("a.gif", "a_x4.gif")):
        (found,) = run(model, tmp_path / name).results
        assert (found.status, found.target) == ("done", tmp_path / result)
        (found,) = run(model, tmp_path / name).results
        assert (found.status, found.target) == ("skipped", tmp_path / result)
    (tmp_path / "a_x4.png").unlink()  # the animation's result does not stand for the photograph's either
    write(tmp_path / "a.gif", frames[0])
    assert [r.status for r in run(model, tmp_path / "a.gif").results] == ["done"]
    assert (tmp_path / "a_x4.png").is_file()


def test_empty_names_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for names in ({"inputs": ("",)}, {"inputs": ("a.png",), "output": ""}):
        with pytest.raises(drct.OptionError, match=r"(inputs|output).*: the name is empty"):
            UpscaleOptions(**names)


@pytest.mark.parametrize("inputs", [(), b"abc", 5, ["a", 3], None])
def test_inputs_are_names(inputs):
    with pytest.raises(drct.OptionError, match=r"inputs is .*: must be the names of image files and folders, at least one"):
        UpscaleOptions(inputs=inputs)
    for names in ("a", ["a"], iter(["a"]), Path("a")):
        assert UpscaleOptions(inputs=names).inputs == (Path("a"),)


@pytest.mark.parametrize("when", ["before", "amid"])
def test_a_thread_that_outlives_the_main_thread_goes_on(model, photos, tmp_path, when):
    script = """
        import sys, threading, drct
        from drct.upscaling import Listener

        upscale = drct.upscale  # brings torch, which cannot be imported so late

        begun = threading.Event()
        source, target, model, when = sys.argv[1:]

        class Waiting(Listener):
            def finished(self, result):
                begun.set()
                threading.main_thread().join()

        def work():
            if when == "before":
                threading.main_thread().join()
            report = upscale(drct.UpscaleOptions(inputs=source, output=target, model=model, device="cpu"), Waiting())
            print(report.count("done"), report.count("failed"))

        threading.Thread(target=work).start()
        if when == "amid":
            begun.wait()
    """
    arguments = [sys.executable, "-c", textwrap.dedent(script), photos, tmp_path / "out", model, when]
    run = subprocess.run(arguments, capture_output=True, text=True, timeout=100)
    assert (run.stdout, run.stderr, run.returncode) == ("5 0\n", "", 0)

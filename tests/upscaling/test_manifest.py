"""What is made again and what is not, and who is at what."""

from __future__ import annotations

import dataclasses
import itertools
import os
import sqlite3
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from upscaling_helpers import content, smooth_image, tiny_network

from drct.errors import ManifestError
from drct.imaging import read, write
from drct.networks import SuperResolutionNetwork, create_network
from drct.upscaling import FileResult, Listener, UpscaleOptions, Upscaler, manifest, memory, upscale
from drct.upscaling.jobs import Job
from drct.upscaling.manifest import Manifest, Stamp
from drct.weights import load_network, save_network


@pytest.fixture
def photos(quick_path: Path) -> Path:
    """Three pictures, made an hour ago."""
    folder = quick_path / "photos"
    folder.mkdir()
    for i in range(3):
        write(folder / f"p{i}.png", smooth_image(12 + i, 14, seed=i))
        age(folder / f"p{i}.png")
    return folder


@pytest.fixture
def out(quick_path: Path) -> Path:
    return quick_path / "out"


def age(path: Path, seconds: float = 3600) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def run(model: Path | str, folder: Path, out: Path, listener: Listener | None = None, **options) -> list[FileResult]:
    return list(upscale(UpscaleOptions(inputs=(folder,), output=out, model=model, device="cpu", **options), listener).results)


def states(results: list[FileResult]) -> str:
    return " ".join(result.status for result in results)


def test_nothing_is_made_twice(model, photos, out):
    assert states(run(model, photos, out)) == "done done done"
    before = content(out)
    again = run(model, photos, out)
    assert states(again) == "skipped skipped skipped"
    assert [r.input_size for r in again] == [(14, 12), (14, 13), (14, 14)]
    assert [r.output_size for r in again] == [(56, 48), (56, 52), (56, 56)]
    assert content(out) == before


def test_changed_inputs_are_noticed(model, photos, out):
    run(model, photos, out)
    write(photos / "p1.png", smooth_image(20, 20))
    assert states(run(model, photos, out)) == "skipped done skipped"
    assert read(out / "p1_x4.png").width == 80


def test_a_new_time_alone_changes_nothing(model, photos, out):
    run(model, photos, out)
    age(photos / "p1.png", 60)
    age(out / "p2_x4.png", 60)
    assert states(run(model, photos, out)) == "skipped skipped skipped"
    # the new times are known now: the content is not read again
    data = bytearray((photos / "p1.png").read_bytes())
    data[-20] ^= 1
    status = (photos / "p1.png").stat()
    (photos / "p1.png").write_bytes(data)
    os.utime(photos / "p1.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert states(run(model, photos, out)) == "skipped skipped skipped"


def test_files_from_the_far_future(model, photos, out):
    """Dates before 1677 and beyond 2262 are more nanoseconds than SQLite counts."""
    assert manifest.mtime_of(SimpleNamespace(st_mtime_ns=-(2**64))) == -(2**63)
    status = (photos / "p1.png").stat()
    try:
        os.utime(photos / "p1.png", (status.st_atime, 10_413_792_000))
    except OverflowError:
        pytest.skip("this file system cannot hold such a time")
    if (photos / "p1.png").stat().st_mtime_ns < 2**63:
        pytest.skip("this file system cannot hold such a time")
    assert states(run(model, photos, out)) == "done done done"
    assert states(run(model, photos, out)) == "skipped skipped skipped"
    os.utime(out / "p1_x4.png", (status.st_atime, 10_413_792_000))
    assert states(run(model, photos, out)) == "skipped skipped skipped"
    write(photos / "p1.png", smooth_image(13, 14, seed=9))
    os.utime(photos / "p1.png", (status.st_atime, 10_413_792_000))
    assert states(run(model, photos, out)) == "skipped done skipped"


def test_a_change_right_after_reading_is_noticed_although_the_time_is_the_same(model, photos, out):
    picture = photos / "p1.png"
    picture.write_bytes(picture.read_bytes())
    run(model, photos, out)
    status = picture.stat()
    pixels = smooth_image(13, 14, seed=1)
    write(picture, pixels[::-1].copy())
    data = picture.read_bytes()
    picture.write_bytes(data + b"\0" * (status.st_size - len(data)) if len(data) < status.st_size else data)
    os.utime(picture, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert states(run(model, photos, out)) == "skipped done skipped"


@pytest.mark.parametrize("changed", [{"ensemble": True}, {"tile": 16}, {"precision": "bf16"}, {"alpha": "resize"}, {"overlap": 4}])
def test_other_options_make_other_results(model, photos, out, changed):
    run(model, photos, out)
    assert states(run(model, photos, out, **changed)) == "done done done"
    assert states(run(model, photos, out, **changed)) == "skipped skipped skipped"


@pytest.mark.parametrize("same", [{"scale": 4}, {"verify_tiles": True}, {"recursive": True}])
def test_some_options_make_the_same_results(model, photos, out, same):
    run(model, photos, out)
    assert states(run(model, photos, out, **same)) == "skipped skipped skipped"


def test_other_weights_make_other_results_and_another_file_name_does_not(model, photos, out, quick_path):
    run(model, photos, out)
    network = load_network(model)
    save_network(network, quick_path / "other-name.safetensors")
    assert states(run(quick_path / "other-name.safetensors", photos, out)) == "skipped skipped skipped"
    network.conv_first.bias.data[0] += 1e-3
    save_network(network, quick_path / "other-name.safetensors")
    assert states(run(quick_path / "other-name.safetensors", photos, out)) == "done done done"


def test_the_same_weights_in_a_network_of_other_options_make_other_results(model, network, photos, out, quick_path):
    other = create_network("drct", **{**network.option_dict, "img_range": 255.0})
    other.load_state_dict(network.state_dict())
    assert Upscaler(other, device="cpu").digest(4) != Upscaler(network, device="cpu").digest(4)
    save_network(other, quick_path / "other-range.safetensors")
    run(model, photos, out)
    assert states(run(quick_path / "other-range.safetensors", photos, out)) == "done done done"


def test_only_the_networks_that_made_a_result_count(family, photos, out, tmp_path):
    assert states(run(family, photos, out, width=28)) == "done done done"
    network = tiny_network(3)
    network.conv_first.bias.data[0] += 1e-3
    save_network(network, tmp_path / "models" / "tiny-x3.safetensors")
    assert states(run(family, photos, out, width=28)) == "skipped skipped skipped"
    assert states(run(family, photos, out, scale=3)) == "done done done"


def test_overwrite_makes_all_again(model, photos, out):
    run(model, photos, out)
    assert states(run(model, photos, out, overwrite=True)) == "done done done"


def test_removed_results_are_made_again_the_same(model, photos, out):
    run(model, photos, out)
    before = content(out)
    (out / "p0_x4.png").unlink()
    assert states(run(model, photos, out)) == "done skipped skipped"
    assert content(out) == before


def test_a_result_that_somebody_changed_is_kept(model, photos, out):
    run(model, photos, out)
    write(out / "p0_x4.png", np.zeros((48, 56, 3), np.uint8))
    results = run(model, photos, out)
    assert states(results) == "skipped skipped skipped"
    assert "--overwrite" in results[0].notices[0]
    assert states(run(model, photos, out, ensemble=True)) == "skipped done done"
    assert not read(out / "p0_x4.png").pixels.any()
    assert states(run(model, photos, out, overwrite=True)) == "done done done"


def test_a_result_whose_input_is_another_file_is_kept(model, photos, out, quick_path):
    run(model, photos, out)
    other = quick_path / "other"
    other.mkdir()
    write(other / "p0.png", smooth_image(9, 9))
    write(other / "p1.png", read(photos / "p1.png"))
    before = content(out)
    results = run(model, other, out)
    assert states(results) == "failed skipped"  # the second has the same content
    assert str(photos / "p0.png") in results[0].error
    assert content(out) == before
    for path in photos.iterdir():
        path.unlink()
    assert states(run(model, other, out)) == "done skipped"  # the pictures have moved, and one has changed


def test_a_moved_pair_of_folders_is_known(model, photos, out, quick_path):
    run(model, photos, out)
    (quick_path / "elsewhere").mkdir()
    photos.rename(quick_path / "elsewhere" / "photos")
    out.rename(quick_path / "elsewhere" / "out")
    assert states(run(model, quick_path / "elsewhere" / "photos", quick_path / "elsewhere" / "out")) == "skipped skipped skipped"


def animation(path: Path, seed: int) -> None:
    frames = [Image.fromarray(smooth_image(8, 9, seed=seed + i)) for i in range(2)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def test_an_input_that_becomes_another_kind_takes_its_old_result_along(model, photos, out):
    picture = photos / "p1.png"
    picture.unlink()
    picture = picture.with_suffix(".gif")
    Image.fromarray(smooth_image(8, 9)).save(picture)
    assert states(run(model, photos, out)) == "done done done"
    for make, name in (
        (lambda: animation(picture, 1), "p1_x4.gif"),
        (lambda: animation(picture, 5), "p1_x4.gif"),
        (lambda: Image.fromarray(smooth_image(7, 9)).save(picture), "p1_x4.png"),
    ):
        make()
        results = run(model, photos, out)
        assert states(results) == "skipped done skipped"
        assert [path.name for path in out.glob("p1*")] == [name]
        results = run(model, photos, out)
        assert states(results) == "skipped skipped skipped"
        assert (results[1].target, results[1].notices) == (out / name, ())


def test_an_old_result_of_another_kind_is_kept_if_somebody_changed_it(model, photos, out):
    (photos / "p1.png").unlink()
    picture = photos / "p1.gif"
    animation(picture, 1)
    run(model, photos, out)
    picture.unlink()
    Image.fromarray(smooth_image(8, 9)).save(picture)
    (out / "p1_x4.gif").write_bytes(b"mine")
    results = run(model, photos, out, overwrite=True)
    assert results[1].target == out / "p1_x4.png"
    assert results[1].notices == (f"{out / 'p1_x4.gif'}, the earlier result, was changed since it was made, and is kept",)
    results = run(model, photos, out)
    assert states(results) == "skipped skipped skipped"
    assert "p1_x4.gif lies beside the result, was not made with it, and is kept" in results[1].notices[0]
    (out / "p1_x4.png").unlink()
    assert "p1_x4.gif is there, but was not made here, and is kept" in run(model, photos, out)[1].notices[0]
    # a file that is not ours is not replaced either
    (out / "p1_x4.gif").unlink()
    run(model, photos, out)
    (out / "p1_x4.gif").write_bytes(b"mine")
    animation(picture, 2)
    results = run(model, photos, out)
    assert states(results) == "skipped failed skipped"
    assert "p1_x4.gif lies where the result belongs" in results[1].error
    assert (out / "p1_x4.gif").read_bytes() == b"mine"
    assert states(run(model, photos, out, overwrite=True)) == "done done done"
    assert not (out / "p1_x4.png").exists()


def test_failures_are_tried_again(model, photos, out):
    whole = (photos / "p1.png").read_bytes()
    (photos / "p1.png").write_bytes(whole[:100])
    assert states(run(model, photos, out)) == "done failed done"
    assert states(run(model, photos, out)) == "skipped failed skipped"
    (photos / "p1.png").write_bytes(whole)
    assert states(run(model, photos, out)) == "skipped done skipped"


def test_a_file_that_changes_while_it_is_upscaled_is_made_again(model, photos, out):
    class Change(Listener):
        def progress(self, job: Job, done: float) -> None:
            if job.source.name == "p1.png":
                write(job.source, smooth_image(13, 14, seed=9))

    results = run(model, photos, out, Change())
    assert states(results) == "done done done"
    assert "changed while" in results[1].notices[0]
    assert states(run(model, photos, out)) == "skipped done skipped"


def test_results_among_their_inputs(model, photos):
    assert states(run(model, photos, photos)) == "done done done"
    assert states(run(model, photos, photos)) == "skipped skipped skipped"


def test_a_name_stays_when_another_file_would_want_it(model, photos, out):
    run(model, photos, out)
    write(photos / "p0.webp", smooth_image(8, 8))
    results = run(model, photos, out)
    assert {r.source.name: r.target.name for r in results} == {
        "p0.png": "p0_x4.png",
        "p0.webp": "p0.webp_x4.png",
        "p1.png": "p1_x4.png",
        "p2.png": "p2_x4.png",
    }
    assert states(results) == "skipped done skipped skipped"


def test_names_that_differ_in_case_stay(model, photos, out):
    run(model, photos, out)
    write(photos / "P0.png", smooth_image(8, 8))
    for expected in ("done skipped skipped skipped", "skipped skipped skipped skipped"):
        results = run(model, photos, out)
        assert states(results) == expected
        assert [r.target.name for r in results[:2]] == ["P0.png_x4.png", "p0_x4.png"]
    # an earlier release gave both the short name
    with sqlite3.connect(out / manifest.NAME) as db:
        db.execute("UPDATE files SET target = ?, result = ? WHERE target = ?", (b"P0_x4.png", b"P0_x4.png", b"P0.png_x4.png"))
    for expected in ("done done skipped skipped", "skipped skipped skipped skipped"):
        assert states(run(model, photos, out)) == expected


class Break(Listener):
    """Interrupts a run when it is in the middle of a file."""

    def __init__(self, name: str) -> None:
        self.name = name

    def progress(self, job: Job, done: float) -> None:
        if job.source.name == self.name and done < 1:
            raise KeyboardInterrupt


class BreakAfter(Break):
    """Interrupts a run when a file is done."""

    def progress(self, job: Job, done: float) -> None:
        pass

    def finished(self, result: FileResult) -> None:
        if result.source.name == self.name:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("first", "later"), [(0, 1 << 40), (1 << 40, 0)])
def test_the_bytes_do_not_depend_on_the_memory_that_is_free_when_a_run_goes_on(
    photos, quick_path, model, monkeypatch, first, later
):
    for i in range(6):  # more than the queues hold, so that some are left when the first is done
        write(photos / f"p{i}.png", smooth_image(70 + i, 60, seed=i))
    # without free memory the smallest tiles are taken, with it pictures of this size are not cut
    monkeypatch.setattr(memory, "free_memory", lambda device: first)
    plans = {r.source: r.passes[0].plan for r in run(model, photos, quick_path / "whole")}
    with pytest.raises(KeyboardInterrupt):
        run(model, photos, quick_path / "out", Break("p1.png") if first == 0 else BreakAfter("p0.png"))
    monkeypatch.setattr(memory, "free_memory", lambda device: later)
    results = run(model, photos, quick_path / "out")
    again = {r.source: r.passes[0].plan for r in results if r.status == "done"}
    assert again
    assert again.items() <= plans.items()
    assert content(quick_path / "out") == content(quick_path / "whole")
    # a new folder is cut as the memory allows now
    assert all(r.passes[0].plan != plans[r.source] for r in run(model, photos, quick_path / "else"))


def test_the_plan_of_an_interrupted_picture_is_used_again(photos, out, quick_path, model, network: SuperResolutionNetwork):
    """Even where the folder's own tile size would now be another one."""
    for i in range(3):
        write(photos / f"p{i}.png", smooth_image(100 + i, 90, seed=i))

    def upscaler(limit: int | None) -> Upscaler:
        upscaler = Upscaler(network, device="cpu")
        upscaler.fix_tiles(4, limit)
        return upscaler

    options = UpscaleOptions(inputs=(photos,), output=out, model=model)
    with pytest.raises(KeyboardInterrupt):
        upscale(options, Break("p1.png"), upscaler(64))
    with sqlite3.connect(out / manifest.NAME) as db:
        assert db.execute("UPDATE limits SET tile = NULL").rowcount == 1
    report = upscale(options, None, upscaler(None))
    sizes = {r.source.name: [p.plan.tile_height for p in r.passes] for r in report.results if r.status == "done"}
    assert sizes["p1.png"][0] < 101  # cut, as recorded
    assert sizes["p2.png"] == [102]


@pytest.mark.parametrize("better", [{"ensemble": True}, {"precision": "bf16"}, {"tile": 16}, {"tile": 16, "overlap": 8}])
def test_results_are_known_by_what_the_given_upscaler_does(photos, out, network: SuperResolutionNetwork, better):
    options = UpscaleOptions(inputs=(photos / "p0.png",), output=out)
    plain, other = Upscaler(network, device="cpu"), Upscaler(network, device="cpu", **better)
    assert states(upscale(options, None, plain).results) == "done"
    report = upscale(options, None, other)
    assert states(report.results) == "done"
    assert np.array_equal(read(out / "p0_x4.png").pixels, other(read(photos / "p0.png").pixels))
    assert states(upscale(options, None, other).results) == "skipped"
    assert (report.model, report.notices) == ("drct", ())
    # what the options say instead is told and not recorded
    unlike = options.model_copy(update=better)
    assert upscale(unlike, None, other).notices == ()
    report = upscale(unlike, None, plain)
    assert report.notices == (f"{', '.join(sorted(better))}: without effect, since the upscaler has its own",)
    assert states(upscale(options, None, plain).results) == "skipped"


def test_an_upscaler_made_by_hand_makes_what_the_options_ask_for(model, photos, out):
    assert states(run(model, photos, out, overlap=16)) == "done done done"
    given = Upscaler(model, device="cpu", overlap=16)
    report = upscale(UpscaleOptions(inputs=(photos,), output=out), None, given)
    assert (states(report.results), report.model) == ("skipped skipped skipped", str(model))


def test_a_given_upscaler_has_its_own_tiles_after_the_run(photos, out, network: SuperResolutionNetwork, monkeypatch):
    upscaler = Upscaler(network, device="cpu")
    upscaler.use_smaller_tiles(4, 128)
    assert states(upscale(UpscaleOptions(inputs=(photos,), output=out), None, upscaler).results) == "done done done"
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    assert upscaler.tile_limit(4) == 64  # follows the memory again


@pytest.mark.parametrize(("attempts", "whole"), [(manifest.SPENT - 1, False), (manifest.SPENT, True)])
def test_a_plan_that_processes_die_of_is_given_up(photos, out, model, network, attempts, whole):
    write(photos / "p1.png", smooth_image(101, 90))
    cautious, bold = Upscaler(network, device="cpu"), Upscaler(network, device="cpu")
    cautious.fix_tiles(4, 64)
    bold.fix_tiles(4, None)
    options = UpscaleOptions(inputs=(photos / "p1.png",), output=out, model=model)
    with pytest.raises(KeyboardInterrupt):
        upscale(options, Break("p1.png"), cautious)
    with sqlite3.connect(out / manifest.NAME) as db:
        assert db.execute("UPDATE files SET attempts = ? WHERE plans IS NOT NULL", (attempts,)).rowcount == 1
    (result,) = upscale(options, None, bold).results
    assert result.passes[0].plan.whole == whole


def test_a_tile_limit_holds_for_one_precision(model, photos, out):
    for precision in ("fp32", "bf16"):
        run(model, photos, out, precision=precision)
    with sqlite3.connect(out / manifest.NAME) as db:
        names = [name for (name,) in db.execute("SELECT name FROM limits")]
    assert sorted(name.split()[1] for name in names) == ["bf16", "fp32"]


def test_smaller_tiles_after_memory_ran_out_are_remembered(photos, out, model, network):
    for i in range(3):
        write(photos / f"p{i}.png", smooth_image(150 + i, 90, seed=i))
    upscaler = Upscaler(network, device="cpu")
    program = upscaler.program(4)
    real = type(program).__call__

    def narrow(self, x):
        if max(x.shape[-2:]) > 112:
            raise MemoryError
        return real(self, x)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(program), "__call__", narrow)
        report = upscale(UpscaleOptions(inputs=(photos / "p0.png",), output=out, model=model), None, upscaler)
    assert report.exit_code == 0
    assert any("memory ran out" in notice for notice in report.results[0].notices)
    report = upscale(UpscaleOptions(inputs=(photos,), output=out, model=model), None, Upscaler(network, device="cpu"))
    assert [r.status for r in report.results] == ["skipped", "done", "done"]
    assert all(r.passes[0].plan.tile_height <= 112 for r in report.results[1:])


# Leases


def test_a_lease_keeps_others_away_until_it_is_given_back(out, monkeypatch):
    one, two = Manifest(out), Manifest(out)
    target = out / "a_x4.png"
    assert one.claim([(target, None)]) == [True]
    assert two.claim([(target, None)]) == [False]
    (entry,) = two.look([target])
    assert entry is not None
    assert (entry.held, entry.mine) == (True, False)
    one.close()
    (entry,) = two.look([target])
    assert (entry.held, entry.attempts) == (False, 0)
    assert two.claim([(target, entry)]) == [True]
    two.close()


def test_a_dead_process_of_this_machine_holds_nothing(out):
    one = Manifest(out)
    one.claim([(out / "a_x4.png", None)])
    one.close()
    with sqlite3.connect(out / manifest.NAME) as db:
        identity = dataclasses.astuple(manifest._Identity.own())
        db.execute(
            "INSERT INTO runs (machine, boot, space, pid, born, beats) VALUES (?, ?, ?, ?, ?, 0)", (*identity[:4], "another time")
        )
        db.execute("UPDATE files SET run = (SELECT max(id) FROM runs)")
    two = Manifest(out)
    (entry,) = two.look([out / "a_x4.png"])
    assert not entry.held
    assert two.claim([(out / "a_x4.png", entry)]) == [True]
    (entry,) = two.look([out / "a_x4.png"])
    assert (entry.held, entry.mine, entry.attempts) == (True, True, 1)
    two.close()


def test_a_process_from_before_the_machine_was_started_anew_holds_nothing(out):
    """Although a living one has its number."""
    one = Manifest(out)
    one.claim([(out / "a_x4.png", None)])
    with sqlite3.connect(out / manifest.NAME) as db:
        db.execute("UPDATE runs SET boot = 'another boot'")
    two = Manifest(out)
    (entry,) = two.look([out / "a_x4.png"])
    assert not entry.held
    assert two.claim([(out / "a_x4.png", entry)]) == [True]
    one.close()
    two.close()


def test_a_process_of_another_machine_lives_as_long_as_its_heart_beats(out, monkeypatch):
    now = 1000.0
    monkeypatch.setattr(manifest, "time", SimpleNamespace(monotonic=lambda: now, time_ns=time.time_ns))
    one = Manifest(out)
    one.claim([(out / "a_x4.png", None)])
    one.close()
    with sqlite3.connect(out / manifest.NAME) as db:
        db.execute("INSERT INTO runs (machine, boot, space, pid, born, beats) VALUES ('another', '', '', 1, '', 0)")
        db.execute("UPDATE files SET run = (SELECT max(id) FROM runs)")
    two = Manifest(out)
    for _ in range(3):
        assert two.look([out / "a_x4.png"])[0].held
        now += 0.9 * manifest.LEASE
        with sqlite3.connect(out / manifest.NAME) as db:
            db.execute("UPDATE runs SET beats = beats + 1 WHERE machine = 'another'")
    assert two.look([out / "a_x4.png"])[0].held
    now += 1.1 * manifest.LEASE
    assert not two.look([out / "a_x4.png"])[0].held
    two.close()


def test_an_error_of_any_kind_reaches_who_waits(photos, out):
    """Or they would wait for ever, as they did for a file from the year 2300."""
    one = Manifest(out)
    target = out / "a_x4.png"
    with pytest.raises(ZeroDivisionError):
        one._wait(lambda db: 1 // 0)
    assert one.claim([(target, None)]) == [True]
    # what SQLite cannot take holds up nothing else
    one.begin(target, photos / "p0.png", Stamp(1, 2**63, "", 0), manifest.Work("{}", ("digest",)), ())
    assert one.look([target])[0].mine
    assert "1 entries cannot be recorded" in one.close()


def test_broken_files_of_any_name_stop_nothing(model, photos, out):
    """Names that are no UTF-8 stand in the messages of the manifest."""
    for i in range(3):
        (photos / os.fsdecode(b"a\xff%d.png" % i)).write_bytes(b"no image")
    for wanted in ("done done done", "skipped skipped skipped"):
        results = run(model, photos, out)
        assert states(results[-3:]) == wanted
        assert states(results[:3]) == "failed failed failed"


def test_a_live_process_with_the_number_of_another_counts_only_by_its_heart(out, monkeypatch):
    """Where the system does not tell when processes began, as macOS."""
    monkeypatch.setattr(manifest, "LEASE", 0.1)
    monkeypatch.setattr(manifest, "_line", lambda path: "")
    one = Manifest(out)
    one.claim([(out / "a_x4.png", None)])
    with sqlite3.connect(out / manifest.NAME) as db:
        db.execute("UPDATE runs SET pid = ?", (os.getppid(),))
    two = Manifest(out)
    assert two.look([out / "a_x4.png"])[0].held
    time.sleep(0.2)
    assert not two.look([out / "a_x4.png"])[0].held
    one.close()
    two.close()


def test_another_user_s_process_is_no_proof_of_life(monkeypatch):
    def kill(pid, number):
        raise PermissionError

    monkeypatch.setattr(os, "kill", kill)
    own = manifest._Identity.own()
    assert dataclasses.replace(own, born="another time").alive(own) is False
    assert dataclasses.replace(own, born="").alive(own) is None


def test_a_heart_beats_by_itself(out, monkeypatch):
    monkeypatch.setattr(manifest, "HEARTBEAT", 0.02)
    one = Manifest(out)
    deadline = time.monotonic() + 30
    beats = 0
    while beats < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
        with sqlite3.connect(out / manifest.NAME) as db:
            beats = db.execute("SELECT beats FROM runs").fetchone()[0]
    one.close()
    assert beats >= 3


def test_a_run_waits_for_what_another_process_has_in_work(model, photos, out, monkeypatch):
    other = Manifest(out)
    other.claim([(out / "p1_x4.png", None)])
    told = []

    class Wait(Listener):
        def waiting(self, files: int) -> None:
            told.append(files)
            other.failed(out / "p1_x4.png", "p1.png: made up", "image")
            other.close()

    results = run(model, photos, out, Wait())
    assert told == [1]
    assert states(results) == "done failed done"
    assert results[1].error == "p1.png: made up"
    assert states(run(model, photos, out)) == "skipped done skipped"


# What is no manifest


def test_a_damaged_manifest_is_told(model, photos, out):
    out.mkdir()
    (out / manifest.NAME).write_bytes(b"not a database, certainly" * 100)
    with pytest.raises(ManifestError, match=r"is damaged .*delete it"):
        run(model, photos, out)
    (out / manifest.NAME).unlink()
    run(model, photos, out)
    data = bytearray((out / manifest.NAME).read_bytes())
    data[4096 : 4096 + 8192] = b"\xff" * 8192
    (out / manifest.NAME).write_bytes(data)
    with pytest.raises(ManifestError, match="is damaged"):
        run(model, photos, out)


def test_other_databases_are_left_alone(model, photos, out):
    out.mkdir()
    with sqlite3.connect(out / manifest.NAME) as db:
        db.execute("CREATE TABLE mine (x)")
    with pytest.raises(ManifestError, match="not a manifest"):
        run(model, photos, out)
    with sqlite3.connect(out / manifest.NAME) as db:
        db.execute("DROP TABLE mine")
        db.execute(f"PRAGMA application_id = {manifest.APPLICATION}")
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ManifestError, match="newer drct"):
        run(model, photos, out)


def test_a_folder_that_cannot_be_written_fails_and_others_go_on(model, photos, quick_path):
    (quick_path / "more").mkdir()
    write(quick_path / "more" / "m.png", smooth_image(8, 8))
    (quick_path / "photos_x4").write_text("a file stands in the way")
    report = upscale(UpscaleOptions(inputs=(photos, quick_path / "more"), model=model, device="cpu"))
    assert [r.status for r in report.results] == ["failed"] * 3 + ["done"]
    assert "photos_x4: no results can be written here" in report.results[0].error
    with pytest.raises(ManifestError, match="no results can be written here"):
        upscale(UpscaleOptions(inputs=(photos,), model=model, device="cpu"))


def test_stamps(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    age(path)
    stamp = Stamp.of(path)
    assert stamp.settled
    assert stamp.same(path)
    assert stamp.still(path)
    for size, content_, aged in itertools.product((3, 4), (b"o", b"x"), (True, False)):
        path.write_bytes((content_ + b"nexx")[:size] if content_ == b"x" else b"one!"[:size])
        if aged:
            os.utime(path, ns=(stamp.mtime, stamp.mtime))
        expected = size == 3 and (aged or content_ == b"o")
        assert stamp.same(path) == expected
    path.unlink()
    assert not stamp.still(path)

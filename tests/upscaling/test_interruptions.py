"""Runs that are killed, and runs that share a folder: nothing lost, nothing done twice, the same bytes."""

from __future__ import annotations

import random
import sqlite3
import time
from pathlib import Path

import pytest
from upscaling_helpers import Nursery, content, smooth_image

from drct.imaging import write
from drct.upscaling import UpscaleOptions, batch, manifest, upscale


def make_photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        write(folder / f"p{i:02}.png", smooth_image(24 + i % 5, 36 - i % 7, seed=i))
    return folder


def arguments(model: Path, photos: Path, out: Path) -> tuple[object, ...]:
    return "upscale", photos, "-o", out, "-m", model, "--tile", 16, "--overlap", 4, "--device", "cpu"


def made(out: Path) -> dict[str, int]:
    """Results and which file each is; a result that is made again is another file."""
    return {path.name: path.stat().st_ino for path in out.glob("[!.]*")}


def kill_and_finish(nursery: Nursery, model: Path, folder: Path, kills: int, pictures: int, seed: int) -> None:
    photos, whole, out = make_photos(folder / "photos", pictures), folder / "whole", folder / "out"
    start = time.monotonic()
    assert nursery.wait(nursery.start(*arguments(model, photos, whole))) == 0
    seconds = time.monotonic() - start
    expected = content(whole)
    assert len(expected) == pictures
    rng = random.Random(seed)
    killed = 0
    before: dict[str, int] = {}
    for _ in range(kills):
        child = nursery.start(*arguments(model, photos, out))
        # somewhere between the very beginning and two pictures further
        further = rng.choice([-1, 0, 1])
        deadline = time.monotonic() + 300
        while further >= 0 and len(made(out)) <= len(before) + further and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 2 * seconds / pictures))
        killed += nursery.kill(child)
        found = {name: data for name, data in content(out).items() if not name.startswith(".")}
        assert found.items() <= expected.items()
        now = made(out)
        again = [name for name in before if now[name] != before[name]]
        assert len(again) <= batch.WRITE_BEHIND + 2, "more than what was in work was made again"
        before = now
    assert killed >= kills - 2
    assert nursery.wait(nursery.start(*arguments(model, photos, out))) == 0
    assert content(out) == expected
    assert not list(out.glob("*-journal"))
    with sqlite3.connect(out / manifest.NAME) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT DISTINCT state FROM files").fetchall() == [("done",)]
        assert db.execute("SELECT count(*) FROM runs").fetchone() == (0,)
    last = made(out)
    assert nursery.wait(nursery.start(*arguments(model, photos, out))) == 0
    assert made(out) == last


def test_killed_three_times(nursery, model, quick_path):
    kill_and_finish(nursery, model, quick_path, kills=3, pictures=10, seed=1)


@pytest.mark.slow
def test_killed_thirty_times(nursery, model, quick_path):
    kill_and_finish(nursery, model, quick_path, kills=30, pictures=90, seed=11)


def test_three_processes_share_the_work(nursery, model, quick_path):
    photos, out = make_photos(quick_path / "photos", 12), quick_path / "out"
    nursery.log.write_text("")
    children = [nursery.start(*arguments(model, photos, out)) for _ in range(3)]
    assert [nursery.wait(child) for child in children] == [0, 0, 0]
    lines = nursery.log.read_text().splitlines()
    assert sorted(line.split()[0] for line in lines if " -> " in line) == sorted(str(p) for p in photos.iterdir())
    alone = upscale(UpscaleOptions(inputs=(photos,), model=model, output=quick_path / "alone", tile=16, overlap=4, device="cpu"))
    assert alone.exit_code == 0
    assert content(out) == content(quick_path / "alone")

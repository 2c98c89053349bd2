"""Hostile image files: thousands of damaged ones end in a picture or in the one-line error, soon and in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import pyvips
from pictures import exif_with, smooth

from drct.imaging import Picture, write

# Runs apart, so that a crash or a runaway is seen and not suffered. Prints counts, the slowest file and the memory.
PROGRAM = """
import json, random, resource, sys, time
from pathlib import Path
from drct.errors import ImageError
from drct.imaging import read, read_size
folder, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
random.seed(seed)
seeds = sorted(p for p in folder.iterdir() if p.stem.startswith("seed"))
for path in seeds:
    read(path)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
good = bad = 0
slowest = 0.0
for i in range(count):
    origin = seeds[i % len(seeds)]
    data = bytearray(origin.read_bytes())
    kind = random.random()
    if kind < 0.15:
        del data[random.randrange(len(data)):]
    elif kind < 0.25:
        at = random.randrange(len(data))
        data[at:at] = bytes(random.randrange(256) for _ in range(random.randrange(1, 40)))
    elif kind < 0.35:
        at = random.randrange(len(data))
        del data[at:at + random.randrange(1, 40)]
    else:
        reach = len(data) if random.random() < 0.5 else min(len(data), 200)
        for _ in range(random.choice((1, 1, 2, 4, 16))):
            data[random.randrange(reach)] = random.choice((0, 1, 127, 128, 255, random.randrange(256)))
    path = folder / ("mutant" + origin.suffix)
    path.write_bytes(data)
    start = time.monotonic()
    try:
        picture = read(path, max_pixels=4_000_000)
        assert picture.pixels.size > 0
        assert read_size(path, max_pixels=4_000_000) == picture.pixels.shape[:2]
        good += 1
    except ImageError as error:
        assert "\\n" not in str(error) and str(path) in str(error), str(error)
        bad += 1
    slowest = max(slowest, time.monotonic() - start)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({"good": good, "bad": bad, "slowest": slowest, "grown_kb": grown}))
"""


def make_seeds(folder: Path, srgb_profile: bytes) -> None:
    colour, grey = smooth(40, 50, 3), smooth(40, 50, 1)
    full = Picture(colour, grey[:, :, 0], srgb_profile, exif_with(), b"<x:xmpmeta/>")
    for suffix in ("png", "jpg", "webp", "tif"):
        write(folder / f"seed_full.{suffix}", full)
        write(folder / f"seed_grey.{suffix}", grey)
    write(folder / "seed_deep.png", smooth(40, 50, 3, "uint16"))
    write(folder / "seed_float.tif", smooth(40, 50, 3, "float32"))
    image = pyvips.Image.new_from_array(colour)
    image.jpegsave(str(folder / "seed_progressive.jpg"), interlace=True)
    image.icc_transform("cmyk", input_profile="srgb").jpegsave(str(folder / "seed_cmyk.jpg"))
    image.webpsave(str(folder / "seed_lossless.webp"), lossless=True)
    image.tiffsave(str(folder / "seed_jpeg.tif"), compression="jpeg", tile=True)
    image.tiffsave(str(folder / "seed_lzw.tif"), compression="lzw", bigtiff=True)
    image.gifsave(str(folder / "seed.gif"))
    image.pngsave(str(folder / "seed_palette.png"), palette=True, interlace=True)
    image.heifsave(str(folder / "seed.avif"), compression="av1")


def fuzz(folder: Path, srgb_profile: bytes, count: int, seed: int, timeout: float) -> dict[str, float]:
    make_seeds(folder, srgb_profile)
    arguments = [sys.executable, "-c", PROGRAM, str(folder), str(count), str(seed)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    result: dict[str, float] = json.loads(done.stdout)
    assert result["good"] + result["bad"] == count
    assert result["good"] > count // 20
    assert result["bad"] > count // 20
    assert result["slowest"] < 10
    assert result["grown_kb"] < 1_000_000
    return result


def test_two_thousand_mutants(tmp_path: Path, srgb_profile: bytes) -> None:
    fuzz(tmp_path, srgb_profile, 2000, seed=0, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_twenty_thousand_mutants(tmp_path: Path, srgb_profile: bytes, seed: int) -> None:
    fuzz(tmp_path, srgb_profile, 20_000, seed, timeout=3000)

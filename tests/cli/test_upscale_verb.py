"""``drct upscale`` from the outside."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from drct import cli
from drct.imaging import read, write


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    write(tmp_path / "a.png", rng.integers(0, 256, (12, 10, 3), np.uint8))
    return Path("a.png")


def upscale(model: Path, *arguments: object) -> int:
    return cli.run(["upscale", "--model", str(model), "--device", "cpu", *map(str, arguments)])


def test_one_file(tiny_model, photo, capsys):
    assert upscale(tiny_model, photo) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("a.png -> a_x4.png  (10 x 12 -> 40 x 48, ")
    assert captured.out.count("\n") == 1
    assert captured.err == ""
    assert (read("a_x4.png").width, read("a_x4.png").height) == (40, 48)


def test_existing_results(tiny_model, photo, capsys):
    Path("a_x4.png").write_bytes(b"mine")
    assert upscale(tiny_model, photo) == 0
    assert capsys.readouterr().out == "a_x4.png exists, skipped\n"
    assert upscale(tiny_model, photo, "--overwrite") == 0
    assert read("a_x4.png").width == 40


@pytest.mark.parametrize(
    ("arguments", "name", "size"),
    [
        (["-s", "2.5"], "a_x2.5.png", (25, 30)),
        (["--width", "33"], "a_w33.png", (33, 40)),
        (["--width", "33", "--height", "20"], "a_33x20.png", (33, 20)),
        (["-o", "out/b.webp"], "out/b.webp", (40, 48)),
        (["-o", "out", "--format", "tiff"], "out/a_x4.tiff", (40, 48)),
        (["--ensemble", "--tile", "16", "--overlap", "4"], "a_x4.png", (40, 48)),
        (["--tile", "off"], "a_x4.png", (40, 48)),
    ],
)
def test_options(tiny_model, photo, arguments, name, size):
    assert upscale(tiny_model, photo, *arguments) == 0
    assert (read(name).width, read(name).height) == size


def test_names_with_odd_characters(tiny_model, photo, capsys):
    names = [
        "-dash.png",
        " space .png",
        "ünï cödé 図.png",
        "brack[et]{s}.png",
        "new\nline.png",
        "p%d$HOME'.png",
        os.fsdecode(b"latin\xe9.png"),
    ]
    for name in names:
        Path(name).write_bytes(photo.read_bytes())
    assert upscale(tiny_model, "-o", "out/", "--", *names) == 0
    assert sorted(p.name for p in Path("out").glob("[!.]*")) == sorted(Path(n).stem + "_x4.png" for n in names)
    out = capsys.readouterr().out
    assert out.count("\n") == len(names) + 1
    assert "new\\nline.png -> " in out
    assert "ünï cödé 図.png -> " in out


def test_a_name_that_gets_too_long_is_cut(tiny_model, photo, capsys):
    for last in "yz":
        Path("x" * 250 + last + ".png").write_bytes(photo.read_bytes())
    Path("ü" * 125 + ".png").write_bytes(photo.read_bytes())
    assert upscale(tiny_model, ".", "-o", "out") == 0
    assert capsys.readouterr().err.count("the name of the result was cut") == 3
    names = sorted(p.name for p in Path("out").glob("[!.]*"))
    assert len(names) == 4
    assert all(name.endswith("_x4.png") and len(os.fsencode(name)) <= 255 for name in names)
    assert upscale(tiny_model, ".", "-o", "out") == 0
    assert "0 done, 4 skipped, 0 failed" in capsys.readouterr().out


def test_names_that_are_too_long_fail_in_one_line(tiny_model, photo, capsys):
    long = "x" * 300
    assert upscale(tiny_model, f"{long}.png", photo, "-o", "out") == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[0] == f"drct: error: {long}.png: File name too long"
    assert "1 done, 0 skipped, 1 failed" in captured.out
    for model, output in ((tiny_model, long), (tiny_model, f"{long}.png"), (long, "out"), (f"{long}.pth", "out")):
        assert upscale(model, photo, "-o", output) in (1, 2)
        error = capsys.readouterr().err
        assert error.startswith("drct: error: ")
        assert error.count("\n") == 1
        assert long in error


def test_some_failed(tiny_model, photo, capsys):
    Path("bad.png").write_text("no image")
    assert upscale(tiny_model, "bad.png", photo, "missing.jpg", "-o", "out") == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines[0].startswith("drct: error: bad.png: ")
    assert lines[1].startswith("drct: error: missing.jpg: ")
    assert lines[2] == "drct: error: 2 of 3 files failed: bad.png, missing.jpg"
    assert captured.out.endswith("1 done, 0 skipped, 2 failed\n")


def test_a_file_that_may_not_be_read_is_one_of_those_that_failed(tiny_model, photo, capsys, monkeypatch):
    write("b.png", np.zeros((5, 5, 3), np.uint8))
    Path("b.png").chmod(0)
    opened, access = Path.open, os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: "b.png" not in str(path) and access(path, mode, **more))

    def refuse(path, *arguments, **more):  # root, as whom tests may run, is refused nothing
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", refuse)
    assert upscale(tiny_model, "b.png", photo) == 1
    captured = capsys.readouterr()
    assert "drct: error: b.png: cannot be opened (Permission denied)\n" in captured.err
    assert "a.png -> a_x4.png" in captured.out


def test_json(tiny_model, photo, capsys):
    Path("bad.png").write_text("no image")
    assert upscale(tiny_model, "bad.png", photo, "--json", "--verify-tiles") == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [f["status"] for f in document["files"]] == ["failed", "done"]
    assert document["files"][1]["output"] == "a_x4.png"
    assert document["files"][1]["passes"][0]["plan"]["rows"] == [0]
    assert document["device"] == "cpu"


def test_verify_tiles(tiny_model, photo, capsys):
    assert upscale(tiny_model, photo, "--verify-tiles", "--tile", "16", "-s", "2") == 0
    assert "tiled against whole: mean difference 0.00e+00, largest 0.00e+00" in capsys.readouterr().out
    write("b.png", np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8))
    assert upscale(tiny_model, "b.png", "--verify-tiles", "--tile", "16", "--overlap", "4", "--json") == 0
    difference = json.loads(capsys.readouterr().out)["files"][0]["tile_difference"]
    assert 0 < difference["mean"] < difference["max"] < 0.5


def test_quiet(tiny_model, photo, capsys):
    assert upscale(tiny_model, photo, "-q") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scale", "17"], "scale is 17"),
        (["--scale", "2", "--width", "10"], "not both"),
        (["--tile", "big"], "tile is 'big'"),
        (["--tile", "8"], "too small"),
        (["--format", "bmp"], "'bmp'"),
        (["--alpha", "x"], "alpha is 'x'"),
        (["--device", "abacus"], "abacus"),
        (["--precision", "fp3"], "fp3"),
        (["-o", "a.png"], "would replace the input"),
        (["-o", "out.bmp"], "suffix"),
        (["--model", "no-such-model"], "no-such-model"),
        (["--model", "missing.pth"], "missing.pth"),
        (["--model", "https://x.org/net.pth"], "download the file first"),
        (["--watch"], "is not a folder"),
    ],
)
def test_wrong_usage_is_told_in_one_line_and_writes_nothing(tiny_model, photo, capsys, arguments, message):
    code = cli.run(["upscale", str(photo), "--device", "cpu", "--model", str(tiny_model), *arguments])
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("drct: error: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert code == 2
    assert sorted(p.name for p in Path().iterdir()) == ["a.png"]


def test_a_file_that_is_no_model(photo, capsys):
    Path("bad.pth").write_bytes(b"not weights")
    assert cli.run(["upscale", str(photo), "--model", "bad.pth"]) == 1
    err = capsys.readouterr().err
    assert "bad.pth" in err
    assert err.count("\n") == 1


def test_an_empty_folder(tiny_model, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert upscale(tiny_model, tmp_path / "empty") == 0
    assert "no images found" in capsys.readouterr().err


def test_progress_bar_on_a_terminal(tiny_model, photo):
    """On a terminal there is a bar, and it goes away; the result's line stays on standard output."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "drct", "upscale", photo, "-m", tiny_model, "--device", "cpu", "--tile", "16"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=slave, text=True)
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError:  # the terminal ends with its process
        pass
    out = process.communicate()[0]
    os.close(master)
    assert process.returncode == 0, shown
    assert out.startswith("a.png -> a_x4.png")
    assert b"1 of 1  a.png" in shown
    assert b"100%" in shown


ODD_GOOD = {
    "00017_gray.png": (500, 351),
    "alpha.webp": (128, 128),
    "animated.gif": (128, 128),
    "children-alpha.png": (566, 350),
    "cmyk.jpg": (128, 128),
    "exif_rotated.jpg": (128, 128),
    "float_gray.tiff": (128, 128),
    "gray16.png": (128, 128),
    "gray8.png": (128, 128),
    "one_pixel.png": (1, 1),
    "palette.png": (128, 128),
    "palette_transparent.png": (128, 128),
    "thin.png": (3, 40),
    "tree_alpha_16bit.png": (342, 256),
    "with_srgb_icc.png": (128, 128),
    "wolf_gray.jpg": (236, 236),
}
ODD_BROKEN = ["broken_bomb.png", "broken_empty.png", "broken_text.png", "broken_truncated.jpg"]


def is_transparent(picture):
    """Animations of GIF have an alpha of their own even where every frame is opaque."""
    return picture.alpha is not None and picture.alpha.min() < picture.alpha.max()


def test_every_odd_file(shared, tiny_model, tmp_path, capsys):
    folder, out = shared / "data" / "odd", tmp_path / "out"
    images = [path for path in sorted(folder.iterdir()) if path.name in ODD_GOOD or path.name in ODD_BROKEN]
    assert upscale(tiny_model, *images, "-o", out, "--json") == 1
    captured = capsys.readouterr()
    files = {Path(f["input"]).name: f for f in json.loads(captured.out)["files"]}
    assert {name for name, f in files.items() if f["status"] == "failed"} == {*ODD_BROKEN}
    for name in ODD_BROKEN:
        line = next(line for line in captured.err.splitlines() if f"{name}: " in line)
        assert line.startswith("drct: error: ")
        assert files[name]["error"]["message"] in line
    assert "Traceback" not in captured.err
    assert {p.name for p in out.glob("[!.]*")} == {Path(files[name]["output"]).name for name in ODD_GOOD}
    for name, (width, height) in ODD_GOOD.items():
        before, after = read(folder / name), read(files[name]["output"])
        assert (before.width, before.height) == (width, height)
        assert (after.width, after.height) == (4 * width, 4 * height)
        assert after.pixels.dtype == before.pixels.dtype
        assert after.is_grey == before.is_grey
        assert is_transparent(after) == is_transparent(before)
        assert after.icc == before.icc
        assert (after.exif is None) == (before.exif is None)
    assert files["float_gray.tiff"]["output"].endswith("float_gray_x4.tiff")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["", "-s", "2"], "the name is empty"),
        (["a.png", "-o", ""], "the name is empty"),
        (["a.png", "--lossless", "--format", "jpg"], "lossless"),
        (["a.png", "-o", "b.png", "--pyramid"], "pyramid"),
    ],
)
def test_what_cannot_be_is_wrong_usage(tiny_model, photo, capsys, arguments: list[str], words: str):
    assert upscale(tiny_model, *arguments) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in Path().iterdir()] == ["a.png"]

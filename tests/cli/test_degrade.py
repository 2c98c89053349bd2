"""``drct degrade``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from drct.cli import run
from drct.degradation import DegradationOptions, degrade_picture
from drct.degradation.process import Step
from drct.degradation.samples import Sample
from drct.errors import OptionError
from drct.imaging import Picture, read, write


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    y, x = np.mgrid[0:70, 0:90]
    write(tmp_path / "photo.png", np.stack([x * 2, y * 3, (x + y) % 32 * 8], -1).astype(np.uint8))
    return tmp_path / "photo.png"


@pytest.mark.parametrize("preset", ["real", "web", "camera"])
def test_the_same_seed_makes_the_same_image(preset: str, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        target = tmp_path / f"{name}.png"
        assert run(["degrade", str(photo), "-o", str(target), "--preset", preset, "--seed", str(seed)]) == 0
        results.append(read(target).pixels)
    assert results[0].shape == (17, 22, 3)
    np.testing.assert_array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == lines[2] != lines[4]
    assert lines[0].startswith("seed 1: ")
    assert "JPEG" in lines[0] or "WebP" in lines[0]
    assert lines[1] == f"{photo} -> {tmp_path / 'a.png'}  (90 x 70 -> 22 x 17)"


def test_the_profile_goes_along(tmp_path: Path) -> None:
    profile = (
        pytest.importorskip("PIL.ImageCms").ImageCmsProfile(pytest.importorskip("PIL.ImageCms").createProfile("sRGB")).tobytes()
    )
    write(tmp_path / "a.png", Picture(np.full((40, 40, 3), 90, np.uint8), icc=profile))
    assert run(["degrade", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png")]) == 0
    assert read(tmp_path / "b.png").icc == profile


def test_seeds_are_numbers_of_32_bits(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The generator takes no more of a number: larger ones would repeat the results of smaller ones."""
    command = ["degrade", str(photo), "-o", str(tmp_path / "b.png"), "--seed"]
    assert run([*command, str(2**32 - 1)]) == 0
    assert run([*command, str(2**32)]) == 2
    assert "--seed" in capsys.readouterr().err
    assert run([*command, str(2**32 - 1), "--sheet", "2"]) == 2
    assert "the seed of a sample is 4294967296, but must be within 0 to 4294967295" in capsys.readouterr().err
    for seed in (-1, 2**32):
        with pytest.raises(OptionError, match="seed of a sample"):
            degrade_picture(read(photo), DegradationOptions(), seed=seed)


def test_floats_beyond_one_are_brought_there(photo: Path) -> None:
    """As they are for networks: cut off, they would become white."""
    near = read(photo).pixels.astype(np.float32)
    near = (near - near.min()) / (near.max() - near.min())
    samples = [
        degrade_picture(Picture(x), DegradationOptions(), seed=3).pixels for x in (near, near * np.float32(512) - np.float32(256))
    ]
    assert np.abs(samples[0].astype(int) - samples[1]).max() <= 2


def test_a_sheet_shows_several_draws(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["degrade", str(photo), "-o", str(tmp_path / "sheet.png"), "--sheet", "3", "--scale", "2", "--seed", "7"]) == 0
    sheet = read(tmp_path / "sheet.png").pixels
    assert sheet.shape[0] > 2 * 2 * 70  # pictures of less than 128 pixels are shown twice as large, beside their labels
    assert sheet.shape[1] == 8 + 3 * (2 * 90 + 8)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["seed 7", "seed 8", "seed 9"]
    # single images with these seeds are drawn alike, as far as their sizes allow
    assert run(["degrade", str(photo), "-o", str(tmp_path / "one.png"), "--scale", "2", "--seed", "8"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == lines[1]


def test_option_files_degrade_as_they_train(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(__file__).resolve().parents[2] / "options" / "train"
    published = folder / "train_Real_DRCT_SRx4_mse_model.yml"
    assert run(["degrade", str(photo), "-o", str(tmp_path / "a.png"), "-opt", str(published), "--seed", "3"]) == 0
    assert run(["degrade", str(photo), "-o", str(tmp_path / "b.png"), "--seed", "3"]) == 0
    np.testing.assert_array_equal(read(tmp_path / "a.png").pixels, read(tmp_path / "b.png").pixels)
    capsys.readouterr()
    assert run(["degrade", str(photo), "-o", str(tmp_path / "c.png"), "-opt", str(folder / "drct_light_x4.yml")]) == 2
    assert "drct_light_x4.yml trains on bicubic LR" in capsys.readouterr().err
    assert run(["degrade", str(photo), "-o", str(tmp_path / "c.png"), "-opt", str(published), "--preset", "web"]) == 2
    assert "give either --preset web or -opt" in capsys.readouterr().err
    assert not (tmp_path / "c.png").exists()


def test_labels_are_short() -> None:
    steps = [("blur", "iso", 2.0), ("noise", "colour Gaussian", 7.0), ("compress", "JPEG", 63.7), ("again", "area", 0.5)]
    sample = Sample(np.zeros((1, 1, 3), np.uint8), 4, tuple(Step(stage, (name,), (value,)) for stage, name, value in steps))
    assert sample.label == "4: noise 7.0, JPEG 64"
    assert sample.words == "iso 2.0, colour Gaussian 7.0, JPEG 64, area x0.50"


def test_pictures_of_all_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = np.full((40, 40), 30000, np.uint16)
    write(tmp_path / "grey.png", Picture(deep, alpha=np.full((40, 40), 65535, np.uint16)))
    assert run(["degrade", str(tmp_path / "grey.png"), "-o", str(tmp_path / "out.png"), "-q"]) == 0
    assert read(tmp_path / "out.png").pixels.shape == (10, 10, 3)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["PHOTO", "-o", "x.png", "--preset", "wbe"], 2, "there is no degradation preset 'wbe' (did you mean 'web'?)"),
        (["missing.png", "-o", "x.png"], 1, "missing.png"),
        (["PHOTO", "-o", "x.xyz"], 2, "x.xyz"),
        (["TINY", "-o", "x.png"], 2, "3 x 3 pixels are too few for scale 4"),
        (["PHOTO", "-o", "x.png", "--scale", "0"], 2, "--scale"),
        (["PHOTO", "-o", "x.png", "--sheet", "0"], 2, "--sheet"),
        (["PHOTO"], 2, "--output"),
    ],
)
def test_mistakes_end_in_one_line(
    arguments: list[str], code: int, message: str, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(photo.parent)
    write("tiny.png", np.zeros((3, 3, 3), np.uint8))
    names = {"PHOTO": "photo.png", "TINY": "tiny.png"}
    assert run(["degrade", *(names.get(a, a) for a in arguments)]) == code
    assert message in capsys.readouterr().err
    assert not (photo.parent / "x.png").exists()


def test_the_input_is_not_overwritten(photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = photo.read_bytes()
    (tmp_path / "other.png").hardlink_to(photo)
    for output in (photo, tmp_path / "other.png"):
        assert run(["degrade", str(photo), "-o", str(output)]) == 2
        assert "is the input" in capsys.readouterr().err
    assert photo.read_bytes() == before

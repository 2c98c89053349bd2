"""drct compare: metrics, sheets and pages of versions of the same pictures."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pyvips
from PIL import Image

from drct.errors import DataError, OptionError
from drct.evaluation import CompareOptions, compare, psnr
from drct.evaluation.comparison import largest_differences, make_sheet
from drct.imaging import Picture as Carried
from drct.imaging import read, read_bytes, to_tensor, write

Picture = Callable[..., np.ndarray]


@pytest.fixture
def versions(tmp_path: Path, picture: Picture) -> list[Path]:
    """Two folders with a picture and a slightly wrong version of it, and a third with another."""
    for j, folder in enumerate(("good", "fair", "bad")):
        (tmp_path / folder).mkdir()
        for i, name in enumerate(("a", "b")):
            pixels = picture(60, 50, seed=i)
            pixels[:, 10 : 10 + 4 * j] = 255 - pixels[:, 10 : 10 + 4 * j]
            write(tmp_path / folder / f"{name}{'_x4' if j == 1 else ''}.png", pixels)
    return [tmp_path / folder for folder in ("good", "fair", "bad")]


def run(tmp_path: Path, *inputs: Path, **options: object):
    return compare(CompareOptions(inputs=inputs, output=tmp_path / "out", **options))


def test_files(tmp_path: Path, versions: list[Path]) -> None:
    result = run(tmp_path, versions[0] / "a.png", versions[1] / "a_x4.png")
    assert result.labels == ["a.png", "a_x4.png"]
    good, fair = (to_tensor(read(p).pixels).double() for p in (versions[0] / "a.png", versions[1] / "a_x4.png"))
    assert result.values["a"]["a_x4.png"]["psnr"] == pytest.approx(psnr(fair, good, y=True).item(), abs=1e-3)
    assert [path.name for path in result.files] == ["a.png", "index.html", "figures.json"]
    assert all(path.is_file() for path in result.files)
    assert json.loads((tmp_path / "out" / "figures.json").read_text())["reference"] == "a.png"


def test_folders(tmp_path: Path, versions: list[Path]) -> None:
    result = run(tmp_path, *versions, metrics=["psnr", "ssim", "psnr_rgb"])
    assert result.labels == ["good", "fair", "bad"]
    assert list(result.values) == ["a", "b"]
    for values in result.values.values():
        assert values["fair"]["psnr"] > values["bad"]["psnr"]
    assert "mean of 2" in result.table()
    assert (tmp_path / "out" / "index.html").read_text().count("<figure ") == 2


def test_labels_tell_files_of_one_name_apart(tmp_path: Path, versions: list[Path]) -> None:
    assert run(tmp_path, versions[0] / "a.png", versions[2] / "a.png").labels == ["good", "bad"]
    with pytest.raises(OptionError, match="given twice"):
        run(tmp_path, versions[0], versions[0])


def test_what_does_not_fit_is_named(tmp_path: Path, versions: list[Path], picture: Picture) -> None:
    good, _, bad = versions
    for name in ("c", "d", "e"):
        write(good / f"{name}.png", picture(60, 50))
    write(bad / "c.png", picture(60, 51))
    write(bad / "d.png", picture(60, 50).astype(np.uint16))
    write(bad / "f.png", picture(60, 50))
    result = run(tmp_path, good, bad)
    assert list(result.values) == ["a", "b"]
    causes = "\n".join(result.left_out)
    for words in ("c.png is 51 x 60", "d.png has 16 bits", "e.png: ", "f.png: "):
        assert words in causes
    assert len(result.left_out) == 4


def test_smaller_versions_are_enlarged(tmp_path: Path, picture: Picture) -> None:
    write(tmp_path / "lr.png", picture(15, 10))
    write(tmp_path / "sr.png", picture(60, 40))
    result = run(tmp_path, tmp_path / "sr.png", tmp_path / "lr.png")
    assert result.notices == ["sr: lr.png is enlarged x4 by bicubic interpolation"]


def test_the_reference_has_values_of_its_own(tmp_path: Path, picture: Picture, metric_weights: Path) -> None:
    for i in range(2):
        write(tmp_path / f"{i}.png", np.random.default_rng(i).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    result = run(tmp_path, tmp_path / "0.png", tmp_path / "1.png", metrics=["niqe", "psnr"])
    values = result.values["0"]
    assert values["0.png"]["psnr"] is None
    assert values["0.png"]["niqe"] is not None


def test_wrong_inputs(tmp_path: Path, versions: list[Path]) -> None:
    with pytest.raises(OptionError, match="nowhere does not exist"):
        run(tmp_path, versions[0], tmp_path / "nowhere")
    with pytest.raises(OptionError, match="either image files or folders"):
        run(tmp_path, versions[0], versions[1] / "a_x4.png")
    with pytest.raises(OptionError, match="inputs"):
        run(tmp_path, versions[0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="nothing could be compared"):
        run(tmp_path, versions[0], tmp_path / "empty")


def test_no_input_is_written_over(tmp_path: Path, versions: list[Path]) -> None:
    good, fair, _ = versions
    a, b = good / "a.png", good / "b.png"
    before = {path: path.read_bytes() for folder in versions for path in folder.iterdir()}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.symlink_to(good)
    for inputs, output, words in (
        ((a, b), good, "a.png is an input"),
        ((a, b), elsewhere, "a.png is an input"),
        ((good, fair), fair, "fair is an input"),
        ((fair / "a_x4.png", b), good, "a.png is not of an earlier comparison"),
    ):
        with pytest.raises(OptionError, match=words):
            compare(CompareOptions(inputs=inputs, output=output))
    assert {path: path.read_bytes() for folder in versions for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["index.html", "figures.json"])
def test_only_what_a_comparison_wrote_is_replaced(tmp_path: Path, versions: list[Path], name: str) -> None:
    run(tmp_path, *versions)
    run(tmp_path, *versions)  # its own files are
    out = tmp_path / "out"
    (out / "figures.json").unlink()
    (out / name).write_text('{"mine": 1}')
    with pytest.raises(OptionError, match=f"{name} is not of an earlier comparison"):
        run(tmp_path, *versions)
    assert (out / name).read_text() == '{"mine": 1}'


def test_two_images_of_one_name_in_a_folder_are_told(tmp_path: Path, versions: list[Path], picture: Picture) -> None:
    write(versions[1] / "a_x2.png", picture(60, 50))
    result = run(tmp_path, *versions)
    assert result.left_out == [f"{versions[1] / 'a_x2.png'}: a_x4.png beside it counts as the same image"]


def test_names_that_end_like_a_version_are_names(tmp_path: Path, picture: Picture) -> None:
    for folder, mark in (("good", ""), ("fair", "_x4")):
        (tmp_path / folder).mkdir()
        for name in ("box2", "box3", "img_1920x1080", "bo_1"):
            write(tmp_path / folder / f"{name}{mark}.png", picture(20, 20))
    for good, fair in (("baby", "babyx4"), ("bird", "bird_SRx4"), ("0801x2", "0801x4")):
        write(tmp_path / "good" / f"{good}.png", picture(20, 20))
        write(tmp_path / "fair" / f"{fair}.png", picture(20, 20))
    result = run(tmp_path, tmp_path / "good", tmp_path / "fair")
    assert sorted(result.values) == ["0801", "baby", "bird", "bo_1", "box2", "box3", "img_1920x1080"]
    assert result.left_out == []


def test_colour_profiles_are_kept_and_told(tmp_path: Path, picture: Picture) -> None:
    wide, usual = (
        pyvips.Image.black(1, 1, bands=3).icc_export(output_profile=name).get("icc-profile-data") for name in ("p3", "srgb")
    )
    for name, icc in (("a", wide), ("b", wide), ("c", usual), ("d", None)):
        write(tmp_path / f"{name}.png", Carried(picture(20, 20), icc=icc))

    def kept() -> list[bytes | None]:
        found = re.findall(r"data:image/webp;base64,([\w+/=]+)", (tmp_path / "out" / "index.html").read_text())
        return [read_bytes(base64.b64decode(body), "memory").icc for body in found] + [read(tmp_path / "out" / "a.png").icc]

    assert run(tmp_path, tmp_path / "a.png", tmp_path / "b.png").notices == []
    assert kept() == [wide, wide, wide]
    for other, icc in (("c", usual), ("d", None)):
        result = run(tmp_path, tmp_path / "a.png", tmp_path / f"{other}.png")
        assert result.notices == ["a: colour profiles differ: values are compared as they are"]
        assert kept() == [wide, icc, None]


def test_that_only_the_first_frame_is_compared_is_told(tmp_path: Path, picture: Picture) -> None:
    frames = [Image.fromarray(picture(20, 20, seed=seed)) for seed in (1, 2)]
    for name in ("a.gif", "b.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    result = run(tmp_path, tmp_path / "a.gif", tmp_path / "b.gif")
    assert result.notices == ["a: only the first of 2 frames is used"]


def test_transparency_is_laid_on_white(tmp_path: Path, picture: Picture) -> None:
    pixels = picture(30, 30)
    alpha = np.full((30, 30), 255, np.uint8)
    write(tmp_path / "opaque.png", Carried(pixels, alpha))
    alpha[5:20, 5:20] = 0
    write(tmp_path / "clear.png", Carried(pixels, alpha))
    result = run(tmp_path, tmp_path / "opaque.png", tmp_path / "clear.png")
    assert result.values["opaque"]["clear.png"]["psnr"] < 40
    assert result.notices == ["opaque: transparency is laid on white"]


def test_crops_lie_where_the_difference_is() -> None:
    first = np.zeros((40, 50, 3), np.uint8)
    second = first.copy()
    second[5:9, 30:34] = 200
    second[30:34, 6:10] = 100
    found = largest_differences([first, second], 8, 3)
    assert len(found) == 2  # no third: the rest is equal
    (top, left), (top2, left2) = found
    assert top <= 5
    assert top + 8 >= 9
    assert left <= 30
    assert left + 8 >= 34
    assert top2 <= 30
    assert left2 <= 6


def test_sheets_of_any_size(picture: Picture) -> None:
    for height, width in ((1, 1), (7, 300), (500, 20), (60, 2000)):
        a, b = picture(height, width), picture(height, width, seed=1)
        sheet = make_sheet([a, b, a], ["one", "two", "three"])
        assert sheet.dtype == np.uint8
        assert sheet.shape[1] < 1300
    assert make_sheet([a, a], ["one", "two"]).shape[0] < 200  # equal versions have no crops


def test_nothing_is_left_of_a_comparison_of_nothing(tmp_path: Path, picture: Picture) -> None:
    for name, width in (("a", 40), ("b", 37)):
        write(tmp_path / f"{name}.png", picture(40, width))
    for kept in (False, True):
        with pytest.raises(DataError, match="nothing could be compared"):
            compare(CompareOptions(inputs=(tmp_path / "a.png", tmp_path / "b.png"), output=tmp_path / "out"))
        assert (tmp_path / "out").exists() == kept
        (tmp_path / "out").mkdir(exist_ok=True)  # somebody's
        (tmp_path / "out/notes.txt").touch()


def test_a_metric_that_does_not_fit_costs_nothing_else(tmp_path: Path, picture: Picture) -> None:
    for i, folder in enumerate(("one", "two")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "thin.png", picture(40, 3, seed=i))
    result = run(tmp_path, tmp_path / "one", tmp_path / "two")
    values = result.values["thin"]["two"]
    assert values["ssim"] is None
    assert values["psnr"] is not None
    assert result.left_out == []
    assert [notice.startswith("thin: SSIM needs") for notice in result.notices] == [True]
    assert (tmp_path / "out" / "thin.png").is_file()


def test_notes_count_images_and_not_versions(tmp_path: Path, picture: Picture) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for i in range(2):
            write(tmp_path / folder / f"{i}.png", Carried(picture(30, 30, seed=i), np.full((30, 30), 9, np.uint8)))
    assert run(tmp_path, tmp_path / "one", tmp_path / "two").notices == ["0, 1: transparency is laid on white"]

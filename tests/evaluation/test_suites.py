"""Finding sets in the layouts of the field, and pairing their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import pyvips

from drct.errors import DataError, ImageError
from drct.evaluation.suites import Item, find_suites, load_pair, make_lr, pair_folders
from drct.imaging import Picture as Carried
from drct.imaging import write

Picture = Callable[..., np.ndarray]


def put(folder: Path, picture: Picture, *names: str, scale: int = 1) -> None:
    """Write images of one size, each divided by the scale."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        write(folder / name, picture(48 // scale, 40 // scale, seed=i))


@pytest.mark.parametrize(
    ("hr", "lr"),
    [
        ("Set5/HR/baby.png", "Set5/LR_bicubic/X4/babyx4.png"),
        ("Set5/GTmod12/baby.png", "Set5/LRbicx4/baby.png"),
        ("Set5/original/baby.png", "Set5/LR/x4/baby_x4.png"),
        ("set5/hr/baby.PNG", "set5/lr_x4/baby.png"),
        ("Set5/baby.png", "Set5/X4/baby.png"),
        ("Set5/image_SRF_4/img_001_SRF_4_HR.png", "Set5/image_SRF_4/img_001_SRF_4_LR.png"),
        ("HR/Set5/x4/baby_HR_x4.png", "LR/LRBI/Set5/x4/baby_LRBI_x4.png"),
        ("Set5_HR/0801.png", "Set5_LR_bicubic/X4/0801x4.png"),
        ("Set5/Set5_valid_HR/0801.png", "Set5/Set5_valid_LR_bicubic/X4/0801x4.png"),
        ("Set5/HR/baby.png", None),
        ("Set5/HR/baby.png", "Set5/LR_bicubic/X2/babyx2.png"),  # of another scale: LR is made
    ],
)
def test_layouts(tmp_path: Path, picture: Picture, hr: str, lr: str | None) -> None:
    put((tmp_path / hr).parent, picture, Path(hr).name)
    if lr is not None:
        put((tmp_path / lr).parent, picture, Path(lr).name, scale=4)
    (suite,) = find_suites(tmp_path, ["Set5"], 4)
    (item,) = suite.items
    assert suite.left_out == ()
    assert item.hr == tmp_path / hr
    assert item.lr == (None if lr is None or "X2" in lr else tmp_path / lr)
    pair = load_pair(item, 4)
    assert pair.hr is not None
    assert (pair.hr.shape, pair.lr.shape) == ((48, 40, 3), (12, 10, 3))


def test_the_shared_sets_are_found(shared: Path) -> None:
    suites = find_suites(shared / "data/benchmarks", [], 4)
    assert [(suite.name, len(suite.items)) for suite in suites] == [("BSD100", 100), ("Set14", 14), ("Set5", 5)]
    assert [suite.left_out for suite in suites] == [(), (), ()]


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_is_made_as_the_published_one(shared: Path, scale: int) -> None:
    (suite,) = find_suites(shared / "data/benchmarks", ["Set5"], scale)
    for item in suite.items:
        assert item.lr is not None
        made = load_pair(Item(item.name, item.hr, None), scale)
        assert np.array_equal(made.lr, load_pair(item, scale).lr), item.name


def test_a_set_can_be_named_otherwise(tmp_path: Path, picture: Picture) -> None:
    put(tmp_path / "B100" / "HR", picture, "1.png")
    assert len(find_suites(tmp_path, ["BSDS100"], 4)[0].items) == 1


def test_the_folder_itself_can_be_the_set(tmp_path: Path, picture: Picture) -> None:
    put(tmp_path / "Photos", picture, "a.png", "b.png")
    assert [(s.name, len(s.items)) for s in find_suites(tmp_path / "Photos", [], 4)] == [("Photos", 2)]
    put(tmp_path / "Set5" / "HR", picture, "a.png")
    assert len(find_suites(tmp_path / "Set5", ["Set5"], 4)[0].items) == 1


def test_lr_only(tmp_path: Path, picture: Picture) -> None:
    put(tmp_path, picture, "a.png", "b.png")
    suite = pair_folders("custom", None, tmp_path, 4)
    assert [(item.hr, item.lr) for item in suite.items] == [(None, tmp_path / "a.png"), (None, tmp_path / "b.png")]
    assert load_pair(suite.items[0], 4).hr is None


@pytest.mark.parametrize(
    ("hr", "lr", "others"),
    [
        ("img_001_SRF_4_HR.png", "img_001_SRF_4_LR.png", ("img_001_SRF_4_bicubic.png", "img_001_SRF_4_SRCNN.png")),
        ("baby_GT.png", "baby_x4.png", ("baby_x2.png", "baby_x2_bicubic.png")),
        ("baby_HR.png", "baby_LR.png", ("baby_x4.png",)),  # made by some method
        ("baby_HR_x4.png", "baby_LRBI_x4.png", ("baby_HR_x2.png", "baby_LRBI_x2.png")),
        ("baby_HR.png", None, ("babyx2.png", "baby_LR_x3.png")),  # of other scales: LR is made
    ],
)
def test_hr_and_lr_side_by_side(tmp_path: Path, picture: Picture, hr: str, lr: str | None, others: tuple[str, ...]) -> None:
    folder = tmp_path / "Set5/image_SRF_4"
    put(folder, picture, hr, *others)
    if lr is not None:
        put(folder, picture, lr, scale=4)
    expected = [(folder / hr, None if lr is None else folder / lr)]
    for data, names in ((tmp_path, ["Set5"]), (tmp_path / "Set5", []), (folder, [])):
        (suite,) = find_suites(data, names, 4)
        assert [(item.hr, item.lr) for item in suite.items] == expected
        cause = "its name says that it is another version of an HR image"
        assert sorted(suite.left_out) == sorted((str(folder / other), cause) for other in others)


def test_images_beside_pairs_that_are_neither_are_named(tmp_path: Path, picture: Picture) -> None:
    put(tmp_path, picture, "cat_HR.png", "cow_HR.png", "dog_HR.png", "cat_3.png")
    put(tmp_path, picture, "cat_LR.png", "cow_LR.png", "fox_LR.png", scale=4)
    (suite,) = find_suites(tmp_path, [], 4)
    assert [item.name for item in suite.items] == ["cat", "cow"]
    assert suite.left_out == (
        (str(tmp_path / "cat_3.png"), "its name says neither HR nor LR"),
        (str(tmp_path / "fox_LR.png"), "there is no HR image for it"),
        (str(tmp_path / "dog_HR.png"), f"{tmp_path} has no LR image for it"),
    )
    put(tmp_path / "image_SRF_4", picture, "1.png")
    suite = pair_folders("x", tmp_path / "image_SRF_4", tmp_path / "image_SRF_4", 4)
    assert suite.left_out == ((str(tmp_path / "image_SRF_4"), "it holds no image whose name ends in _HR or _GT"),)


def test_results_of_a_method_beside_pairs_are_told_once(tmp_path: Path, picture: Picture) -> None:
    put(tmp_path, picture, "a_HR.png", "b_HR.png", "a_SRCNN.png", "b_SRCNN.png", "a-b.png")
    put(tmp_path, picture, "a_LR.png", "b_LR.png", scale=4)
    (suite,) = find_suites(tmp_path, [], 4)
    assert [item.name for item in suite.items] == ["a", "b"]
    assert suite.left_out == (
        (str(tmp_path / "a-b.png"), "its name says that it is another version of an HR image"),
        (str(tmp_path), "2 images that end in _SRCNN are other versions of HR images by their names"),
    )


@pytest.mark.parametrize("names", [("a_GT.png", "b_GT.png"), ("a_HR.png", "a_LR_x2.png")])
def test_lr_that_was_asked_for_is_not_made(tmp_path: Path, picture: Picture, names: tuple[str, ...]) -> None:
    put(tmp_path, picture, *names)
    suite = pair_folders("x", tmp_path, tmp_path, 4)
    assert suite.items == ()
    assert suite.left_out == ((str(tmp_path), "it holds no LR image of scale 4, whose name ends in _LR or _x4"),)


def test_one_pair_by_name_does_not_make_a_folder_of_pairs(tmp_path: Path, picture: Picture) -> None:
    put(tmp_path, picture, "pic_hr.png", "pic_lr.png", "pic_2.png", "other.png")
    (suite,) = find_suites(tmp_path, [], 4)
    assert len(suite.items) == 4
    assert suite.left_out == ()


def test_ground_truth_by_name_stays_whole(tmp_path: Path, picture: Picture) -> None:
    put(tmp_path, picture, "a.png", "ax4.png", "b_HR.png", "c_GT.png", "d_x4.png", "e_LR.png", "img_001_SRF_4_HR.png")
    (suite,) = find_suites(tmp_path, [], 4)
    assert len(suite.items) == 7
    assert all(item.lr is None for item in suite.items)


def test_a_template_tells_the_names_of_one_folder(tmp_path: Path, picture: Picture) -> None:
    put(tmp_path, picture, "a.png", "bx4.png")
    put(tmp_path, picture, "a_small.png", "bx4_small.png", scale=4)
    suite = pair_folders("x", tmp_path, tmp_path, 4, "{}_small")
    assert [(item.hr, item.lr) for item in suite.items] == [
        (tmp_path / "a.png", tmp_path / "a_small.png"),
        (tmp_path / "bx4.png", tmp_path / "bx4_small.png"),
    ]
    assert suite.left_out == ()


def test_lr_beside_a_split_is_found_without_its_name(tmp_path: Path, picture: Picture) -> None:
    hr, lr = tmp_path / "DIV2K_valid_HR", tmp_path / "DIV2K_valid_LR_bicubic/X4"
    put(hr, picture, "0801.png")
    put(lr, picture, "0801x4.png", scale=4)
    for data, names in ((tmp_path, []), (tmp_path, ["DIV2K"]), (tmp_path, ["DIV2K_valid_HR"]), (hr, [])):
        (suite,) = find_suites(data, names, 4)
        assert [(item.hr, item.lr) for item in suite.items] == [(hr / "0801.png", lr / "0801x4.png")]
        assert suite.name == (names[0] if names else "DIV2K_valid_HR")
    ((item,),) = (suite.items for suite in find_suites(tmp_path, [], 2))
    assert item.lr is None


def test_unknown_sets_name_the_nearest(tmp_path: Path, picture: Picture) -> None:
    put(tmp_path / "Urban100" / "HR", picture, "1.png")
    with pytest.raises(DataError, match=r"no set 'Urban10' \(did you mean 'Urban100'\?\)"):
        find_suites(tmp_path, ["Urban10"], 4)
    with pytest.raises(DataError, match="not a folder"):
        find_suites(tmp_path / "nowhere", [], 4)
    (tmp_path / "empty" / "nothing").mkdir(parents=True)
    with pytest.raises(DataError, match="no benchmark set"):
        find_suites(tmp_path / "empty", [], 4)


def test_a_missing_lr_and_an_empty_folder_are_named(tmp_path: Path, picture: Picture) -> None:
    put(tmp_path / "Set5" / "HR", picture, "a.png", "b.png")
    put(tmp_path / "Set5" / "LRbicx4", picture, "a.png", scale=4)
    (tmp_path / "Set14" / "HR").mkdir(parents=True)
    five, fourteen = find_suites(tmp_path, ["Set5", "Set14"], 4)
    assert [item.name for item in five.items] == ["a"]
    ((name, cause),) = five.left_out
    assert name.endswith("b.png")
    assert "LRbicx4 has no LR image" in cause
    assert fourteen.items == ()
    assert fourteen.left_out == ((str(tmp_path / "Set14" / "HR"), "the folder holds no images"),)


def test_names_that_end_alike_stay_apart(tmp_path: Path, picture: Picture) -> None:
    put(tmp_path / "HR", picture, "a.png", "ax4.png", "b.png", "b.jpg")
    suite = pair_folders("x", tmp_path / "HR", None, 4)
    assert sorted(item.name for item in suite.items) == ["a", "ax4", "b.jpg", "b.png"]


def test_what_does_not_fit_is_refused(tmp_path: Path, picture: Picture) -> None:
    hr, lr = tmp_path / "hr.png", tmp_path / "lr.png"
    write(hr, picture(48, 40))
    write(lr, picture(12, 11))
    with pytest.raises(DataError, match=r"lr\.png is 11 x 12, but x4 of hr\.png \(40 x 48\) needs 10 x 12"):
        load_pair(Item("a", hr, lr), 4)
    write(lr, picture(12, 10).astype(np.uint16) * 257)
    with pytest.raises(DataError, match=r"lr\.png has 16 bits, but .*hr\.png has 8"):
        load_pair(Item("a", hr, lr), 4)
    write(hr, picture(3, 3))
    with pytest.raises(DataError, match="smaller than the scale"):
        load_pair(Item("a", hr, None), 4)
    hr.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"hr\.png"):
        load_pair(Item("a", hr, None), 4)
    write(tmp_path / "f.tiff", picture().astype(np.float32) / 255)
    with pytest.raises(DataError, match="floating point"):
        load_pair(Item("a", tmp_path / "f.tiff", None), 4)


def test_hr_is_cropped_and_grey_kept(tmp_path: Path, picture: Picture) -> None:
    write(tmp_path / "a.png", picture(50, 43, channels=1))
    pair = load_pair(Item("a", tmp_path / "a.png", None), 4)
    assert pair.hr is not None
    assert (pair.hr.shape, pair.lr.shape) == ((48, 40, 1), (12, 10, 1))
    write(tmp_path / "lr.png", np.repeat(pair.lr, 3, axis=2))
    mixed = load_pair(Item("a", tmp_path / "a.png", tmp_path / "lr.png"), 4)
    assert mixed.hr is not None
    assert mixed.hr.shape == (48, 40, 3)
    assert "grey" in mixed.notices[0]


def test_colour_profiles_of_hr_count(tmp_path: Path, picture: Picture) -> None:
    icc = pyvips.Image.black(1, 1, bands=3).icc_export(output_profile="p3").get("icc-profile-data")
    hr, lr = tmp_path / "hr.png", tmp_path / "lr.png"
    write(hr, Carried(picture(48, 40), icc=icc))
    write(lr, Carried(picture(12, 10), icc=icc))
    pairs = [load_pair(Item("a", *paths), 4) for paths in ((hr, None), (hr, lr), (None, lr))]
    assert [(pair.icc, pair.notices) for pair in pairs] == 3 * [(icc, ())]
    write(lr, picture(12, 10))
    pair = load_pair(Item("a", hr, lr), 4)
    assert pair.icc == icc
    assert pair.notices == ("colour profiles of HR and LR differ: values are compared as they are",)


def test_16_bits_stay_16_bits(picture: Picture) -> None:
    assert make_lr(picture(16, 16).astype(np.uint16) * 257, 4).dtype == np.uint16

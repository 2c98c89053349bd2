"""Packs, sampling, and LR made on the fly."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from drct.cli import run
from drct.datasets import lmdb as lmdb_module
from drct.datasets.lmdb import LmdbSource, _reader, write_lmdb
from drct.datasets.loader import PatchSet, batches, mirror
from drct.datasets.pack import Pack, write_pack
from drct.datasets.prepare import prepare
from drct.datasets.rgb8 import rgb8
from drct.datasets.sampling import PatchSampler, Tones
from drct.datasets.sources import (
    EnlargedSource,
    FolderSource,
    ImageSource,
    check_pairs,
    listed_names,
    lq_key,
    name_parts,
    open_source,
    pair_up,
)
from drct.datasets.verify import verify
from drct.errors import DataError, ImageError, OptionError
from drct.imaging import Picture, write

rng = np.random.default_rng(0)


def noise(h: int, w: int) -> np.ndarray:
    return rng.integers(0, 256, (h, w, 3), np.uint8)


def one_image(image: np.ndarray, name: str = "a.png") -> ImageSource:
    class One:
        def __len__(self) -> int:
            return 1

        def name(self, i: int) -> str:
            return name

        def shape(self, i: int) -> tuple[int, int]:
            return image.shape[0], image.shape[1]

        def __getitem__(self, i: int) -> np.ndarray:
            return image

    return One()


def test_pack_round_trip_and_append(tmp_path: Path) -> None:
    images = [("a", noise(5, 7)), ("b", noise(3, 2))]
    assert write_pack(tmp_path, images) == 2
    assert write_pack(tmp_path, [("c", noise(4, 4))], append=True) == 3
    pack = Pack(tmp_path)
    assert [pack.name(i) for i in range(3)] == ["a", "b", "c"]
    for i, (_, image) in enumerate(images):
        assert np.array_equal(pack[i], image)


def test_a_pack_cut_short_is_refused(tmp_path: Path) -> None:
    write_pack(tmp_path, [("a", noise(5, 7))])
    (tmp_path / "pixels.bin").write_bytes(b"short")
    with pytest.raises(DataError, match="5 bytes"):
        Pack(tmp_path)


def test_sampler_is_a_function_of_seed_and_number() -> None:
    sizes = [(20, 30), (40, 40), (16, 100)]
    a = PatchSampler(3, sizes.__getitem__, 16, seed=1)
    b = PatchSampler(3, sizes.__getitem__, 16, seed=1)
    forward = [a[k] for k in range(30)]
    assert forward == [b[k] for k in reversed(range(30))][::-1]
    assert forward != [PatchSampler(3, sizes.__getitem__, 16, seed=2)[k] for k in range(30)]
    assert {p.image for p in forward[:3]} == {0, 1, 2}  # each image once per epoch


def test_sampling_by_area_shows_every_pixel_equally_often() -> None:
    sizes = [(10, 10), (10, 40)]
    sampler = PatchSampler(2, sizes.__getitem__, 8, seed=0, by_area=True)
    drawn = [sampler[k].image for k in range(len(sampler))]
    assert drawn.count(1) == 4 * drawn.count(0)
    sizes = [(100, 100), (100, 101), (100, 150)]
    sampler = PatchSampler(3, sizes.__getitem__, 8, seed=0, by_area=True)
    counts = np.bincount([sampler[k].image for k in range(700 * len(sampler))])
    assert np.allclose(counts / counts.sum(), np.array([100, 101, 150]) / 351, rtol=0.03)
    assert abs(len(sampler) - 3.51) <= 0.5  # an epoch shows the smallest about once


def test_images_come_once_per_epoch_in_an_order_of_its_own() -> None:
    sampler = PatchSampler(5, lambda i: (8, 8), 8, seed=3)
    epochs = [[sampler[5 * e + k].image for k in range(5)] for e in range(3)]
    assert epochs == [[4, 0, 1, 2, 3], [2, 3, 4, 1, 0], [3, 1, 0, 4, 2]]  # as ever: runs are resumed


def test_all_eight_orientations_occur() -> None:
    sampler = PatchSampler(1, lambda i: (64, 64), 8, seed=0)
    assert len({(sampler[k].flip, sampler[k].rotations) for k in range(100)}) == 8
    plain = PatchSampler(1, lambda i: (64, 64), 8, seed=0, hflip=False, rotate=False)
    assert {(plain[k].flip, plain[k].rotations) for k in range(20)} == {(False, 0)}


@pytest.mark.parametrize(("hflip", "rotate"), [(True, False), (False, True)])
def test_flips_and_transposition_are_switched_as_published(hflip: bool, rotate: bool) -> None:
    """By use_hflip mirrored or not; by use_rot upside down or not, and transposed or not, each by itself."""
    patches = PatchSet(one_image(image := noise(8, 8)), None, 1, 8, 0, hflip=hflip, rotate=rotate, gt_only=True)
    shown = patches.ground_truth(patches.raw_batch(range(100)), torch.device("cpu")).mul(255).byte().permute(0, 2, 3, 1).numpy()
    upright = [image, image[::-1], image.transpose(1, 0, 2), image[::-1].transpose(1, 0, 2)]
    expected = upright if rotate else [image, image[:, ::-1]]
    counts = [sum(np.array_equal(a, b) for b in shown) for a in expected]
    assert sum(counts) == 100
    assert min(counts) > 10


def test_patches_reach_the_last_row_and_column() -> None:
    sampler = PatchSampler(1, lambda i: (9, 9), 8, seed=0)
    assert {(sampler[k].top, sampler[k].left) for k in range(100)} == {(0, 0), (0, 1), (1, 0), (1, 1)}


def test_moved_tones_keep_their_share_of_the_distance_to_a_colour() -> None:
    image = noise(6, 5)
    towards_white = Tones((255.0, 255.0, 255.0), 0.1)(image)
    assert towards_white.dtype == np.uint8
    assert np.abs((255.0 - towards_white) - (255.0 - image) * 0.1).max() <= 0.5
    colour = (10.0, 128.0, 250.0)
    assert np.abs(Tones(colour, 0.5)(image) - (image + np.array(colour)) / 2).max() <= 0.5
    assert np.array_equal(Tones(colour, 1.0)(image), image)


def test_a_share_of_the_patches_has_its_tones_moved_and_none_lies_elsewhere() -> None:
    plain, moved = (PatchSampler(4, lambda i: (64, 64), 8, seed=7, tone_share=share) for share in (0.0, 0.25))
    pairs = [(plain[k], moved[k]) for k in range(400)]
    assert [dataclasses.replace(b, tones=None) for _, b in pairs] == [a for a, _ in pairs]
    tones = [b.tones for _, b in pairs if b.tones is not None]
    assert 70 < len(tones) < 130
    assert all(0.05 <= t.contrast <= 1 for t in tones)
    black, white = (sum(t.colour == (v, v, v) for t in tones) for v in (0.0, 255.0))
    assert len(tones) / 8 < min(black, white)
    assert black + white < len(tones)
    saturated = sum(set(t.colour) == {0.0, 255.0} for t in tones)
    assert len(tones) / 8 < saturated < len(tones) / 3


def test_lr_is_made_from_the_moved_tones(tmp_path: Path) -> None:
    write_pack(tmp_path, [("a", noise(64, 64))])
    plain, moved = (PatchSet(Pack(tmp_path), None, 2, 32, seed=3, tone_share=share) for share in (0.0, 1.0))
    raw = moved.raw_batch(range(4))
    lq, gt = moved.finish(raw, torch.device("cpu"))
    plain_lq, plain_gt = plain.finish(plain.raw_batch(range(4)), torch.device("cpu"))
    for i, patch in enumerate(raw.patches):
        assert patch.tones is not None
        colour = torch.tensor(patch.tones.colour)[:, None, None] / 255
        for before, after, levels in ((plain_gt, gt, 0.51), (plain_lq, lq, 2.1)):  # LR is rounded after either pass
            expected = colour + patch.tones.contrast * (before[i] - colour)
            inside = (before[i] > 0) & (before[i] < 1)  # what the bicubic overshoots is cut off in the plain one only
            assert ((after[i] - expected)[inside].abs() * 255).max() < levels
    with pytest.raises(ValueError, match="rounded already"):
        PatchSet(Pack(tmp_path), Pack(tmp_path), 1, 32, seed=3, tone_share=0.5)


def test_an_image_thinner_than_the_scale_is_mirrored(tmp_path: Path) -> None:
    image = noise(3, 40)
    write_pack(tmp_path, [("thin", image)])
    (patch,) = PatchSet(Pack(tmp_path), None, 4, 32, 0, gt_only=True, hflip=False, rotate=False).raw_batch(range(1)).gt.numpy()
    assert {row.tobytes() for row in patch} <= {row[left : left + 32].tobytes() for row in image for left in range(9)}
    assert len({row.tobytes() for row in patch}) == 3


def test_workers_do_not_change_the_batches(tmp_path: Path) -> None:
    write_pack(tmp_path, [(str(i), noise(40 + i, 50)) for i in range(5)])
    patches = PatchSet(Pack(tmp_path), None, 4, 32, seed=3)
    one, four = (itertools.islice(batches(patches, 2, 4, workers=n), 6) for n in (0, 4))
    for a, b in zip(one, four, strict=True):
        assert a.patches == b.patches
        assert torch.equal(a.gt, b.gt)


def test_processes_share_a_batch_without_overlap(tmp_path: Path) -> None:
    write_pack(tmp_path, [(str(i), noise(40, 50)) for i in range(5)])
    patches = PatchSet(Pack(tmp_path), None, 2, 32, seed=3)
    whole = [p for b in itertools.islice(batches(patches, 0, 8, workers=0), 2) for p in b.patches]
    ranks = [list(itertools.islice(batches(patches, 0, 4, rank=r, world_size=2, workers=0), 2)) for r in range(2)]
    assert [p for n in range(2) for r in range(2) for p in ranks[r][n].patches] == whole


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_lr_patches_equal_the_published_lr_files(scale: int, shared: Path) -> None:
    """Also at image borders, and after flips and turns: LR is made first and turned with GT."""
    root = shared / "data" / "benchmarks" / "Set5"
    gt, lq = open_source(root / "HR"), open_source(root / "LR_bicubic" / f"X{scale}")
    patch = min(min(lq.shape(i)) for i in range(len(lq)))  # so large that many patches touch the border
    made = PatchSet(gt, None, scale, patch * scale, seed=0)
    read = PatchSet(gt, lq, scale, patch * scale, seed=0)
    for n in range(3):
        samples = range(5 * n, 5 * n + 5)
        (a_lq, a_gt), (b_lq, b_gt) = (s.finish(s.raw_batch(samples), torch.device("cpu")) for s in (made, read))
        assert torch.equal(a_lq, b_lq)
        assert torch.equal(a_gt, b_gt)


def test_mirror_repeats_the_edge_pixel() -> None:
    assert mirror(-2, 7, 3).tolist() == [1, 0, 0, 1, 2, 2, 1]


def test_small_images_are_enlarged_for_pretraining() -> None:
    small = one_image(noise(30, 61), "small.png")
    source = EnlargedSource(small, 48)
    assert source.shape(0) == source[0].shape[:2] == (48, 98)
    with pytest.raises(DataError, match=r"small.png is 61 x 30.*48"):
        PatchSet(small, None, 4, 48, seed=0).check()


def test_prepare_names_what_it_leaves_out(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    write(folder / "good.png", Picture(pixels=noise(100, 130)))
    write(folder / "tiny.png", Picture(pixels=noise(10, 130)))
    (folder / "broken.png").write_bytes(b"no image")
    report = prepare(folder, tmp_path / "pack", crop=64, step=48)
    assert (report.images, report.pieces) == (1, 2 * 3)
    assert any("tiny.png" in line for line in report.left_out)
    assert any("broken.png" in line for line in report.left_out)
    assert Pack(tmp_path / "pack").shape(5) == (64, 64)
    with pytest.raises(OptionError, match="step"):
        prepare(folder, tmp_path / "pack", crop=64, step=100)


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        open_source(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no images"):
        FolderSource(tmp_path)
    (tmp_path / "list.txt").write_text("missing.png (4,4,3)\n")
    with pytest.raises(DataError, match=r"missing.png does not exist"):
        open_source(tmp_path, listed_names(tmp_path / "list.txt"))


def test_lmdb_in_the_layout_of_basicsr(tmp_path: Path) -> None:
    images = {"0001.png": noise(20, 30), "sub/0002": noise(9, 8)}
    assert write_lmdb(tmp_path / "set.lmdb", images.items()) == 2
    source = open_source(tmp_path / "set.lmdb")
    assert isinstance(source, LmdbSource)
    assert [(source.name(i), source.shape(i)) for i in range(2)] == [("0001", (20, 30)), ("sub/0002", (9, 8))]
    for i, image in enumerate(images.values()):
        assert np.array_equal(source[i], image)
    assert (tmp_path / "set.lmdb" / "meta_info.txt").read_text().splitlines()[0] == "0001.png (20,30,3) 1"
    with _reader((tmp_path / "set.lmdb").resolve(), os.getpid()).begin() as transaction:
        assert transaction.get(b"0001").startswith(b"\x89PNG")
    with pytest.raises(DataError, match="exists already"):
        write_lmdb(tmp_path / "set.lmdb", [])


def test_names_with_blanks_and_brackets_come_back_from_lmdb(tmp_path: Path) -> None:
    names = ["my photo", "a (1,2,3)", "b (4,5,6) 7"]
    write_lmdb(tmp_path / "set.lmdb", [(name, np.full((4, 5, 3), i, np.uint8)) for i, name in enumerate(names)])
    source = LmdbSource(tmp_path / "set.lmdb")
    assert [source.name(i) for i in range(len(source))] == names
    assert [int(source[i].max()) for i in range(len(source))] == [0, 1, 2]


def test_lists_hold_names_with_or_without_sizes(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbfmy photo.png\n0001_s001.png (480,480,3)\n\nmy photo.png (8,9,3) 1\r\n")
    assert listed_names(tmp_path / "list.txt") == ["my photo.png", "0001_s001.png", "my photo.png"]


def test_further_columns_of_lists_are_no_part_of_names(tmp_path: Path) -> None:
    """As in BasicSR, unless there is a file of the whole name."""
    for name in ("1.png", "2.png", "3 4.png", "line\u2028end.png"):
        write(tmp_path / name, noise(4, 4))
    (tmp_path / "list.txt").write_text("1.png (4,4)\n2.png 4 4\n1.png\t4 class a\n3 4.png\nline\u2028end.png\n", encoding="utf-8")
    source = open_source(tmp_path, listed_names(tmp_path / "list.txt"))
    assert [source.name(i) for i in range(len(source))] == ["1.png", "2.png", "1.png", "3 4.png", "line\u2028end.png"]
    (tmp_path / "list.txt").write_text("1.png 4\n5.png 4 4\n")
    with pytest.raises(DataError, match=r"5\.png 4 4 does not exist \(1 of 2"):
        open_source(tmp_path, listed_names(tmp_path / "list.txt"))


def test_ends_of_lines_other_than_newline_do_not_end_a_name(tmp_path: Path) -> None:
    names = ["a\u2028b", "c\x0cd", "e\x85f"]
    write_lmdb(tmp_path / "set.lmdb", [(name, noise(4, 5)) for name in names])
    with open(tmp_path / "set.lmdb" / "meta_info.txt", "a") as file:
        file.write("\n \n")
    source = LmdbSource(tmp_path / "set.lmdb")
    assert [source.name(i) for i in range(len(source))] == names
    assert source[2].shape == (4, 5, 3)
    for name in ("a\nb.png", "a\rb.png"):
        with pytest.raises(DataError, match="holds the end of a line"):
            write_lmdb(tmp_path / "other.lmdb", [(name, noise(4, 5))])
    assert not (tmp_path / "other.lmdb").exists()


def test_other_kinds_become_rgb_of_8_bits() -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (9, 11, 3), np.uint16)
    out = rgb8(Picture(deep, deep[:, :, 0].copy()), "a")
    assert (out.dtype, out.shape) == (np.uint8, (9, 11, 3))
    assert np.abs(out - deep / 257).max() <= 0.5
    grey = (deep[:, :, :1] >> 8).astype(np.uint8)
    np.testing.assert_array_equal(rgb8(Picture(grey), "a"), grey.repeat(3, axis=2))


def test_floats_beyond_one_are_named_instead_of_cut_off(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    far = np.linspace(0, 255, 70 * 70 * 3, dtype=np.float32).reshape(70, 70, 3)
    write(tmp_path / "in" / "far.tif", Picture(far))
    write(tmp_path / "in" / "near.tif", Picture(far / 255 * np.float32(1.003) - np.float32(0.0015)))  # less than half a level
    message = "far.tif: float values from 0 to 255, beyond 0..1"
    report = prepare(tmp_path / "in", tmp_path / "pack")
    assert [message in line for line in report.left_out] == [True]
    assert np.abs(Pack(tmp_path / "pack")[0] - far).max() < 1
    assert [message in line for line in verify(tmp_path / "in").faults] == [True]
    write_lmdb(tmp_path / "set.lmdb", [("a", noise(70, 70))])
    with lmdb_module._open(tmp_path / "set.lmdb") as environment, environment.begin(write=True) as transaction:
        transaction.put(b"a", (tmp_path / "in" / "far.tif").read_bytes())
    with pytest.raises(ImageError, match=r"set\.lmdb:a: float values from 0 to 255"):
        LmdbSource(tmp_path / "set.lmdb")[0]


def test_a_damaged_page_of_a_data_base_is_named(tmp_path: Path) -> None:
    path = tmp_path / "set.lmdb"
    write_lmdb(path, [(str(i), noise(96, 96)) for i in range(3)])
    data = bytearray((path / "data.mdb").read_bytes())
    leaf = next(p for p in range(2 * 4096, len(data), 4096) if data[p + 10] & 2)  # the flags of a page: it holds keys
    data[leaf : leaf + 4096] = bytes(4096)
    (path / "data.mdb").write_bytes(data)
    with pytest.raises(DataError, match=r"set\.lmdb: '1' cannot be read \(.*CORRUPTED.*\): make the data base again"):
        LmdbSource(path)[1]
    assert len(verify(path).faults) == 3


def test_a_data_base_made_anew_is_opened_again(tmp_path: Path) -> None:
    paths = tmp_path / "a.lmdb", tmp_path / "b.lmdb"
    for i, path in enumerate(paths):
        write_lmdb(path, [("a", np.full((8, 8, 3), i, np.uint8))])
    assert LmdbSource(paths[0])[0].max() == 0
    for remade in (lambda: paths[1].rename(paths[0]), lambda: write_lmdb(paths[0], [("a", np.full((8, 8, 3), 1, np.uint8))])):
        shutil.rmtree(paths[0])
        remade()
        assert LmdbSource(paths[0])[0].max() == 1
    shutil.rmtree(paths[0])


def test_lmdb_faults_are_named(tmp_path: Path) -> None:
    (tmp_path / "none.lmdb").mkdir()
    with pytest.raises(DataError, match=r"meta_info.txt cannot be read"):
        open_source(tmp_path / "none.lmdb")
    write_lmdb(tmp_path / "set.lmdb", [("a", noise(4, 4))])
    (tmp_path / "set.lmdb" / "meta_info.txt").write_text("a.png (5,4,3) 1\nb.png (4,4,3) 1\n")
    source = open_source(tmp_path / "set.lmdb")
    with pytest.raises(DataError, match=r"meta_info.txt says 4 x 5"):
        source[0]
    with pytest.raises(DataError, match="no image 'b'"):
        source[1]


def test_verify_names_every_fault(tmp_path: Path) -> None:
    for name, size in {
        "gt/a": (40, 60),
        "gt/b": (40, 40),
        "gt/c": (40, 40),
        "lq/ax2": (20, 30),
        "lq/bx2": (20, 21),
        "lq/dx2": (4, 4),
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / f"{name}.png", Picture(pixels=noise(*size)))
    (tmp_path / "gt" / "e.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    report = verify(tmp_path / "gt", tmp_path / "lq", 2)
    assert report.images == 6
    assert len(report.faults) == 4
    text = "\n".join(report.faults)
    for fault in ("e.png", "b.png is 40 x 40, but its LR bx2.png is 21 x 20", "c.png has no LR", "dx2.png has no GT"):
        assert fault in text
    assert verify(tmp_path / "gt", minimum=50).faults[-1].endswith("smaller than 50 pixels")


def folder_of(path: Path, names: str, side: int = 8) -> Path:
    """Small images, each of a grey that follows from the number in its name."""
    for name in names.split():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        number = int("".join(c for c in Path(name).stem.split("x")[0] if c.isdigit())) % 256
        write(path / name, Picture(pixels=np.full((side, side, 3), number, np.uint8)))
    return path


def greys(source: ImageSource) -> list[int]:
    return [int(source[i].max()) for i in range(len(source))]


@pytest.mark.parametrize(
    ("template", "low"),
    [("{}", "{}"), ("{}", "{}x2"), ("{}x2", "{}x2"), ("LR_{}", "LR_{}"), ("{}", "{}x2_s001"), ("{}x2", "{}x2_s001")],
)
def test_pairs_are_those_of_the_same_name(tmp_path: Path, template: str, low: str) -> None:
    """In the order of their names, 10x2 comes before 1x2."""
    piece = "_s001" if low.endswith("_s001") else ""
    gt = FolderSource(folder_of(tmp_path / "gt", " ".join(f"{i}{piece}.png" for i in range(1, 13))))
    lq = FolderSource(folder_of(tmp_path / "lq", " ".join(f"{low.format(i)}.png" for i in range(1, 13)), 4))
    paired = pair_up(gt, lq, 2, template)
    assert [lq_key(paired.name(i), 2).removeprefix("LR_") for i in range(12)] == [Path(gt.name(i)).stem for i in range(12)]
    check_pairs(gt, paired, 2)


def test_formats_and_packs_do_not_matter_to_pairs(tmp_path: Path) -> None:
    write_pack(tmp_path / "gt", [("b/10.png_s001", noise(8, 8)), ("b/10.png_s002", noise(8, 8)), ("frame.0001", noise(8, 8))])
    write_lmdb(tmp_path / "lq.lmdb", [(name, noise(4, 4)) for name in ("frame.0001x2", "b/10x2.png_s002", "b/10x2.png_s001")])
    paired = pair_up(open_source(tmp_path / "gt"), open_source(tmp_path / "lq.lmdb"), 2)
    assert [paired.name(i) for i in range(3)] == ["b/10x2_s001", "b/10x2_s002", "frame.0001x2"]
    assert name_parts("a.v2.PNG_s012") == ("a.v2", "_s012")
    assert name_parts("frame.0001") == ("frame.0001", "")


def test_images_without_a_partner_are_named(tmp_path: Path) -> None:
    gt = FolderSource(folder_of(tmp_path / "gt", "1.png 2.png 3.png"))
    for names, message in (
        ("1.png 2.png 4.png", r"3\.png has no LR image '3' \(filename_tmpl says how LR images are called\)"),
        ("1.png 2.png 3.png 4.png", r"4\.png has no GT image"),
        ("1.png 2.png 3.png 3.gif", r"3\.gif has no GT image"),
        ("1.png 2.png 3.tif 3.gif", r"3\.png has LR images 3\.gif and 3\.tif"),
    ):
        lq = FolderSource(folder_of(tmp_path / names.replace(" ", "_"), names, 4))
        with pytest.raises(DataError, match=message):
            pair_up(gt, lq, 2)
    with pytest.raises(DataError, match=r"1\.png has no LR image '1x2' \(filename_tmpl is '\{\}x2'\)"):
        pair_up(gt, gt, 2, "{}x2")


def test_a_list_chooses_pairs(tmp_path: Path) -> None:
    """Also in an order of its own, and of folders that hold more."""
    gt = folder_of(tmp_path / "gt", "1.png 2.png 10.png sub/3.png")
    lq = open_source(folder_of(tmp_path / "lq", "1x2.png 2x2.png 10x2.png sub/3x2.png", 4))
    chosen = open_source(gt, ["sub/3.png", "10.png", "1.png"])
    for template in ("{}", "{}x2"):
        paired = pair_up(chosen, lq, 2, template, subset=True)
        assert greys(paired) == greys(chosen) == [3, 10, 1]
        assert paired.shape(0) == (4, 4)


def test_odd_names_stay_on_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "two\nlines.png", Picture(noise(4, 4)))
    assert run(["prepare", str(tmp_path), "--verify"]) == 1
    assert capsys.readouterr().err.splitlines() == ["two\\nlines.png is 4 x 4, smaller than 64 pixels"]


def test_verify_tells_pieces_of_packs_apart(tmp_path: Path) -> None:
    write_pack(tmp_path / "gt", [("a.png_s001", noise(8, 8)), ("a.png_s002", noise(8, 8))])
    write_pack(tmp_path / "lq", [("ax2.png_s001", noise(4, 4)), ("ax2.png_s002", noise(4, 4))])
    assert verify(tmp_path / "gt", tmp_path / "lq", 2).faults == []


def test_a_pack_is_replaced_only_by_a_whole_one(tmp_path: Path) -> None:
    folder, pack = tmp_path / "images", tmp_path / "pack"
    folder.mkdir()
    write(folder / "good.png", Picture(pixels=noise(100, 130)))
    prepare(folder, pack)
    before = {path.name: path.read_bytes() for path in pack.iterdir()}

    def failing() -> Iterator[tuple[str, np.ndarray]]:
        yield "a", noise(4, 4)
        raise DataError("b.png cannot be read")

    for append in (False, True):
        with pytest.raises(DataError, match="cannot be read"):
            write_pack(pack, failing(), append)
        assert {path.name: path.read_bytes() for path in pack.iterdir()} == before
    with pytest.raises(DataError, match="none of the 1 images"):
        prepare(folder, pack, minimum=200)
    assert {path.name: path.read_bytes() for path in pack.iterdir()} == before
    assert prepare(folder, pack, crop=50).pieces == len(Pack(pack)) == 6


@pytest.mark.parametrize("name", ["file", "file.lmdb", "file/pack", "file/set.lmdb"])
def test_an_output_that_cannot_be_made_is_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "images.png", Picture(pixels=noise(64, 64)))
    (tmp_path / "file").write_text("")
    (tmp_path / "file.lmdb").write_text("")
    with pytest.raises(DataError, match=rf"{name} cannot be written \("):
        prepare(tmp_path, tmp_path / name)
    assert (tmp_path / name.split("/")[0]).read_text() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device")
def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drct.datasets.pack.open", lambda path, mode: open("/dev/full", mode), raising=False)  # noqa: SIM115
    with pytest.raises(DataError, match=r"pack cannot be written \(No space left on device\)"):
        write_pack(tmp_path / "pack", [("a", noise(64, 64))])
    assert [path.name for path in (tmp_path / "pack").iterdir()] == [".lock"]
    monkeypatch.setattr("drct.datasets.lmdb.LARGEST", 1 << 14)
    with pytest.raises(DataError, match=r"set\.lmdb cannot be written as LMDB \(.*MDB_MAP_FULL"):
        write_lmdb(tmp_path / "set.lmdb", [("a", noise(100, 100))])
    assert not (tmp_path / "set.lmdb").exists()


def test_a_data_base_is_not_begun_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB maps its file of locks, and a page without room behind it is a SIGBUS."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=4096))
    with pytest.raises(DataError, match=r"set\.lmdb cannot be written \(No space left on device\)"):
        write_lmdb(tmp_path / "set.lmdb", [("a", noise(9, 9))])
    assert not (tmp_path / "set.lmdb").exists()


def test_keys_are_utf8(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not UTF-8"):
        write_lmdb(tmp_path / "set.lmdb", [(os.fsdecode(b"a\xff.png"), noise(9, 9))])
    assert not (tmp_path / "set.lmdb").exists()


def test_equal_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0\.jpg and 0\.png would have the same key '0'"):
        write_lmdb(tmp_path / "set.lmdb", [("0.jpg", noise(4, 4)), ("0.png", noise(4, 4))])
    assert not (tmp_path / "set.lmdb").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--verify", "-o", "out"], "--verify writes nothing"),
        (["-o", "out", "--lq", "."], "--lq goes with --verify"),
        (["-o", "out", "--step", "10"], "give crop"),
        (["-o", ""], "the name is empty"),
    ],
)
def test_options_of_prepare_that_do_not_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    write(tmp_path / "a.png", Picture(noise(80, 80)))
    out = str(tmp_path / "out")
    assert run(["prepare", str(tmp_path), *(out if a == "out" else a for a in arguments)]) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_folder_of_something_else_is_no_place_for_a_pack(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    write(tmp_path / "images" / "a.png", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(OptionError, match="images holds something else than a pack"):
        prepare(tmp_path / "images", tmp_path / "images")
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["a.png"]
    for _ in range(2):
        assert prepare(tmp_path / "images", tmp_path / "pack").images == 1


def test_an_index_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    for folder in ("images", "web"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "images" / "a.png", noise(64, 64))
    (tmp_path / "web" / "index.json").write_text('{"mine": 1}')
    with pytest.raises(OptionError, match="web holds something else than a pack"):
        prepare(tmp_path / "images", tmp_path / "web")
    assert (tmp_path / "web" / "index.json").read_text() == '{"mine": 1}'


@pytest.mark.parametrize("out", ["pack", "set.lmdb"])
def test_images_smaller_than_the_scale_are_left_out(tmp_path: Path, out: str) -> None:
    (tmp_path / "images").mkdir()
    write(tmp_path / "images" / "a.png", noise(64, 64))
    write(tmp_path / "images" / "b.png", noise(3, 3))
    report = prepare(tmp_path / "images", tmp_path / out, minimum=1, scale=4)
    assert report.left_out == ["b.png is 3 x 3, smaller than 4 pixels"]
    assert len(open_source(tmp_path / out)) == 1


def test_a_data_base_that_was_cut_off_is_told(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "set.lmdb", [(str(i), noise(64, 64)) for i in range(4)])
    data = (tmp_path / "set.lmdb" / "data.mdb").read_bytes()
    (tmp_path / "cut.lmdb").mkdir()
    (tmp_path / "cut.lmdb" / "meta_info.txt").write_bytes((tmp_path / "set.lmdb" / "meta_info.txt").read_bytes())
    (tmp_path / "cut.lmdb" / "data.mdb").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"cut\.lmdb is cut off: data\.mdb has \d+ bytes of"):
        open_source(tmp_path / "cut.lmdb")[0]


@pytest.mark.parametrize(("text", "message"), [(" \n", "list.txt lists no images"), ("/a/b.png\n", "names in it must be relative")])
def test_lists_that_cannot_be_followed(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        listed_names(tmp_path / "list.txt")


def test_threads_share_a_data_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB may be opened once: threads that come while it is being opened wait."""
    path, opens = tmp_path / "set.lmdb", lmdb_module._open
    write_lmdb(path, [("a", noise(8, 8))])

    def slowly(*args: Any, **options: Any) -> Any:
        time.sleep(0.05)
        return opens(*args, **options)

    monkeypatch.setattr(lmdb_module, "_open", slowly)
    source = LmdbSource(path)
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(source.__getitem__, [0] * 8))) == 8


def test_two_runs_never_write_one_pack(tmp_path: Path) -> None:
    def images() -> Iterator[tuple[str, np.ndarray]]:
        yield "a", noise(4, 4)
        with pytest.raises(DataError, match="another process is writing"):
            write_pack(tmp_path / "pack", [("b", noise(5, 5))])
        yield "c", noise(6, 6)

    assert write_pack(tmp_path / "pack", images()) == 2
    assert [Pack(tmp_path / "pack").name(i) for i in range(2)] == ["a", "c"]


def test_a_pack_whose_index_was_lost_is_made_again(tmp_path: Path) -> None:
    """As a run leaves it that was killed while it replaced an older pack."""
    (tmp_path / "images").mkdir()
    write(tmp_path / "images" / "a.png", noise(64, 64))
    prepare(tmp_path / "images", tmp_path / "pack")
    (tmp_path / "pack" / "index.json").unlink()
    assert prepare(tmp_path / "images", tmp_path / "pack").images == 1


def test_pieces_of_pairs_show_the_same_places(tmp_path: Path) -> None:
    """The last ones end at the border, which LR has where GT was cut to a multiple of the scale."""
    gt = np.zeros((103, 101, 3), np.uint8)
    gt[..., 0] = np.arange(101) // 4
    for name, image in (("gt", gt), ("lq", gt[:100:4, :100:4])):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.png", image)
    prepare(tmp_path / "gt", tmp_path / "gt_pack", crop=48, scale=4)
    prepare(tmp_path / "lq", tmp_path / "lq_pack", crop=12, minimum=1)
    high, low = Pack(tmp_path / "gt_pack"), Pack(tmp_path / "lq_pack")
    assert len(high) == len(low) == 9
    assert all(np.array_equal(high[i][::4, ::4], low[i]) for i in range(9))
    with pytest.raises(OptionError, match="scale is 0"):
        prepare(tmp_path / "gt", tmp_path / "new", scale=0)


def test_hidden_folders_are_left_alone(tmp_path: Path) -> None:
    for name in ("a.png", ".ipynb_checkpoints/a-checkpoint.png", "sub/.hidden.png", "sub/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, noise(8, 8))
    source = FolderSource(tmp_path)
    assert [source.name(i) for i in range(len(source))] == ["a.png", "sub/b.png"]


def test_verify_pairs_as_training_does(tmp_path: Path) -> None:
    for name in ("gt/1x4.png", "gt/2.png", "lq/1x4.png", "lq/2.png", "lq/2x4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, noise(*((8, 8) if name.startswith("gt") else (2, 2))))
    assert verify(tmp_path / "gt", tmp_path / "lq", 4).faults == ["2x4.png has no GT image"]


def test_verify_names_every_fault_of_a_data_base(tmp_path: Path) -> None:
    write_lmdb(tmp_path / "set.lmdb", [("a", noise(8, 8))])
    info = tmp_path / "set.lmdb" / "meta_info.txt"
    info.write_text("missing.png (8,8,3) 1\n" + info.read_text() + "gone.png (8,8,3) 1\n")
    assert ["missing" in fault or "gone" in fault for fault in verify(tmp_path / "set.lmdb").faults] == [True, True]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links")
def test_folders_behind_links_belong_to_a_set(tmp_path: Path) -> None:
    for name in ("div2k/a.png", "flickr/b.png", "flickr/deep/c.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, np.zeros((9, 9, 3), np.uint8))
    (tmp_path / "both").mkdir()
    for name in ("div2k", "flickr"):
        (tmp_path / "both" / name).symlink_to(tmp_path / name)
    (tmp_path / "flickr" / "deep" / "circle").symlink_to(tmp_path / "flickr")
    source = FolderSource(tmp_path / "both")
    assert [source.name(i) for i in range(len(source))] == ["div2k/a.png", "flickr/b.png", "flickr/deep/c.png"]


@pytest.mark.parametrize(("out", "number"), [("set.lmdb", signal.SIGTERM), ("pack", signal.SIGTERM), ("pack", signal.SIGINT)])
def test_signals_leave_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str, number: signal.Signals
) -> None:
    def ended(self: FolderSource, i: int) -> np.ndarray:
        if i == 1:
            with contextlib.suppress(KeyboardInterrupt):  # as callbacks of libvips do
                os.kill(os.getpid(), number)
        return noise(64, 64)

    folder_of(tmp_path / "in", "1.png 2.png 3.png", 64)
    monkeypatch.setattr(FolderSource, "__getitem__", ended)
    before = signal.signal(number, signal.SIG_IGN)  # or the process of the tests would end where it is not caught
    try:
        assert run(["prepare", str(tmp_path / "in"), "-o", str(tmp_path / out)]) == 130
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert "interrupted" in capsys.readouterr().err
    assert {path.name for path in tmp_path.glob(f"{out}/*")} <= {".lock"}


def test_a_data_base_that_was_never_completed_is_made_anew(tmp_path: Path) -> None:
    """As a run leaves it that was killed; but not that of somebody else, which has no list and no lock of ours."""
    folder_of(tmp_path / "in", "1.png", 64)
    stump = tmp_path / "x.lmdb"
    stump.mkdir()
    for name in ("data.mdb", "lock.mdb"):
        (stump / name).write_bytes(b"half")
    with pytest.raises(OptionError, match="exists already"):
        prepare(tmp_path / "in", stump)
    with pytest.raises(DataError, match="exists already"):
        write_lmdb(stump, [("a", noise(8, 8))])
    assert {path.name: path.read_bytes() for path in stump.iterdir()} == {"data.mdb": b"half", "lock.mdb": b"half"}
    (stump / ".lock").touch()
    assert prepare(tmp_path / "in", stump).images == len(LmdbSource(stump)) == 1
    with pytest.raises(OptionError, match="exists already"):
        prepare(tmp_path / "in", stump)


def test_two_runs_never_write_one_data_base(tmp_path: Path) -> None:
    def images() -> Iterator[tuple[str, np.ndarray]]:
        yield "a", noise(4, 4)
        with pytest.raises(DataError, match="another process is writing"):
            write_lmdb(tmp_path / "set.lmdb", [("b", noise(5, 5))])
        yield "c", noise(6, 6)

    assert write_lmdb(tmp_path / "set.lmdb", images()) == 2
    assert [LmdbSource(tmp_path / "set.lmdb").name(i) for i in range(2)] == ["a", "c"]


def test_an_lmdb_that_is_there_says_so(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "a.png", np.zeros((80, 80, 3), np.uint8))
    prepare(tmp_path / "in", tmp_path / "x.lmdb")
    with pytest.raises(OptionError, match=r"x\.lmdb exists already: remove it or choose another name"):
        prepare(tmp_path / "in", tmp_path / "x.lmdb")

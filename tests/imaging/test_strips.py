"""Pictures in strips: what is read and written row by row is what is read and written at once."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import pyvips
from pictures import smooth
from PIL import Image

from drct.errors import ImageError, OptionError
from drct.imaging import Encoding, Picture, StripReader, check_output, read, read_info, write, write_strips
from drct.imaging.carrier import Carrier

SUFFIXES = ("png", "jpg", "webp", "avif", "tif", "gif")
KINDS = list(itertools.product(SUFFIXES, ["uint8", "uint16", "float32"], [(1, False), (3, True)]))


def in_strips(path: Path, picture: Picture, rows: int = 7, **encoding: object) -> list[str]:
    notices: list[str] = []
    with write_strips(path, picture.info, encoding=Encoding(**encoding), notices=notices) as writer:  # type: ignore[arg-type]
        for row in range(0, picture.height, rows):
            alpha = None if picture.alpha is None else picture.alpha[row : row + rows]
            writer.write(picture.pixels[row : row + rows], alpha)
    return notices


@pytest.mark.parametrize(("suffix", "dtype", "kind"), KINDS)
def test_the_same_bytes_as_at_once(tmp_path: Path, photo: Picture, suffix: str, dtype: str, kind: tuple[int, bool]) -> None:
    channels, alpha = kind
    photo.pixels = smooth(60, 90, channels, dtype)
    photo.alpha = smooth(60, 90, 1, dtype, seed=3)[:, :, 0] if alpha else None
    photo.icc = photo.icc if channels == 3 else None
    notices = write(tmp_path / f"whole.{suffix}", photo)
    assert in_strips(tmp_path / f"strips.{suffix}", photo) == notices
    assert (tmp_path / f"strips.{suffix}").read_bytes() == (tmp_path / f"whole.{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "avif", "gif"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_reading_in_strips_is_reading_at_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"a.{suffix}"
    image = Image.fromarray(smooth(50, 70, 3))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, **({} if suffix == "gif" else {"exif": exif}))
    whole = read(path)
    with StripReader(path) as reader:
        assert (reader.info.height, reader.info.width) == whole.pixels.shape[:2]
        parts = [reader.rows(row, row + 9)[0] for row in range(0, whole.height, 9)]
    np.testing.assert_array_equal(np.concatenate(parts), whole.pixels)


def test_alpha_overlaps_and_rows_from_before(tmp_path: Path) -> None:
    picture = Picture(smooth(300, 20, 3, "uint16"), smooth(300, 20, 1, "uint16", seed=2)[:, :, 0])
    write(tmp_path / "a.png", picture)
    with StripReader(tmp_path / "a.png") as reader:
        for start, stop in ((0, 40), (20, 80), (60, 90), (60, 90), (250, 400), (5, 10), (290, 300)):
            pixels, alpha = reader.rows(start, stop)
            np.testing.assert_array_equal(pixels, picture.pixels[start:stop])
            np.testing.assert_array_equal(alpha, picture.alpha[start:stop])  # type: ignore[index]


@pytest.mark.parametrize(
    "name", ["cmyk.jpg", "tree_alpha_16bit.png", "float_gray.tiff", "palette_transparent.png", "exif_rotated.jpg"]
)
def test_odd_files_in_strips(shared: Path, name: str) -> None:
    whole = read(shared / "data/odd" / name)
    with StripReader(shared / "data/odd" / name) as reader:
        pixels, alpha = reader.rows(0, reader.info.height)
        np.testing.assert_array_equal(pixels, whole.pixels)
        assert (alpha is None) == (whole.alpha is None)
        if alpha is not None:
            np.testing.assert_array_equal(alpha, whole.alpha)
        assert reader.info.icc == whole.icc
        assert reader.info.exif == whole.exif
        assert reader.info.resolution == whole.resolution


def test_damage_on_the_way_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    write(path, np.random.default_rng(0).integers(0, 256, (400, 300, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:200_000])
    with StripReader(path) as reader:
        reader.rows(0, 100)
        with pytest.raises(ImageError, match=r"cut\.png: the file is cut off or damaged"):
            reader.rows(100, 400)


def test_rows_of_another_shape_are_refused(tmp_path: Path, photo: Picture) -> None:
    """The encoder would wait for ever for what they lack."""
    for info, columns in ((photo.info, slice(1, None)), (dataclasses.replace(photo.info, has_alpha=True), slice(None))):
        with pytest.raises(ValueError, match="was announced"), write_strips(tmp_path / "a.png", info) as writer:
            writer.write(photo.pixels[:5, columns])
    assert not list(tmp_path.iterdir())


def test_an_error_behind_the_last_rows_is_raised_although_the_encoder_has_finished(tmp_path: Path) -> None:
    picture = Picture(smooth(24, 24, 3))

    def fail_at_the_end() -> None:
        with write_strips(tmp_path / "a.png", picture.info) as writer:
            writer.write(picture.pixels)
            raise ArithmeticError

    for _ in range(50):  # the encoder of so small a picture is often done before the last rows count as taken
        with pytest.raises(ArithmeticError):
            fail_at_the_end()
    assert not list(tmp_path.iterdir())


def test_rows_that_were_taken_count_although_their_reader_is_gone() -> None:
    carrier = Carrier(2, 2, 3, "uint8")

    def take() -> None:
        with carrier._changed:  # both at once, as seen from the thread that waits
            carrier._next()
            carrier.close()

    thread = threading.Thread(target=take)
    thread.start()
    assert carrier.put(np.zeros((1, 2, 3), np.uint8))
    thread.join()
    assert not carrier.put(np.zeros((1, 2, 3), np.uint8))


def test_nothing_is_left_when_the_block_fails(tmp_path: Path, photo: Picture) -> None:
    (tmp_path / "a.png").write_bytes(b"before")

    def half(error: Exception | None) -> None:
        with write_strips(tmp_path / "a.png", photo.info) as writer:
            writer.write(photo.pixels[:5])
            if error is not None:
                raise error

    with pytest.raises(RuntimeError, match="network"):
        half(RuntimeError("the network failed"))
    with pytest.raises(ValueError, match="fewer rows"):
        half(None)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"before"
    assert not [t for t in threading.enumerate() if t.name == "drct-encode"]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_full_disk_ends_the_block(tmp_path: Path, suffix: str) -> None:
    program = f"""
import resource
import numpy as np
from drct.errors import ImageError
from drct.imaging import Picture, write_strips
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
picture = Picture(np.random.default_rng(0).integers(0, 256, (900, 900, 3), np.uint8))
try:
    with write_strips({str(tmp_path / "a")!r} + ".{suffix}", picture.info) as writer:
        for row in range(900):
            writer.write(picture.pixels[row : row + 1])
except ImageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert "cannot be written" in done.stdout
    assert "damaged" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_sizes_beyond_a_format_are_refused_before_anything_is_written(tmp_path: Path, photo: Picture) -> None:
    info = photo.info
    info.height = 70000
    for suffix in ("jpg", "webp", "avif", "gif"):
        with pytest.raises(ImageError, match="use TIFF"), write_strips(tmp_path / f"a.{suffix}", info):
            pytest.fail("the block must not begin")
    with (
        pytest.raises(OptionError, match="lossless"),
        write_strips(tmp_path / "a.jpg", photo.info, encoding=Encoding(lossless=True)),
    ):
        pytest.fail("the block must not begin")
    assert not list(tmp_path.iterdir())


def test_a_pyramid_keeps_all_and_its_copies_are_no_pages(tmp_path: Path, photo: Picture) -> None:
    photo.pixels = smooth(700, 900, 3, "uint16")
    photo.alpha = smooth(700, 900, 1, "uint16", seed=4)[:, :, 0]
    in_strips(tmp_path / "a.tif", photo, 100, pyramid=True)
    write(tmp_path / "b.tif", photo, pyramid=True)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    assert (tmp_path / "a.tif").read_bytes()[:4] == b"II+\0"  # BigTIFF
    levels = pyvips.Image.new_from_file(str(tmp_path / "a.tif")).get("n-pages")
    assert levels == 3
    again = read(tmp_path / "a.tif")
    assert again.frames == 1
    assert again.notices == []
    np.testing.assert_array_equal(again.pixels, photo.pixels)
    np.testing.assert_array_equal(again.alpha, photo.alpha)  # type: ignore[arg-type]
    assert again.icc == photo.icc
    assert again.exif is not None
    assert b"maker note" in again.exif
    small = pyvips.Image.new_from_file(str(tmp_path / "a.tif"), page=2)
    assert (small.width, small.height) == (225, 175)


def test_deep_zoom(tmp_path: Path) -> None:
    picture = Picture(smooth(700, 900, 3))
    (tmp_path / "map_files/17").mkdir(parents=True)
    (tmp_path / "map_files/17/0_0.jpg").write_bytes(b"of an earlier run")
    in_strips(tmp_path / "map.dzi", picture, 64)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.dzi", "map_files"]
    assert 'Width="900"' in (tmp_path / "map.dzi").read_text()
    assert not (tmp_path / "map_files/17").exists()
    tile = read(tmp_path / "map_files/10/1_1.jpg")
    assert np.abs(tile.pixels[:200, :200].astype(int) - picture.pixels[253:453, 253:453]).max() < 24
    assert read(tmp_path / "map_files/0/0_0.jpg").pixels.shape == (1, 1, 3)
    picture.alpha = smooth(700, 900, 1, seed=1)[:, :, 0]
    write(tmp_path / "map.dzi", picture)
    assert read(tmp_path / "map_files/10/1_1.png").alpha is not None


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (254, 255), (255, 509), (508, 700), (1017, 513)])
def test_deep_zoom_of_any_size(tmp_path: Path, size: tuple[int, int]) -> None:
    write(tmp_path / "map.dzi", np.zeros((*size, 3), np.uint8))
    assert (tmp_path / "map.dzi").is_file()


@pytest.mark.parametrize("damage", ["cut", "missing", "description"])
def test_a_full_disk_costs_no_earlier_pyramid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """libvips does not tell of it."""
    write(tmp_path / "map.dzi", smooth(300, 300, 3))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    save = pyvips.Image.dzsave

    def full(image: pyvips.Image, name: bytes, **options: object) -> None:
        save(image, name, **options)
        tile = Path(os.fsdecode(name + b"_files")) / "9" / "1_1.jpg"
        if damage == "missing":
            tile.unlink()
        else:
            cut = tile if damage == "cut" else Path(os.fsdecode(name + b".dzi"))
            cut.write_bytes(cut.read_bytes()[:-20])

    monkeypatch.setattr(pyvips.Image, "dzsave", full, raising=False)
    with pytest.raises(ImageError, match="No space left"):
        write(tmp_path / "map.dzi", smooth(300, 300, 3, seed=7))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_deep_zoom_in_a_folder_whose_name_is_no_utf8(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    write(folder / "map.dzi", smooth(30, 40, 3))
    assert sorted(p.name for p in folder.iterdir()) == ["map.dzi", "map_files"]
    assert read(folder / "map_files/0/0_0.jpg").pixels.shape == (1, 1, 3)


@pytest.mark.parametrize("name", ["notes.txt", "2019/holiday.jpg", "2019/12_1.jpg/a", "17"])
def test_deep_zoom_replaces_no_folder_of_somebody(tmp_path: Path, name: str) -> None:
    mine = tmp_path / "map_files" / name
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    for work in (lambda: check_output(tmp_path / "map.dzi", 9, 9), lambda: write(tmp_path / "map.dzi", smooth(9, 9, 3))):
        with pytest.raises(ImageError, match=r"map_files: would be replaced by tiles, but holds "):
            work()
    assert mine.read_bytes() == b"mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map_files"]


def test_memory_does_not_grow_with_the_height(tmp_path: Path) -> None:
    """Read in strips, written in strips: 12 times the height, the same memory."""
    program = """
import resource, sys
import numpy as np
from drct.imaging import PictureInfo, StripReader, write_strips
height, folder = int(sys.argv[1]), sys.argv[2]
info = PictureInfo(height, 3000)
for name in ("a.tif", "b.png"):
    with write_strips(f"{folder}/{name}", info) as writer:
        if name == "a.tif":
            for row in range(0, height, 100):
                writer.write(np.broadcast_to(np.arange(row, row + 100)[:, None, None] % 251, (100, 3000, 3)).astype(np.uint8))
        else:
            with StripReader(f"{folder}/a.tif") as reader:
                for row in range(0, height, 100):
                    writer.write(*reader.rows(row, row + 100))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""
    used = []
    for height in (400, 4800):
        command = [sys.executable, "-c", program, str(height), str(tmp_path)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "VIPS_CONCURRENCY": "1"}
        )
        used.append(int(done.stdout))
    assert used[1] - used[0] < 25, used  # the image itself has 41 MiB


def test_info_is_what_reading_finds(tmp_path: Path, photo: Picture) -> None:
    write(tmp_path / "a.png", photo)
    info, picture = read_info(tmp_path / "a.png"), read(tmp_path / "a.png")
    assert info == picture.info

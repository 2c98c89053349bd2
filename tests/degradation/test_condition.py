"""Looking at images: JPEG quality, blocks, noise and blur."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from drct.degradation import DegradationOptions, degrade, usm_sharpen
from drct.degradation.codecs import encode
from drct.degradation.condition import Condition, inspect, jpeg_quality
from drct.degradation.filters import _gaussian_line, blur
from drct.imaging import Picture, from_tensor, read, read_bytes, resize, to_tensor, write


@pytest.fixture(scope="module")
def scene() -> np.ndarray:
    """Something like a photograph: shapes of all sizes, sharp at their edges, on a slope."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[0:480, 0:480].astype(np.float32)
    image = np.stack([60 + x * 0.2, 80 + y * 0.2, 100 + (x + y) * 0.1], -1)
    for _ in range(150):
        r, top, left = int(rng.uniform(4, 60)), int(rng.uniform(0, 480)), int(rng.uniform(0, 480))
        part = slice(max(0, top - r), top + r), slice(max(0, left - r), left + r)
        dy, dx = abs(y[part] - top), abs(x[part] - left)
        inside = dx + dy < r if rng.random() < 0.5 else dx**2 + dy**2 < r**2
        image[part][inside] = rng.uniform(20, 235, 3) + image[part][inside] * 0.1
    return resize(image.clip(0, 255).astype(np.uint8), 1 / 3)


def compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    return read_bytes(encode(pixels, "jpeg", quality), "memory").pixels


def test_a_clean_image_is_clean(scene: np.ndarray) -> None:
    condition = inspect(Picture(scene))
    assert not condition.degraded
    assert str(condition) == "clean"
    assert condition.jpeg_quality is None


@pytest.mark.parametrize("levels", [(0, 255), (0, 65535), (-3, 5)])
def test_floats_of_any_range_are_judged_by_what_is_seen(levels: tuple[float, float], scene: np.ndarray) -> None:
    low, high = levels
    noise = np.random.default_rng(0).normal(0, 15, scene.shape)
    for pixels in (scene, (scene + noise).round().clip(0, 255).astype(np.uint8)):
        full = (pixels.astype(np.float32) - pixels.min()) / np.float32(pixels.max() - pixels.min())
        expected, found = inspect(Picture(full)), inspect(Picture(full * np.float32(high - low) + np.float32(low)))
        assert found.degraded == expected.degraded == inspect(Picture(pixels)).degraded
        assert found.noise == pytest.approx(expected.noise, rel=1e-3, abs=1e-3)
        assert str(found) == str(expected)


@pytest.mark.parametrize("quality", [20, 40, 60])
def test_blocks_are_seen_in_the_pixels(quality: int, scene: np.ndarray) -> None:
    pixels = compressed(scene, quality)
    condition = inspect(Picture(pixels))
    assert condition.degraded
    assert "blocks" in str(condition)
    # on whatever grid they lie
    assert inspect(Picture(pixels[3:, 5:])).blockiness == pytest.approx(condition.blockiness, abs=0.03)


def test_the_measures_follow_what_was_done(scene: np.ndarray) -> None:
    blocks = [inspect(Picture(compressed(scene, quality))).blockiness for quality in (95, 70, 40, 20)]
    assert blocks == sorted(blocks)
    blurred = [from_tensor(blur(to_tensor(scene), sigma, 13), np.uint8) for sigma in (0.4, 0.6, 1.2)]
    sharpness = [inspect(Picture(pixels)).sharpness for pixels in (scene, *blurred)]
    assert sharpness == sorted(sharpness, reverse=True)
    assert sharpness[-1] < 0.35
    assert "blur" in str(inspect(Picture(blurred[-1])))


@pytest.mark.parametrize("sigma", [4, 8, 16])
def test_noise_is_estimated(sigma: int) -> None:
    y, x = np.mgrid[0:200, 0:200]
    clean = (60 + x * 0.3 + y * 0.3)[:, :, None].repeat(3, 2)
    grey = np.random.default_rng(0).normal(0, sigma, (200, 200, 1))
    condition = inspect(Picture((clean + grey).round().clip(0, 255).astype(np.uint8)))
    assert condition.degraded
    assert 0.6 * sigma < condition.noise < 1.1 * sigma  # the quietest places have a little less than the mean
    assert f"noise {condition.noise:.1f} of 255" in str(condition)


def test_depth_and_channels_do_not_matter(scene: np.ndarray) -> None:
    grey = scene[:, :, :1]
    first = inspect(Picture(grey))
    for pixels in (grey.repeat(3, 2), grey.astype(np.uint16) * 257, grey.astype(np.float32) / 255):
        other = inspect(Picture(pixels))
        assert (other.blockiness, other.noise, other.sharpness) == pytest.approx(
            (first.blockiness, first.noise, first.sharpness), rel=0.02, abs=0.002
        )


def test_chance_makes_no_blocks_in_small_images() -> None:
    rng = np.random.default_rng(0)
    for side in (24, 48, 96, 192):
        found = [inspect(Picture(rng.integers(0, 256, (side, side, 1)).astype(np.uint8))).blockiness for _ in range(8)]
        assert sum(found) / len(found) < 0.02


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 40, 3), (23, 500, 1)])
def test_small_images_count_as_clean(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    assert not inspect(Picture(pixels)).degraded


@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_images_are_clean(level: int) -> None:
    condition = inspect(Picture(np.full((100, 100, 3), level, np.uint8)))
    assert not condition.degraded
    assert str(condition) == "clean"


@pytest.mark.parametrize("quality", [*range(1, 100, 7), 75, 80, 95, 100])
def test_quality_of_jpeg_files(quality: int, scene: np.ndarray) -> None:
    found = jpeg_quality(io.BytesIO(encode(scene[:16, :16], "jpeg", quality)))
    assert found is not None
    assert abs(found - quality) <= 1


def test_quality_behind_bytes_that_fill(scene: np.ndarray) -> None:
    data = encode(scene[:16, :16], "jpeg", 50)
    place = data.index(b"\xff\xdb")
    assert jpeg_quality(io.BytesIO(data[:place] + b"\xff\xff" + data[place:])) == 50


@pytest.mark.parametrize("damage", ["empty", "png", "cut", "no table", "short table"])
def test_quality_of_what_is_no_sound_jpeg_file(damage: str, scene: np.ndarray) -> None:
    data = encode(scene[:16, :16], "jpeg", 50)
    place = data.index(b"\xff\xdb")
    broken = {
        "empty": b"",
        "png": b"\x89PNG\r\n",
        "cut": data[: place + 3],
        "no table": data[:2] + b"\xff\xda\x00\x08",
        "short table": data[: place + 20],
    }[damage]
    assert jpeg_quality(io.BytesIO(broken)) is None


def test_a_file_tells_its_quality(scene: np.ndarray, tmp_path: Path) -> None:
    write(tmp_path / "a.jpg", np.full((64, 64, 3), 90, np.uint8), quality=40)  # nothing to be seen in the pixels
    condition = inspect(read(tmp_path / "a.jpg"))
    assert condition.degraded
    assert str(condition) == "JPEG quality 40"
    write(tmp_path / "b.jpg", scene, quality=95)
    assert str(inspect(read(tmp_path / "b.jpg"))) == "clean, JPEG quality 95"
    picture = read(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").unlink()
    assert inspect(picture).jpeg_quality is None


def test_several_small_defects_add_up() -> None:
    assert not Condition(None, 0.06, 0.3, 0.9).degraded
    assert not Condition(None, 0.0, 1.2, 0.9).degraded
    both = Condition(None, 0.06, 1.2, 0.9)
    assert both.degraded
    assert str(both) == "blocks, noise 1.2 of 255"


def test_clean_and_degraded_photographs_are_told_apart(shared: Path) -> None:
    """A few of the images that the bounds were fitted on; ``benchmarks/condition.py`` counts over all of them."""
    clean, found = 0, 0
    for number, path in enumerate(sorted((shared / "data" / "valid").glob("*.png"))[:12:2]):
        gt = read(path).pixels[:256, :256]
        clean += not inspect(Picture(resize(gt, 1 / 2))).degraded
        sharp = usm_sharpen(to_tensor(gt))
        lq = degrade(sharp, DegradationOptions(), scale=2, generator=torch.Generator().manual_seed(number))
        found += inspect(Picture(from_tensor(lq, np.uint8))).degraded
    assert clean >= 5
    assert found >= 5


def test_kernels_of_drawn_widths_are_not_kept_for_ever() -> None:
    for sigma in torch.rand(200).tolist():
        _gaussian_line(5, 0.5 + sigma)
    assert _gaussian_line.cache_info().currsize <= 64

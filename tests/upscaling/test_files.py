"""One file in, one file out: in strips as at once, page by page, frame by frame."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from upscaling_helpers import smooth_image, tiny_network

import drct
from drct.imaging import Encoding, Picture, read, read_info, read_pages, write
from drct.networks import SuperResolutionNetwork
from drct.upscaling import memory
from drct.upscaling.passes import Plans
from drct.upscaling.tiles import TilePlan


class Smear(SuperResolutionNetwork):
    """Averages 7 x 7 pixels and repeats them: fast, and the edges of its tiles differ."""

    architecture = "smear"

    def __init__(self, scale: int) -> None:
        super().__init__(None, scale=scale, in_chans=3, pad_multiple=4, img_range=1.0)  # type: ignore[arg-type]

    def forward_padded(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.avg_pool2d(x, 7, stride=1, padding=3)
        return y.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)


def picture_of(kind: str, height: int = 140, width: int = 30) -> Picture:
    pixels = smooth_image(height, width)
    alpha = smooth_image(height, width, 1, seed=9)[:, :, 0]
    alpha = np.where(alpha < 120, 0, alpha).astype(np.uint8)
    if kind == "grey16":
        return Picture(pixels[:, :, :1].astype(np.uint16) * 257)
    if kind == "alpha":
        return Picture(pixels, alpha, resolution=(10.0, 10.0))
    if kind == "alpha16":
        return Picture(pixels.astype(np.uint16) * 257, alpha.astype(np.uint16) * 257)
    if kind == "opaque":
        return Picture(pixels, np.full_like(alpha, 255))
    if kind == "float":
        return Picture(pixels.astype(np.float32) / 128 - 0.3)
    if kind == "float_hidden":  # what cannot be seen lies far beyond 0..1, and the last band cannot be seen at all
        alpha[128:] = 0
        return Picture(np.where(alpha[:, :, None] > 0, pixels.astype(np.float32) / 128, 50), alpha.astype(np.float32) / 255)
    if kind == "float_clear":
        return Picture(pixels.astype(np.float32) / 128, np.zeros(alpha.shape, np.float32))
    if kind == "float_beyond":
        return Picture(pixels.astype(np.float32) / 255, alpha.astype(np.float32) / 128 - 0.25)
    if kind == "float_opaque":
        return Picture(pixels.astype(np.float32) / 255, 1 + alpha.astype(np.float32))
    if kind == "float_alpha":
        return Picture(pixels.astype(np.float32) / 255, alpha.astype(np.float32) / 255)
    return Picture(pixels)


CASES = (
    *((kind, "network", {}) for kind in ("rgb", "grey16", "opaque", "float")),
    *((kind, mode, {"scale": 2.5}) for kind in ("alpha", "float_alpha", "float_beyond") for mode in ("network", "resize")),
    *((kind, "network", {}) for kind in ("float_hidden", "float_clear", "float_opaque")),
    ("alpha16", "network", {"scale": 5}),
    ("rgb", "network", {"width": 51, "height": 333}),
)


@pytest.mark.parametrize(("kind", "alpha", "sides"), CASES)
def test_strips_give_the_bytes_of_the_whole(tmp_path: Path, kind: str, alpha: str, sides: dict[str, float]) -> None:
    write(tmp_path / "in.tif", picture_of(kind))
    upscaler = drct.Upscaler(Smear(2), device="cpu", tile=32, overlap=8, alpha=alpha)  # type: ignore[arg-type]
    seen: list[float] = []
    whole = upscaler.file(tmp_path / "in.tif", tmp_path / "whole.tif", strips="off", **sides)  # type: ignore[arg-type]
    strips = upscaler.file(tmp_path / "in.tif", tmp_path / "strips.tif", strips="on", progress=seen.append, **sides)  # type: ignore[arg-type]
    assert len(whole.passes[0].plan.rows) > 1
    assert strips == whole
    assert (tmp_path / "strips.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)


def test_what_cannot_be_seen_does_not_decide_about_the_rest(tmp_path: Path) -> None:
    picture = picture_of("float_hidden")
    assert picture.alpha is not None
    clean = Picture(np.where(picture.alpha[:, :, None] > 0, picture.pixels, 0), picture.alpha)
    write(tmp_path / "in.tif", picture)
    write(tmp_path / "clean.tif", clean)
    upscaler = drct.Upscaler(Smear(2), device="cpu")
    results = [upscaler.file(tmp_path / name, tmp_path / f"out-{name}") for name in ("in.tif", "clean.tif")]
    assert results[0].notices == results[1].notices
    assert (tmp_path / "out-in.tif").read_bytes() == (tmp_path / "out-clean.tif").read_bytes()


@pytest.mark.parametrize("name", ["children-alpha.png", "tree_alpha_16bit.png", "exif_rotated.jpg", "cmyk.jpg", "float_gray.tiff"])
def test_odd_files_in_strips(shared: Path, tmp_path: Path, name: str) -> None:
    upscaler = drct.Upscaler(Smear(2), device="cpu", tile=64, overlap=8)
    for strips in ("on", "off"):
        upscaler.file(shared / "data/odd" / name, tmp_path / f"{strips}.tif", strips=strips)  # type: ignore[arg-type]
    assert (tmp_path / "on.tif").read_bytes() == (tmp_path / "off.tif").read_bytes()


def test_smaller_tiles_when_memory_runs_out_between_strips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in.png", smooth_image(300, 300))
    upscaler = drct.Upscaler(Smear(2), device="cpu")
    monkeypatch.setattr(memory, "choose_tile", lambda program, height, width: 192)
    program = upscaler.program(2)
    tiles: list[int] = []

    def failing(x: torch.Tensor) -> torch.Tensor:
        tiles.append(x.shape[-1])
        if x.shape[-1] > 130 and len(tiles) > 3:
            raise MemoryError
        return program(x)

    monkeypatch.setattr(upscaler, "_steps", lambda program: failing)
    chosen: list[list[TilePlan]] = []
    result = upscaler.file(tmp_path / "in.png", tmp_path / "out.png", strips="on", plans=Plans(chosen=chosen.append))
    assert any("went on with tiles of 128" in notice for notice in result.notices)
    assert [[plan.tile_width for plan in plans] for plans in chosen] == [[168], [124]]
    assert read(tmp_path / "out.png").pixels.shape == (600, 600, 3)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["in.png", "out.png"]


def test_large_results_are_made_in_strips_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "in.png", smooth_image(60, 60))
    monkeypatch.setattr("drct.upscaling.files.read", lambda path: pytest.fail("read as a whole"))
    upscaler = drct.Upscaler(tiny_network(2), device="cpu")
    monkeypatch.setattr(memory, "STRIPS_FROM", 1 << 40)
    upscaler.file(tmp_path / "in.png", tmp_path / "out.png")
    assert read(tmp_path / "out.png").pixels.shape == (120, 120, 3)


def test_wide_images_have_flat_tiles() -> None:
    upscaler = drct.Upscaler(tiny_network(4), device="cpu")
    program = upscaler.program(4)
    narrow, wide = (upscaler._cut(program, 20_000, width, 512) for width in (8_000, 30_000))
    assert narrow.tile_height > 450
    assert 128 <= wide.tile_height <= 192
    assert wide.tile_width > 450
    assert wide.tile_height * 4 * 30_000 * 4 * 6 <= memory.STRIP_BYTES * 1.1


def test_too_large_for_the_format_is_told_before_the_work(tmp_path: Path) -> None:
    write(tmp_path / "in.png", smooth_image(4, 9000))
    upscaler = drct.Upscaler(tiny_network(2), device="cpu")
    with pytest.raises(drct.ImageError, match=r"18000 x 8 pixels, WebP holds 16383 a side: use TIFF"):
        upscaler.file(tmp_path / "in.png", tmp_path / "out.webp", progress=lambda done: pytest.fail("worked"))
    assert not (tmp_path / "out.webp").exists()


def test_the_place_of_a_result_is_looked_at_before_the_work(tmp_path: Path) -> None:
    write(tmp_path / "in.png", smooth_image(8, 8))
    upscaler = drct.Upscaler(tiny_network(2), device="cpu")
    with pytest.raises(drct.OptionError, match=r"in\.png cannot be written \(File exists\): choose another place"):
        upscaler.file(tmp_path / "in.png", tmp_path / "in.png/out.png", progress=lambda done: pytest.fail("worked"))
    upscaler.file(tmp_path / "in.png", tmp_path / "new/folder/out.png")
    assert (tmp_path / "new/folder/out.png").exists()


def test_all_pages_of_a_tiff(tmp_path: Path) -> None:
    pages = [Image.fromarray(smooth_image(20 + 8 * i, 30, seed=i)) for i in range(3)]
    pages[1] = pages[1].convert("L")
    pages[0].save(tmp_path / "in.tif", save_all=True, append_images=pages[1:], dpi=(100, 100))
    upscaler = drct.Upscaler(tiny_network(2), device="cpu")
    result = upscaler.file(tmp_path / "in.tif", tmp_path / "out.tif")
    assert not result.notices
    assert len(result.passes) == 3
    results = list(read_pages(tmp_path / "out.tif"))
    assert [p.pixels.shape for p in results] == [(40, 60, 3), (56, 60, 1), (72, 60, 3)]
    for before, after in zip(read_pages(tmp_path / "in.tif"), results, strict=True):
        np.testing.assert_array_equal(upscaler(before.pixels), after.pixels)
        assert after.resolution == pytest.approx((200 / 25.4, 200 / 25.4))
    one = upscaler.file(tmp_path / "in.tif", tmp_path / "out.png")
    assert "only the first of 3 pages is used" in one.notices


@pytest.mark.parametrize(("source", "target"), [("gif", "gif"), ("gif", "webp"), ("webp", "webp"), ("webp", "gif")])
def test_animations_keep_their_timing(tmp_path: Path, source: str, target: str) -> None:
    frames = [Image.fromarray(smooth_image(20, 30, seed=i)) for i in range(3)]
    frames[0].save(tmp_path / f"in.{source}", save_all=True, append_images=frames[1:], duration=[100, 50, 300], loop=4)
    upscaler = drct.Upscaler(tiny_network(2), device="cpu")
    upscaler.file(tmp_path / f"in.{source}", tmp_path / f"out.{target}", lossless=target == "webp")
    before, after = read_info(tmp_path / f"in.{source}"), read_info(tmp_path / f"out.{target}")
    assert (after.frames, after.delays, after.loop) == (3, (100, 50, 300), before.loop)
    assert (after.height, after.width) == (40, 60)
    with Image.open(tmp_path / f"out.{target}") as image:
        assert image.n_frames == 3
    for mine, other in zip(read_pages(tmp_path / f"out.{target}"), read_pages(tmp_path / f"in.{source}"), strict=True):
        difference = np.abs(mine.pixels.astype(int) - upscaler(other.pixels)).mean()
        assert difference == 0 if target == "webp" else difference < 8


def test_the_animated_example(shared: Path, tmp_path: Path) -> None:
    source = shared / "data/odd/animated.gif"
    upscaler = drct.Upscaler(tiny_network(2), device="cpu")
    upscaler.file(source, tmp_path / "out.gif")
    before, after = read_info(source), read_info(tmp_path / "out.gif")
    assert after.frames == before.frames > 1
    assert (after.delays, after.loop) == (before.delays, before.loop)


@pytest.mark.parametrize("error", [PermissionError(13, "mine"), drct.ImageError("mine"), MemoryError("mine")])
def test_what_a_callback_raises_is_no_error_of_the_file(tmp_path: Path, error: Exception) -> None:
    def broken(done: float) -> None:
        raise error

    write(tmp_path / "in.png", Picture(smooth_image(40, 30)))
    with pytest.raises(type(error)) as raised:
        drct.Upscaler(tiny_network()).file(tmp_path / "in.png", tmp_path / "out.png", strips="on", progress=broken)
    assert raised.value is error
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


def test_the_input_is_never_replaced(tmp_path: Path) -> None:
    write(tmp_path / "a.png", Picture(smooth_image(20, 16)))
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    for target in ("a.png", "link.png"):
        with pytest.raises(drct.OptionError, match="would replace the input"):
            drct.Upscaler(tiny_network()).file(tmp_path / "a.png", tmp_path / target)
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"qualty": 50}, r"'qualty' is unknown \(did you mean 'quality'\?\)"),
        ({"encoding": Encoding(quality=10), "quality": 99}, "encoding says how to encode, and so does quality"),
        ({"strips": "maybe"}, "strips is 'maybe', but must be 'auto', 'on', 'off'"),
        ({"format": 3}, "format is 3, but must be the name of a format"),
        ({"source": None}, "source is None, but must be the name of a file"),
        ({"target": b"b.webp"}, "target is b'b.webp', but must be the name of a file"),
        ({"source": "a\0.png"}, r"source is 'a\\x00\.png', but no file name holds a NUL character"),
        ({"target": Path("b\0.webp")}, "target is .*, but no file name holds a NUL character"),
    ],
)
def test_ways_to_write_that_cannot_be(tmp_path: Path, how: dict[str, Any], message: str) -> None:
    write(tmp_path / "a.png", Picture(smooth_image(20, 16)))
    with pytest.raises(drct.OptionError, match=message):
        drct.Upscaler(tiny_network()).file(**{"source": tmp_path / "a.png", "target": tmp_path / "b.webp"} | how)

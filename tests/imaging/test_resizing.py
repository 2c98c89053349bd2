"""The one bicubic resize: published files and values, numpy beside torch, gradients, large images, misuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import drct.imaging.resizing as resizing
from drct.errors import OptionError
from drct.imaging import read, resize

SETS = [(name, scale) for name in ("Set5", "Set14") for scale in (2, 3, 4)]


def planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


@pytest.mark.parametrize(("name", "scale"), SETS)
def test_published_low_resolution_files_bit_for_bit(shared: Path, name: str, scale: int) -> None:
    folder = shared / "data/benchmarks" / name
    files = sorted((folder / "HR").iterdir())
    assert len(files) == {"Set5": 5, "Set14": 14}[name]
    for file in files:
        hr = read(file).pixels
        hr = hr[: hr.shape[0] // scale * scale, : hr.shape[1] // scale * scale]
        lr = read(folder / f"LR_bicubic/X{scale}" / f"{file.stem}x{scale}.png").pixels
        np.testing.assert_array_equal(resize(hr, 1 / scale, rounding="uint8_per_pass"), lr)
        tensor = resize(planes(hr), 1 / scale, rounding="uint8_per_pass")
        np.testing.assert_array_equal(tensor.permute(1, 2, 0).numpy(), lr)
        floats = resize(planes(hr).float()[None], 1 / scale, rounding="uint8_per_pass")
        assert floats.dtype == torch.float32
        np.testing.assert_array_equal(floats[0].permute(1, 2, 0).numpy(), lr)


def test_published_floating_point_values(shared: Path) -> None:
    reference = np.load(shared / "reference/imaging.npz")
    factors = {"down4_float": 1 / 4, "down3_float": 1 / 3, "up2_float": 2, "up1_5_float": 1.5}
    names = [key for key in reference if key.startswith("imresize/")]
    assert len(names) == 8
    for key in names:
        _, image, operation = key.split("/")
        wanted, scale = reference[key], factors[operation]
        height, width = (round(side / scale) for side in wanted.shape[:2])
        x = read(shared / "data/benchmarks/Set5/HR" / image).pixels[:height, :width] / np.float32(255)
        # The reference for 1.5 computed its sampling positions in float32; ours are exact and differ from it by 1.5e-6.
        tolerance = 2e-6 if scale == 1.5 else 1e-6
        np.testing.assert_allclose(resize(x, scale), wanted, rtol=0, atol=tolerance)
        np.testing.assert_allclose(resize(planes(x), scale).permute(1, 2, 0), wanted, rtol=0, atol=tolerance)


def direct(x: np.ndarray, out: int, scale: float, antialias: bool) -> np.ndarray:
    """The definition, sample by sample, along the first axis."""
    stretch = scale if scale < 1 and antialias else 1.0
    result = np.zeros((out, *x.shape[1:]))
    for o in range(out):
        centre = (o + 0.5) / scale - 0.5
        positions = np.arange(int(np.floor(centre - 2 / stretch)) - 1, int(np.ceil(centre + 2 / stretch)) + 2)
        weights = resizing.cubic(stretch * (positions - centre))
        folded = positions % (2 * len(x))
        source = np.where(folded < len(x), folded, 2 * len(x) - 1 - folded)
        result[o] = np.tensordot(weights / weights.sum(), x[source], 1)
    return result


def test_the_side_that_shrinks_more_goes_first_where_each_pass_is_rounded() -> None:
    x = np.random.default_rng(0).integers(0, 256, (24, 32), np.uint8)
    columns = np.floor(direct(x.T, 8, 0.25, antialias=True).T + 0.5).clip(0, 255)
    both = np.floor(direct(columns, 12, 0.5, antialias=True) + 0.5).clip(0, 255)
    np.testing.assert_array_equal(resize(x, (0.5, 0.25), rounding="uint8_per_pass"), both)
    np.testing.assert_array_equal(resize(x.T, (0.25, 0.5), rounding="uint8_per_pass"), both.T)


sides = st.integers(1, 40)


@settings(deadline=None, max_examples=60)
@given(sides, sides, sides, sides, st.booleans(), st.integers(0, 2**31))
def test_any_size_agrees_with_the_definition(h: int, w: int, oh: int, ow: int, antialias: bool, seed: int) -> None:
    x = np.random.default_rng(seed).random((h, w))
    wanted = direct(direct(x, oh, oh / h, antialias).T, ow, ow / w, antialias).T
    np.testing.assert_allclose(resize(x, size=(oh, ow), antialias=antialias), wanted, atol=1e-12)
    tensor = resize(torch.from_numpy(x.astype(np.float32)), size=(oh, ow), antialias=antialias)
    np.testing.assert_allclose(tensor, wanted, atol=2e-6)


@settings(deadline=None, max_examples=30)
@given(sides, sides, st.floats(0.05, 8), st.floats(0.05, 8))
def test_any_factor_keeps_a_flat_image_flat(h: int, w: int, sy: float, sx: float) -> None:
    out = resize(np.full((h, w, 3), 0.3, np.float32), (sy, sx))
    assert abs(out.shape[0] - h * sy) < 1 + 1e-6
    assert abs(out.shape[1] - w * sx) < 1 + 1e-6
    np.testing.assert_allclose(out, 0.3, atol=1e-6)


def test_whole_products_gain_no_pixel() -> None:
    for side, scale in ((9, 1 / 3), (10, 1.1), (49, 1 / 49), (255, 1 / 3), (30, 0.1)):
        assert resize(np.zeros((side, side)), scale).shape == (round(side * scale),) * 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(31, 45), (31, 45, 1), (31, 45, 3), (31, 45, 4)])
def test_numpy_layouts_and_types(dtype: type, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).random(shape)
    peak = 1 if np.issubdtype(dtype, np.floating) else np.iinfo(dtype).max
    x = (values * peak).astype(dtype)
    out = resize(x, 1.7)
    assert out.dtype == dtype
    assert out.shape == (53, 77, *shape[2:])
    exact = resize(x.astype(np.float64), 1.7)
    if peak > 1:
        # integers are rounded half up and clipped once, at the end
        assert np.abs(out - np.clip(exact, 0, peak)).max() <= 0.51
    else:
        np.testing.assert_allclose(out, exact, atol=1e-5)
    view = np.repeat(x, 2, axis=0)[::2][::-1]
    np.testing.assert_array_equal(resize(view, 1.7), resize(view.copy(), 1.7))


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64])
def test_wide_integers_are_clipped_and_do_not_wrap_around(dtype: type) -> None:
    info = np.iinfo(dtype)
    for value in (info.min, info.max):
        out = resize(np.full((5, 5), value, dtype), 2)
        assert out.dtype == dtype
        assert np.abs(out.astype(float) - float(value)).max() <= 2.0**-52 * float(info.max)
    assert (resize(np.full((5, 5), 16777217, dtype), 2) == 16777217).all()
    if dtype == np.int32:
        assert (resize(torch.full((5, 5), info.max, dtype=torch.int32), 2) == info.max).all()


def test_another_order_of_bytes() -> None:
    x = np.random.default_rng(0).integers(0, 65536, (9, 8, 3), np.uint16)
    out = resize(x.astype(">u2"), 1.7)
    assert out.dtype == ">u2"
    np.testing.assert_array_equal(out, resize(x, 1.7))


@pytest.mark.parametrize("scale", [0.37, 2.5])
@pytest.mark.parametrize("rounding", ["none", "uint8_per_pass"])
def test_strips_of_large_images_are_the_whole(monkeypatch: pytest.MonkeyPatch, scale: float, rounding: resizing.Rounding) -> None:
    x = np.random.default_rng(0).integers(0, 256, (700, 610, 3)).astype(np.float32)
    whole = resize(planes(x), scale, rounding=rounding).permute(1, 2, 0).numpy()
    monkeypatch.setattr(resizing, "SMALL", 1000)
    monkeypatch.setattr(resizing, "STRIP_BYTES", 1 << 20)
    monkeypatch.setattr(resizing, "_blocks", resizing._blocks.__wrapped__)  # the cached ones were cut for the usual limits
    banded = resize(x, scale, rounding=rounding)
    np.testing.assert_allclose(banded, whole, atol=0 if rounding == "uint8_per_pass" else 2e-4)
    # sides with different factors: columns first when they shrink more
    tall = resize(x, (1.3, 0.4), rounding=rounding)
    np.testing.assert_allclose(tall, resize(planes(x), (1.3, 0.4), rounding=rounding).permute(1, 2, 0), atol=2e-4)


def test_a_large_image_needs_little_memory(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = """
import resource, numpy as np
from drct.imaging import resize
image = np.zeros((2000, 2500, 3), np.uint8)
resize(image[:100], 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
out = resize(image, 3)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, out.nbytes // 1024)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120).stdout
    grown, result = map(int, output.split())
    assert grown < result + 150_000  # floats of the whole result would be four times the result


def test_gradients() -> None:
    x = torch.rand(1, 2, 9, 7, dtype=torch.float64, requires_grad=True)
    for scale in (0.5, 2.3):
        assert torch.autograd.gradcheck(lambda t, s=scale: resize(t, s), (x,))
    with torch.inference_mode():
        resize(torch.rand(1, 3, 24, 24), 0.25)
    y = torch.rand(1, 3, 24, 24, requires_grad=True)
    resize(y, 0.25).sum().backward()  # weights cached by the inference above
    assert y.grad is not None
    torch.testing.assert_close(y.grad.sum(), torch.tensor(108.0))


def test_taps_agree_with_products(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.rand(2, 3, 40, 50, requires_grad=True)
    for scale in (0.3, 1.6):
        product = resize(x, scale)
        monkeypatch.setattr(resizing, "_exact_products", lambda _: False)
        summed = resize(x, scale)
        monkeypatch.undo()
        torch.testing.assert_close(summed, product, rtol=0, atol=1e-6)
        (first,) = torch.autograd.grad(product.square().sum(), x)
        (second,) = torch.autograd.grad(summed.square().sum(), x)
        torch.testing.assert_close(first, second, rtol=0, atol=1e-4)


def test_precision_settings_of_training_do_not_matter() -> None:
    x = torch.rand(1, 3, 64, 64)
    wanted = resize(x, 0.25)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(resize(x, 0.25), wanted, rtol=0, atol=0)
    torch.set_float32_matmul_precision("medium")
    try:
        torch.testing.assert_close(resize(x, 0.25), wanted, rtol=0, atol=1e-6)
    finally:
        torch.set_float32_matmul_precision("highest")
    half = resize(x.bfloat16(), 0.25)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), wanted, rtol=0, atol=0.01)


def test_batches_of_any_depth() -> None:
    x = torch.rand(2, 3, 4, 16, 20)
    out = resize(x, 0.5)
    assert out.shape == (2, 3, 4, 8, 10)
    torch.testing.assert_close(out[1, 2, 3], resize(x[1, 2, 3], 0.5), rtol=0, atol=1e-6)


def test_same_size_is_the_same_image() -> None:
    x = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    np.testing.assert_array_equal(resize(x, 1), x)
    np.testing.assert_array_equal(resize(x, size=(5, 6), rounding="uint8_per_pass"), x)
    assert not np.shares_memory(resize(x, 1), x)


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"scale": 2, "size": (3, 4)},
        {"scale": 0},
        {"scale": -1.0},
        {"scale": float("nan")},
        {"scale": (1.0, float("inf"))},
        {"size": (0, 4)},
        {"scale": 2, "rounding": "once"},
    ],
)
def test_misuse(arguments: dict) -> None:
    with pytest.raises(OptionError):
        resize(np.zeros((4, 5, 3)), **arguments)
    with pytest.raises(OptionError):
        resize(torch.zeros(3, 4, 5), **arguments)


def test_images_that_are_none() -> None:
    for image in (np.zeros(4), np.zeros((2, 3, 4, 5)), np.zeros((0, 4)), torch.zeros(4), torch.zeros(3, 0, 4)):
        with pytest.raises(OptionError):
            resize(image, 2)
    for kind in (bool, complex, np.longdouble, "U1"):
        with pytest.raises(OptionError, match="neither integers nor floats"):
            resize(np.zeros((4, 5), kind), 2)
    for dtype in (torch.bool, torch.complex64):
        with pytest.raises(OptionError, match="neither integers nor floats"):
            resize(torch.zeros(4, 5, dtype=dtype), 2)

"""Pixels to tensors and back."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import smooth

from drct.errors import ImageError
from drct.imaging import Picture, from_tensor, resize, to_tensor

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))


@settings(deadline=None, max_examples=50)
@given(st.sampled_from([np.uint8, np.uint16]).flatmap(lambda t: hnp.arrays(t, shapes)))
def test_integers_come_back(pixels: np.ndarray) -> None:
    x = to_tensor(pixels)
    assert x.shape == (1, 3, *pixels.shape[:2])
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    assert float(x.min()) >= 0
    assert float(x.max()) <= 1
    back = from_tensor(x, pixels.dtype, grey=pixels.shape[2] == 1)
    assert back.dtype == pixels.dtype
    np.testing.assert_array_equal(back, pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_level_comes_back(dtype: type) -> None:
    levels = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(-1, 16, 1)
    np.testing.assert_array_equal(from_tensor(to_tensor(levels), dtype, grey=True), levels)
    assert float(to_tensor(levels).max()) == 1


@pytest.mark.parametrize("dtype", [">u2", "<u2", ">f4", "<f4"])
def test_both_byte_orders(dtype: str) -> None:
    wanted = smooth(5, 6, 3, np.dtype(dtype).name)
    pixels = wanted.astype(dtype)
    assert torch.equal(to_tensor(pixels), to_tensor(wanted))
    np.testing.assert_array_equal(from_tensor(to_tensor(pixels), dtype), wanted)
    picture = Picture(pixels, pixels[:, :, 0])
    assert picture.alpha is not None
    assert picture.pixels.dtype.isnative
    assert picture.alpha.dtype.isnative
    np.testing.assert_array_equal(picture.pixels, wanted)


def test_floats_are_neither_rounded_nor_clipped() -> None:
    pixels = smooth(7, 9, 3, "float32") * 4 - 1
    np.testing.assert_array_equal(from_tensor(to_tensor(pixels), np.float32), pixels)


def test_integers_are_rounded_and_clipped() -> None:
    x = torch.tensor([-0.5, 0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 7.0]).view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert from_tensor(x, np.uint8)[0, :, 1].tolist() == [0, 0, 0, 1, 255, 255]
    assert from_tensor(x, "uint16")[0, :, 1].tolist() == [0, 0, 103, 154, 65432, 65535]


def test_layouts() -> None:
    grey = smooth(4, 5, 1)
    x = to_tensor(grey[:, :, 0])
    assert torch.equal(x, to_tensor(grey))
    assert torch.equal(x[:, 0], x[:, 2])
    assert from_tensor(x[0], np.uint8).shape == (4, 5, 3)
    assert from_tensor(x.half(), np.uint8, grey=True).shape == (4, 5, 1)
    view = smooth(8, 9, 3)[::-2, ::3]
    np.testing.assert_array_equal(from_tensor(to_tensor(view), np.uint8), view)
    out = from_tensor(x.requires_grad_(), np.uint8)
    assert out.flags.c_contiguous
    assert out.flags.writeable


def test_the_input_is_not_touched() -> None:
    pixels = smooth(4, 5, 3, "float32")
    x = to_tensor(pixels)
    x += 1
    np.testing.assert_array_equal(pixels, smooth(4, 5, 3, "float32"))
    y = torch.rand(1, 3, 4, 5)
    before = y.clone()
    from_tensor(y, np.uint8)
    assert torch.equal(y, before)
    pixel = torch.rand(1, 3, 1, 1)
    from_tensor(pixel, np.float32)[:] = 5
    assert float(pixel.max()) <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers(bad: float) -> None:
    pixels = smooth(4, 5, 3, "float32")
    pixels[1, 2, 0] = bad
    with pytest.raises(ImageError, match="NaN or infinite"):
        to_tensor(pixels)
    for dtype in (np.uint8, np.float32):
        with pytest.raises(ImageError, match="precision"):
            from_tensor(torch.from_numpy(pixels).permute(2, 0, 1)[None], dtype)


def test_wrong_shapes_and_types() -> None:
    for pixels in (
        np.zeros((4, 5, 4), np.uint8),
        np.zeros((4, 5, 2), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((4, 5, 3), np.int32),
    ):
        with pytest.raises(ImageError):
            to_tensor(pixels)
    for tensor in (torch.zeros(2, 3, 4, 5), torch.zeros(1, 1, 4, 5), torch.zeros(4, 5)):
        with pytest.raises(ImageError):
            from_tensor(tensor, np.uint8)
    with pytest.raises(ImageError):
        from_tensor(torch.zeros(1, 3, 4, 5), np.float64)


def test_pixels_that_may_not_be_written_are_no_reason_to_warn() -> None:
    pixels = smooth(20, 24, 3)
    expected = to_tensor(pixels)
    pixels.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(to_tensor(pixels), expected)
        assert resize(pixels, scale=2).shape == (40, 48, 3)
    assert not pixels.flags.writeable

"""BT.601 in MATLAB's convention."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pictures import smooth

from drct.imaging import rgb_to_y, rgb_to_ycbcr, ycbcr_to_rgb


def test_luma_of_known_colours() -> None:
    # MATLAB's rgb2ycbcr of 8-bit black, white, red, green, blue
    colours = np.array([[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    assert rgb_to_y(colours, rounded=True).tolist() == [[16, 235, 81, 145, 41]]
    assert rgb_to_ycbcr(colours, rounded=True)[0].tolist() == [
        [16, 128, 128],
        [235, 128, 128],
        [81, 90, 240],
        [145, 54, 34],
        [41, 240, 110],
    ]
    np.testing.assert_allclose(rgb_to_y(colours)[0], [16, 235, 81.481, 144.553, 40.966], atol=1e-4)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_numpy_and_torch_agree(dtype: str) -> None:
    pixels = smooth(7, 9, 3, dtype)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    y = rgb_to_y(pixels)
    assert y.shape == (7, 9)
    assert y.dtype == np.float32
    assert rgb_to_y(tensor).shape == (1, 1, 7, 9)
    np.testing.assert_allclose(rgb_to_y(tensor)[0, 0], y, atol=1e-4)
    np.testing.assert_allclose(rgb_to_ycbcr(tensor)[0].permute(1, 2, 0), rgb_to_ycbcr(pixels), atol=1e-4)
    np.testing.assert_allclose(rgb_to_ycbcr(pixels)[..., 0], y, atol=1e-4)
    np.testing.assert_array_equal(rgb_to_y(pixels, rounded=True), np.floor(y + 0.5))


def test_there_and_back() -> None:
    pixels = smooth(7, 9, 3, "float32").astype(np.float64)
    np.testing.assert_allclose(ycbcr_to_rgb(rgb_to_ycbcr(pixels)), pixels, atol=1e-12)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).requires_grad_()
    torch.testing.assert_close(ycbcr_to_rgb(rgb_to_ycbcr(tensor)), tensor)
    rgb_to_y(tensor).sum().backward()
    assert tensor.grad is not None
    np.testing.assert_allclose(tensor.grad[:, 0, 0], [65.481, 128.553, 24.966])

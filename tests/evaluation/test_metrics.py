"""PSNR, SSIM and MS-SSIM against published values and against their definitions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from drct.errors import DataError
from drct.evaluation import ms_ssim, psnr, quantize, ssim
from drct.evaluation.measures import measure


@pytest.mark.parametrize("index", range(5))
def test_nearest_on_set5_has_the_published_values(
    shared: Path, nearest_pair: Callable[[str], tuple[Tensor, Tensor]], index: int
) -> None:
    reference = json.loads((shared / "reference/imaging.json").read_text())["set5_nearest_x4"][index]
    sr, gt = nearest_pair(reference["image"])
    expected = reference["nearest"]
    for kind in ("y", "rgb"):
        for a, b in ((sr, gt), (sr / 255, gt / 255)):  # 8 bits, and float 0..1
            assert psnr(a, b, y=kind == "y", crop=4).item() == pytest.approx(expected[f"psnr_{kind}"], abs=1e-4)
            assert ssim(a, b, y=kind == "y", crop=4).item() == pytest.approx(expected[f"ssim_{kind}"], abs=1e-5)


def test_batch_gives_one_value_per_image() -> None:
    sr, gt = torch.rand(3, 3, 200, 180), torch.rand(3, 3, 200, 180)
    for metric in (psnr, ssim, ms_ssim):
        together = metric(sr, gt, y=True, crop=2)
        assert together.shape == (3,)
        assert together.dtype == torch.float64
        alone = torch.cat([metric(sr[i : i + 1], gt[i : i + 1], y=True, crop=2) for i in range(3)])
        torch.testing.assert_close(together, alone)


def test_identical_images() -> None:
    x = torch.rand(1, 3, 180, 180)
    assert psnr(x, x).item() == float("inf")
    assert ssim(x, x).item() == pytest.approx(1)
    assert ms_ssim(x, x).item() == pytest.approx(1)


def test_psnr_of_a_known_error() -> None:
    gt = torch.full((1, 1, 8, 8), 0.5)
    assert psnr(gt + 0.1, gt).item() == pytest.approx(20, abs=1e-5)


def test_crop_leaves_the_border_out() -> None:
    gt = torch.rand(1, 3, 24, 24)
    sr = gt.clone()
    sr[..., 0] = 0
    assert psnr(sr, gt).item() < 100
    assert psnr(sr, gt, crop=1).item() == float("inf")


@pytest.mark.parametrize("size", [(352, 192), (355, 201)])
def test_ms_ssim_is_the_product_over_scales(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    gt = torch.rand(1, 1, *size, generator=generator, dtype=torch.float64)
    sr = (gt + 0.05 * torch.randn(gt.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    window = torch.exp(-((torch.arange(11.0, dtype=torch.float64) - 5) ** 2) / 4.5)
    window = torch.outer(window, window) / window.sum() ** 2

    def blur(t: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(t, window[None, None])

    expected = 1.0
    a, b = sr, gt
    for level, weight in enumerate((0.0448, 0.2856, 0.3001, 0.2363, 0.1333)):
        ma, mb = blur(a), blur(b)
        va, vb, vab = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
        term = (2 * vab + 0.0009) / (va + vb + 0.0009)
        if level == 4:
            term = term * (2 * ma * mb + 0.0001) / (ma**2 + mb**2 + 0.0001)
        expected *= term.mean().item() ** weight
        if a.shape[2] % 2:  # an odd last row or column counts twice
            a, b = (torch.cat([t, t[:, :, -1:]], 2) for t in (a, b))
        if a.shape[3] % 2:
            a, b = (torch.cat([t, t[..., -1:]], 3) for t in (a, b))
        a, b = (t.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)) for t in (a, b))
    assert ms_ssim(sr, gt).item() == pytest.approx(expected, abs=1e-10)


def test_ms_ssim_of_a_negative_is_nought() -> None:
    gt = torch.rand(1, 1, 161, 161, generator=torch.Generator().manual_seed(0))
    assert ssim(1 - gt, gt).item() < -0.5
    assert ms_ssim(1 - gt, gt).item() == 0


def test_conventions_round_luma_and_leave_rgb_alone() -> None:
    sr, hr = np.diag([255] * 3).astype(np.uint8)[None], np.zeros((1, 3, 3), np.uint8)  # red, green, blue against black
    # errors of luma: black is 16
    exact = (65.481**2 + 128.553**2 + 24.966**2) / 3
    rounded = (65**2 + 129**2 + 25**2) / 3
    for convention, error in (("float", exact), ("basicsr", exact), ("matlab", rounded)):
        assert measure("psnr", sr, hr, 0, convention) == pytest.approx(10 * math.log10(255**2 / error), abs=1e-9)
        assert measure("psnr_rgb", sr, hr, 0, convention) == pytest.approx(10 * math.log10(3))


def test_quantize_rounds_to_8_bits() -> None:
    assert (quantize(torch.tensor([-0.1, 0.501, 1.2])) * 255).tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("sr", "gt", "words"),
    [
        (torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 9), "differ in shape"),
        (torch.rand(3, 8, 8), torch.rand(3, 8, 8), "shape"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int32), torch.zeros(1, 3, 8, 8, dtype=torch.int32), "int32"),
    ],
)
def test_wrong_input_is_named(sr: Tensor, gt: Tensor, words: str) -> None:
    with pytest.raises(DataError, match=words):
        psnr(sr, gt)


def test_too_small_for_the_window() -> None:
    x = torch.rand(1, 3, 16, 16)
    with pytest.raises(DataError, match="11 x 11"):
        ssim(x, x, crop=4)
    with pytest.raises(DataError, match="161"):
        ms_ssim(x, x)
    with pytest.raises(DataError, match="cannot cut"):
        psnr(x, x, crop=8)

"""NIQE: image quality without ground truth, as the distance from the statistics of natural images."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from drct.errors import DataError
from drct.evaluation.metric_weights import load_metric_weights
from drct.evaluation.metrics import crop_border, luma, to_float
from drct.imaging import resize

BLOCK = 96  # side of the blocks whose statistics are taken, at full size
NIQE_FILE = "niqe_pris_params.npz"
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # neighbours whose products are looked at


def niqe(sr: Tensor, *, crop: int = 0) -> Tensor:
    """Natural image quality evaluator (Mittal, Soundararajan and Bovik, IEEE SPL 2013); smaller is better.

    Computed on the luma of BT.601 rounded to whole numbers in 16..235, in blocks of 96 x 96 at full and of 48 x 48 at half size; a
    remainder at the right and bottom is left out. The half size is made by MATLAB's bicubic with antialiasing.

    Args:
        sr: images, ``(N, 3, H, W)`` or ``(N, 1, H, W)``, float 0..1 or uint8.
        crop: pixels cut from each side first; the tables of super-resolution use 4.

    Returns:
        ``(N,)`` float64; NaN where fewer than two blocks have any contrast.

    Raises:
        DataError: smaller than 96 x 96 after cropping.
        DownloadError: the model's parameters are neither in ``DRCT_WEIGHTS`` nor at their public address.
    """
    y = (luma(crop_border(to_float(sr), crop)) * 255).round()
    rows, columns = y.shape[-2] // BLOCK, y.shape[-1] // BLOCK
    if rows == 0 or columns == 0:
        raise DataError(f"NIQE needs {BLOCK} x {BLOCK} pixels after cropping, got {y.shape[-1]} x {y.shape[-2]}")
    y = y[..., : rows * BLOCK, : columns * BLOCK]
    model = {name: value.to(y.device, torch.float64) for name, value in _model().items()}
    full = _block_features(_normalize(y, model["gaussian_window"]), BLOCK)
    half_size = resize(y.float() / 255, size=(y.shape[-2] // 2, y.shape[-1] // 2)) * 255
    half = _block_features(_normalize(half_size, model["gaussian_window"]), BLOCK // 2)
    return torch.stack([_distance(blocks, model) for blocks in torch.cat([full, half], -1)])


def _normalize(y: Tensor, window: Tensor) -> Tensor:
    """Subtract the local mean and divide by the local deviation + 1 (equation 1).

    Means are rounded to float32 before they are subtracted: in flat areas the values are nothing but that rounding, and the
    implementation that the field compares with keeps its images in float32.
    """
    radius = window.shape[-1] // 2
    y = y.float()

    def blur(x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x.double(), (radius,) * 4, mode="replicate"), window[None, None]).float()

    mean = blur(y)
    deviation = (blur(y.square()) - mean.square()).abs().sqrt()
    return ((y - mean) / (deviation + 1)).double()


def _block_features(x: Tensor, side: int) -> Tensor:
    """The 18 features of each block (section II-B): ``(N, blocks, 18)``."""
    blocks = x.unfold(2, side, side).unfold(3, side, side).flatten(1, 3)  # (N, blocks, side, side)
    alpha, left, right = _fit_aggd(blocks.flatten(2))
    features = [alpha, (left + right) / 2]
    for shift in SHIFTS:
        alpha, left, right = _fit_aggd((blocks * blocks.roll(shift, (2, 3))).flatten(2))
        mean = (right - left) * (torch.lgamma(2 / alpha) - torch.lgamma(1 / alpha)).exp()
        features += [alpha, mean, left, right]
    return torch.stack(features, -1)


def _fit_aggd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Shape and the two scales of an asymmetric generalized Gaussian by moments (Lasmar et al., ICIP 2009), along the last axis."""
    grid, ratios = _shape_table(x.device)
    square = x.square()
    below, above = x < 0, x > 0
    left = ((square * below).sum(-1) / below.sum(-1)).sqrt()
    right = ((square * above).sum(-1) / above.sum(-1)).sqrt()
    gamma = left / right
    ratio = x.abs().mean(-1).square() / square.mean(-1)
    ratio = ratio * (gamma**3 + 1) * (gamma + 1) / (gamma.square() + 1).square()
    upper = torch.searchsorted(ratios, ratio.nan_to_num(0)).clamp(1, len(ratios) - 1)  # the table increases
    nearest = torch.where(ratio - ratios[upper - 1] <= ratios[upper] - ratio, upper - 1, upper)
    # a block without contrast gets the first shape of the table, as in the authors' program, and no scales
    alpha = grid[torch.where(ratio.isnan(), 0, nearest)]
    scale = ((torch.lgamma(1 / alpha) - torch.lgamma(3 / alpha)) / 2).exp()
    return alpha, left * scale, right * scale


@functools.lru_cache(maxsize=4)
def _shape_table(device: torch.device) -> tuple[Tensor, Tensor]:
    grid = torch.arange(200, 10001, dtype=torch.float64, device=device) / 1000
    ratios = (2 * torch.lgamma(2 / grid) - torch.lgamma(1 / grid) - torch.lgamma(3 / grid)).exp()
    return grid, ratios


def _distance(blocks: Tensor, model: dict[str, Tensor]) -> Tensor:
    """Distance between the Gaussian of these blocks, ``(blocks, 36)``, and that of natural images (equation 10)."""
    mean = blocks.nanmean(0)
    complete = blocks[blocks.isfinite().all(1)]
    if len(complete) < 2 or not mean.isfinite().all():
        return blocks.new_tensor(torch.nan)
    difference = model["mu_pris_param"].flatten() - mean
    inverse = torch.linalg.pinv((model["cov_pris_param"] + torch.cov(complete.T)) / 2, hermitian=True)
    return (difference @ inverse @ difference).sqrt()


@functools.lru_cache(maxsize=1)
def _model() -> dict[str, Tensor]:
    return load_metric_weights(NIQE_FILE)

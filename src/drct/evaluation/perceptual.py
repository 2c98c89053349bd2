"""Perceptual distances by the features of image classifiers: LPIPS and DISTS.

Both walk through the convolutions of a network trained on ImageNet and compare what each stage says about two images. The weights
are not part of this package: see :mod:`drct.evaluation.metric_weights` for where they come from.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from drct.errors import DataError, OptionError
from drct.evaluation.metric_weights import load_metric_weights
from drct.evaluation.metrics import crop_border, to_float

Backbone = Literal["alex", "vgg"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Convolutions between two taps: an optional pooling, then convolutions with ReLU.

    Attributes:
        convolutions: positions in torchvision's ``features``; they name the weights.
        pool: side of the max-pooling window of stride 2 before them; 0 for none.
        stride: stride of the convolutions.
        padding: zero padding of the convolutions.
    """

    convolutions: tuple[int, ...]
    pool: int = 0
    stride: int = 1
    padding: int = 1


# Krizhevsky 2014 (arXiv 1404.5997) and configuration D of Simonyan & Zisserman (arXiv 1409.1556)
BACKBONES: Mapping[str, tuple[Stage, ...]] = {
    "alex": (Stage((0,), stride=4, padding=2), Stage((3,), pool=3, padding=2), Stage((6,), pool=3), Stage((8,)), Stage((10,))),
    "vgg": (Stage((0, 2)), Stage((5, 7), 2), Stage((10, 12, 14), 2), Stage((17, 19, 21), 2), Stage((24, 26, 28), 2)),
}
BACKBONE_FILES = {"alex": "alexnet_features.safetensors", "vgg": "vgg16_features.safetensors"}
LINEAR_FILES = {"alex": "lpips_alex_linear.safetensors", "vgg": "lpips_vgg_linear.safetensors"}
DISTS_FILE = "dists_weights.safetensors"

LPIPS_SHIFT = (-0.030, -0.088, -0.188)  # LPIPS normalizes images in -1..1 by these
LPIPS_SCALE = (0.458, 0.448, 0.450)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def lpips(sr: Tensor, gt: Tensor, *, net: Backbone = "alex", crop: int = 0) -> Tensor:
    """Learned perceptual image patch similarity, version 0.1 (Zhang et al., CVPR 2018, arXiv 1801.03924); 0 is identical.

    Features of each stage are normalized to unit length over the channels, their squared differences weighted by the learned linear
    layer, averaged over the positions, and summed over the stages. Images are scaled from 0..1 to -1..1 first, as the authors do.

    Args:
        sr: RGB images, ``(N, 3, H, W)``, float 0..1 or uint8.
        gt: ground truth of the same shape.
        net: ``"alex"`` (the authors' choice for evaluation) or ``"vgg"`` (VGG16).
        crop: pixels cut from each side before comparing.

    Returns:
        ``(N,)`` float64, computed in float32.

    Raises:
        DataError: not two equal batches of RGB images, or too small for the network.
        OptionError: unknown ``net``.
        DownloadError: the weights are neither in ``DRCT_WEIGHTS`` nor at their public address.
    """
    if net not in BACKBONES:
        raise OptionError(f"LPIPS has no backbone '{net}': use 'alex' or 'vgg'")
    a, b = _prepare("LPIPS", sr, gt, crop, smallest=32)
    shift, scale = (a.new_tensor(v).view(1, 3, 1, 1) for v in (LPIPS_SHIFT, LPIPS_SCALE))
    weights = _weights(BACKBONE_FILES[net], a.device)
    linear = _weights(LINEAR_FILES[net], a.device)
    total = torch.zeros(len(a), dtype=torch.float64, device=a.device)
    features = zip(*(stage_features((2 * x - 1 - shift) / scale, net, weights) for x in (a, b)), strict=True)
    for i, (fa, fb) in enumerate(features):
        difference = (_unit_length(fa) - _unit_length(fb)).square()
        total = total + F.conv2d(difference, linear[f"lin{i}.model.1.weight"]).mean((1, 2, 3))
    return total


def dists(sr: Tensor, gt: Tensor, *, crop: int = 0) -> Tensor:
    """Deep image structure and texture similarity (Ding et al., TPAMI 2020, arXiv 2004.07728); 0 is identical.

    VGG16 with its max pooling replaced by a 3 x 3 Hanning-weighted L2 pooling; the image itself counts as stage 0. Per channel, the
    means (texture) and covariances (structure) of whole feature maps are compared as SSIM does and weighted by the learned alpha
    and beta. Images are taken in their own size; the authors' script shrinks the shorter side to 256 pixels first. Arguments and
    errors are those of :func:`lpips`.
    """
    a, b = _prepare("DISTS", sr, gt, crop, smallest=16)
    mean, std = (a.new_tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    weights = _weights(BACKBONE_FILES["vgg"], a.device)
    learned = _weights(DISTS_FILE, a.device)
    alpha, beta = learned["alpha"].flatten().double(), learned["beta"].flatten().double()
    features_a, features_b = ([x, *stage_features((x - mean) / std, "vgg", weights, pool=_l2_pool)] for x in (a, b))
    textures, structures = [], []
    for fa, fb in zip(features_a, features_b, strict=True):
        fa, fb = fa.flatten(2).double(), fb.flatten(2).double()
        mean_a, mean_b = fa.mean(2), fb.mean(2)
        textures.append((2 * mean_a * mean_b + 1e-6) / (mean_a.square() + mean_b.square() + 1e-6))
        covariance = (fa * fb).mean(2) - mean_a * mean_b
        variances = fa.var(2, correction=0) + fb.var(2, correction=0)
        structures.append((2 * covariance + 1e-6) / (variances + 1e-6))
    similarity = torch.cat(textures, 1) @ alpha + torch.cat(structures, 1) @ beta
    return 1 - similarity / (alpha.sum() + beta.sum())


def stage_features(
    x: Tensor, net: Backbone, weights: Mapping[str, Tensor], pool: Callable[[Tensor], Tensor] | None = None
) -> list[Tensor]:
    """Activations after the last ReLU of each stage, finest first.

    Args:
        x: normalized images, ``(N, 3, H, W)``.
        net: key of :data:`BACKBONES`.
        weights: torchvision's names ``features.N.weight`` and ``.bias``.
        pool: replaces the max pooling.
    """
    taps = []
    for stage in BACKBONES[net]:
        if stage.pool:
            x = F.max_pool2d(x, stage.pool, 2) if pool is None else pool(x)
        for position in stage.convolutions:
            weight, bias = weights[f"features.{position}.weight"], weights[f"features.{position}.bias"]
            x = F.conv2d(x, weight, bias, stage.stride, stage.padding).relu()
        taps.append(x)
    return taps


def _l2_pool(x: Tensor) -> Tensor:
    """Root of the Hanning-weighted mean of squares, stride 2: no aliasing, unlike max pooling (Hénaff & Simoncelli 2016)."""
    taps = x.new_tensor([0.25, 0.5, 0.25])  # a Hanning window of five without its zero ends, normalized
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, 3, 3)
    return (F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def _unit_length(x: Tensor) -> Tensor:
    return x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10)


def _prepare(metric: str, sr: Tensor, gt: Tensor, crop: int, smallest: int) -> tuple[Tensor, Tensor]:
    if sr.shape != gt.shape:
        raise DataError(f"images to compare differ in shape: {tuple(sr.shape)} and {tuple(gt.shape)}")
    a, b = (crop_border(to_float(x, torch.float32), crop) for x in (sr, gt))
    if min(a.shape[-2:]) < smallest:
        raise DataError(f"{metric} needs {smallest} x {smallest} pixels after cropping, got {a.shape[-1]} x {a.shape[-2]}")
    if a.shape[1] == 1:
        a, b = a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)
    return a, b


@functools.lru_cache(maxsize=8)
def _weights(file: str, device: torch.device) -> Mapping[str, Tensor]:
    return {name: tensor.float().to(device) for name, tensor in load_metric_weights(file).items()}

"""Pixel losses. All take ``sr`` and ``gt`` of shape ``(N, C, H, W)`` with values in 0..1 and return a scalar."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class L1Loss(nn.Module):
    """Mean absolute difference."""

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        return self.loss_weight * F.l1_loss(sr, gt)


class MSELoss(L1Loss):
    """Mean squared difference."""

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        return self.loss_weight * F.mse_loss(sr, gt)


class CharbonnierLoss(nn.Module):
    """Mean of ``sqrt(difference^2 + eps)``, an L1 loss that is smooth at zero (Lai et al., CVPR 2017)."""

    def __init__(self, loss_weight: float = 1.0, eps: float = 1e-12) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.eps = eps

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        return self.loss_weight * torch.sqrt((sr - gt) ** 2 + self.eps).mean()


class FrequencyLoss(nn.Module):
    """Mean absolute difference of the orthonormal two-dimensional Fourier transforms, real and imaginary part."""

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        difference = torch.fft.rfft2((sr - gt).float(), norm="ortho")
        return self.loss_weight * torch.view_as_real(difference).abs().mean()


class GridLoss(nn.Module):
    """How much the error repeats from one LQ pixel to the next: mean absolute value of its pattern within an LQ pixel.

    The error is averaged position by position over windows of ``blocks * blocks`` LQ pixels. Texture averages out; a checkerboard,
    which an upsampler draws alike everywhere, does not. Pixel losses hardly see one below a larger error, and perceptual losses
    invite it.
    """

    def __init__(self, loss_weight: float = 1.0, scale: int = 4, blocks: int = 8) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.scale, self.blocks = scale, blocks

    def forward(self, sr: Tensor, gt: Tensor) -> Tensor:
        n, c, h, w = sr.shape
        side = min(self.blocks, h // self.scale, w // self.scale)
        positions = F.pixel_unshuffle(sr - gt, self.scale).view(n, c, self.scale**2, h // self.scale, w // self.scale)
        detail = positions - positions.mean(2, keepdim=True)
        return self.loss_weight * F.avg_pool2d(detail.flatten(1, 2), side).abs().mean()


LOSSES: dict[str, type[nn.Module]] = {
    "L1Loss": L1Loss,
    "MSELoss": MSELoss,
    "CharbonnierLoss": CharbonnierLoss,
    "FrequencyLoss": FrequencyLoss,
}

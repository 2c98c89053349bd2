"""Layers that compute in float32 under autocast, too, where rounding would spoil the gradients of their weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis, in float32 under autocast on CPUs, too, as it is on GPUs.

    On CPUs autocast leaves bfloat16 rows beside float32 gains and offsets, and torch adds up their gradients over all rows in
    bfloat16: over thousands of rows nearly nothing of them is left.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C)`` in and out, in the type of ``x``."""
        if x.device.type == "cpu" and self.weight.dtype == torch.float32 and x.dtype in (torch.bfloat16, torch.float16):
            return F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps).to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


class Conv2d(nn.Conv2d):
    """The first and the last convolution, which have the image on one side, in float32 under autocast.

    Weights rounded to bfloat16 are a little other weights, with another gradient. Beside the image that is felt most: in a trained
    drct_light the mean gradients of these two were off by 0.50 and 0.63 of their length, and are by 0.11 and 0.14 so
    (``benchmarks/gradients.py``). They have few channels on one side and cost little.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)``; float32 out under autocast."""
        kind = x.device.type
        if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):  # there is none on "meta"
            return super().forward(x)
        with torch.autocast(kind, enabled=False):
            return super().forward(x.to(self.weight.dtype))

"""LayerNorm of all networks."""

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

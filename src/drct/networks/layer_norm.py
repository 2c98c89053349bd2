"""LayerNorm of all networks."""

from __future__ import annotations

from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis, in float32 under autocast on CPUs, too, as it is on GPUs.

    On CPUs autocast leaves bfloat16 rows beside float32 gains and offsets, and torch adds up their gradients over all rows in
    bfloat16: over thousands of rows nearly nothing of them is left.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(..., C)`` in and out, in the type of ``x``."""
        if x.device.type != "cpu" or x.dtype == self.weight.dtype:
            return super().forward(x)
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)

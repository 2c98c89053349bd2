"""The discriminator of Real-ESRGAN (Wang et al., ICCVW 2021, arXiv 2107.10833, section 3.3): a U-Net that judges every pixel.

Parameter names are the published ones, so that published discriminator files load.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm


class UNetDiscriminatorSN(nn.Module):
    """Three halvings, three doublings, and a logit for each pixel; spectral norm in all layers but the first and the last.

    The widths are f, 2f, 4f, 8f on the way down and 4f, 2f, f on the way up. Spectral norm is what keeps the training of so large
    a discriminator stable.

    Args:
        num_in_ch: channels of the images.
        num_feat: f, 64 in the published training.
        skip_connection: add what the way down saw at the same size to each step of the way up.
    """

    def __init__(self, num_in_ch: int = 3, num_feat: int = 64, skip_connection: bool = True) -> None:
        super().__init__()
        self.skip_connection = skip_connection
        f = num_feat
        self.conv0 = nn.Conv2d(num_in_ch, f, 3, 1, 1)
        self.conv1 = _normed(f, 2 * f, side=4, stride=2)
        self.conv2 = _normed(2 * f, 4 * f, side=4, stride=2)
        self.conv3 = _normed(4 * f, 8 * f, side=4, stride=2)
        self.conv4 = _normed(8 * f, 4 * f)
        self.conv5 = _normed(4 * f, 2 * f)
        self.conv6 = _normed(2 * f, f)
        self.conv7 = _normed(f, f)
        self.conv8 = _normed(f, f)
        self.conv9 = nn.Conv2d(f, 1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, 1, H, W)``, large where the image looks real, of ``(N, 3, H, W)`` in 0..1; H and W are multiples of 8."""
        down = [_activate(self.conv0(x))]
        for conv in (self.conv1, self.conv2, self.conv3):
            down.append(_activate(conv(down[-1])))
        up = down.pop()
        for conv in (self.conv4, self.conv5, self.conv6):
            up = _activate(conv(_doubled(up)))
            if self.skip_connection:
                up = up + down.pop()
        up = _activate(self.conv8(_activate(self.conv7(up))))
        logits: Tensor = self.conv9(up)
        return logits


def _doubled(x: Tensor) -> Tensor:
    """Twice as large by bilinear interpolation. On CUDA the gradient of torch's own adds in an order that changes every time."""
    if x.device.type != "cuda":
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return doubled_along(doubled_along(x, 2), 3)


def doubled_along(x: Tensor, axis: int) -> Tensor:
    """Linear interpolation to twice the length, pixels being areas; beyond the borders the last values go on."""
    size = x.shape[axis]
    first, last = x.narrow(axis, 0, 1), x.narrow(axis, size - 1, 1)
    before = torch.cat([first, x.narrow(axis, 0, size - 1)], axis)
    after = torch.cat([x.narrow(axis, 1, size - 1), last], axis)
    return torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1).flatten(axis, axis + 1)


def _normed(inputs: int, outputs: int, side: int = 3, stride: int = 1) -> nn.Module:
    conv: nn.Module = spectral_norm(nn.Conv2d(inputs, outputs, side, stride, 1, bias=False))
    return conv


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


@torch.no_grad()
def settle(discriminator: nn.Module, passes: int = 10) -> None:
    """Run the power iterations of fresh spectral norms, whose first estimates are random, until they are close.

    The published code needs none because a long run forgets its first steps; a short one should not begin with them.
    """
    was_training = discriminator.training
    discriminator.train()
    weight = next(discriminator.parameters())
    for _ in range(passes):
        discriminator(weight.new_zeros(1, weight.shape[1], 8, 8))
    discriminator.train(was_training)

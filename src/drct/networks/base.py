"""What every network of the house has in common.

A network maps ``(N, in_chans, H, W)`` float images with values in 0..1 to ``(N, in_chans, scale * H, scale * W)`` and takes any
size from 1 x 1 up: it pads on the right and at the bottom to what its windows need and crops the result.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from drct.errors import OptionError
from drct.networks.float32 import Conv2d

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # mean colour of DIV2K, the constant of EDSR and of all networks built on it


class SuperResolutionNetwork(nn.Module):
    """Base class: padding, colour mean and the options that rebuild the network.

    Attributes:
        options: frozen dataclass with every option of the network, defaults included.
        scale: magnification, a positive integer.
        in_chans: number of image channels.
        pad_multiple: height and width are padded to a multiple of this before :meth:`forward_padded` sees them.
        img_range: values are multiplied by it after the mean was subtracted.
    """

    architecture: ClassVar[str]
    mean: Tensor

    def __init__(self, options: Any, *, scale: int, in_chans: int, pad_multiple: int, img_range: float) -> None:
        super().__init__()
        self.options = options
        self.scale = scale
        self.in_chans = in_chans
        self.pad_multiple = pad_multiple
        self.img_range = img_range
        mean = torch.tensor(RGB_MEAN) if in_chans == 3 else torch.zeros(in_chans)
        self.register_buffer("mean", mean.view(1, in_chans, 1, 1), persistent=False)

    @property
    def option_dict(self) -> dict[str, Any]:
        """Options as plain JSON values; ``create_network(architecture, **option_dict)`` builds the same network."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self.options).items()}

    def forward(self, x: Tensor) -> Tensor:
        """Upscale ``x``, shape ``(N, in_chans, H, W)``, values 0..1; the result is not clipped to 0..1."""
        h, w = x.shape[-2:]
        mean = self.mean.to(x.dtype)
        x = pad_to_multiple(x, self.pad_multiple)
        y = self.forward_padded((x - mean) * self.img_range) / self.img_range + mean
        return y[..., : h * self.scale, : w * self.scale]

    def forward_padded(self, x: Tensor) -> Tensor:
        """Upscale a centred image whose sides are multiples of ``pad_multiple``."""
        raise TypeError(f"{type(self).__name__} does not define forward_padded")


def reflect_indices(size: int, padded: int) -> list[int]:
    """Source index for each of ``padded`` positions: reflection without the edge pixel, repeated as often as it takes.

    A single pixel is repeated. ``reflect_indices(3, 8) == [0, 1, 2, 1, 0, 1, 2, 1]``.
    """
    if size == 1:
        return [0] * padded
    period = 2 * (size - 1)
    return [min(i % period, period - i % period) for i in range(padded)]


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad ``(..., H, W)`` on the right and at the bottom by reflection until both sides are multiples of ``multiple``.

    This is the one padding rule of network, engine and tiles.
    """
    for dim in (-2, -1):
        size = x.shape[dim]
        padded = -(-size // multiple) * multiple
        if padded != size:
            x = x.index_select(dim, torch.tensor(reflect_indices(size, padded), device=x.device))
    return x


class Upsample(nn.Sequential):
    """Convolution and pixel shuffle: ``log2(scale)`` times for powers of two, once for scale 3 (Shi et al., CVPR 2016)."""

    def __init__(self, scale: int, num_feat: int) -> None:
        layers: list[nn.Module] = []
        if scale == 3:
            layers = [nn.Conv2d(num_feat, 9 * num_feat, 3, 1, 1), nn.PixelShuffle(3)]
        elif scale >= 1 and scale & (scale - 1) == 0:
            for _ in range(scale.bit_length() - 1):
                layers += [nn.Conv2d(num_feat, 4 * num_feat, 3, 1, 1), nn.PixelShuffle(2)]
        else:
            raise OptionError(f"scale {scale} is not possible with 'pixelshuffle': use 3 or a power of two")
        super().__init__(*layers)


class UpsampleOneStep(nn.Sequential):
    """One convolution straight to ``num_out * scale ** 2`` channels and a pixel shuffle (the tail of SwinIR-light)."""

    def __init__(self, scale: int, num_feat: int, num_out: int) -> None:
        super().__init__(Conv2d(num_feat, num_out * scale**2, 3, 1, 1), nn.PixelShuffle(scale))


def init_weights(module: nn.Module) -> None:
    """Initialize as Swin Transformer does: linear weights from a normal of 0.02 cut at +-2, LayerNorm to identity.

    Convolutions keep the initialization of torch, as in the published code.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)

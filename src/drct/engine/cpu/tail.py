"""From deep features to the image, by bands of rows: the enlarged features never exist as a whole, or not at all."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drct.engine.cpu.linear import Conv2d
from drct.engine.cpu.workers import for_each, split
from drct.engine.folding import REACH, FoldedUpsampler, fold_upsampler
from drct.networks.base import SuperResolutionNetwork

BAND_PIXELS = 4096  # LR pixels of a band
HALO = 3  # LR rows around a band that its pixels depend on: 1 + 1 + 1/2 + 1/4 + 1/4 at most

FOLDED = 5  # last layers of an upsampler that become one: three convolutions and two shuffles, an enlargement by 4

Step = Callable[[Tensor], Tensor]


def convolution(module: nn.Module, device: torch.device | None = None) -> Step | None:
    """A convolution, or convolutions with LeakyReLU between, on channels-last maps; None for an identity."""
    if isinstance(module, nn.Identity):
        return None
    return chain(list(module.children()) if isinstance(module, nn.Sequential) else [module], device=device)


def chain(layers: list[nn.Module], factor: float = 1.0, device: torch.device | None = None) -> Step:
    """Layers one after the other; the last one, a convolution, times ``factor``."""
    steps: list[Step] = []
    for i, layer in enumerate(layers):
        if isinstance(layer, nn.Conv2d):
            steps.append(Conv2d(layer, factor if i == len(layers) - 1 else 1.0, device))
        elif isinstance(layer, nn.LeakyReLU):
            steps.append(lambda x, slope=layer.negative_slope: F.leaky_relu_(x, slope))  # type: ignore[misc]
        elif isinstance(layer, nn.Upsample):
            steps.append(lambda x: F.interpolate(x, scale_factor=2, mode="nearest"))
        else:
            assert isinstance(layer, nn.PixelShuffle)
            steps.append(lambda x, r=layer.upscale_factor: F.pixel_shuffle(x, r))  # type: ignore[misc]

    def run(x: Tensor) -> Tensor:
        for step in steps:
            x = step(x)
        return x

    return run


class Upsampler:
    """An upsampler that was folded into one convolution, on channels-last maps."""

    # first, inner, last row or column: what is read, with which part of the weights, and what of the result is kept where
    SOURCE = slice(0, REACH + 1), slice(None), slice(-REACH - 1, None)
    WEIGHTS = slice(REACH, None), slice(None), slice(0, REACH + 1)
    PADDING = 0, REACH, 0
    KEPT = slice(None), slice(1, -1), slice(None)
    TARGET = slice(0, 1), slice(1, -1), slice(-1, None)

    def __init__(self, folded: FoldedUpsampler, device: torch.device | None) -> None:
        self.scale, self.biases = folded.scale, folded.biases.to(device)
        self.weights = {
            (row, column): folded.weights[row, column, :, :, self.WEIGHTS[row], self.WEIGHTS[column]]
            .to(device)
            .contiguous(memory_format=torch.channels_last)
            for row, column in itertools.product(range(3), repeat=2)
        }

    def __call__(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` features to the image; H and W from 3 up."""
        y = self.convolve(x, 1, 1)
        for row, column in self.weights:
            if (row, column) != (1, 1):
                edge = self.convolve(x[:, :, self.SOURCE[row], self.SOURCE[column]], row, column)
                y[:, :, self.TARGET[row], self.TARGET[column]] = edge[:, :, self.KEPT[row], self.KEPT[column]]
        return F.pixel_shuffle(y, self.scale)

    def convolve(self, x: Tensor, row: int, column: int) -> Tensor:
        """``x`` with the weights for this kind of row and column."""
        return F.conv2d(x, self.weights[row, column], self.biases[row, column], padding=(self.PADDING[row], self.PADDING[column]))


class Tail:
    """The reconstruction of networks of DRCT's outline, mean and range included.

    Attributes:
        saved_multiply_adds: per LR pixel, by folding.

    Args:
        network: has ``options.upsampler`` and the layers that belong to it.
        band_pixels: LR pixels of a band.
        work: calls a function for each band, in any order.
    """

    def __init__(
        self,
        network: SuperResolutionNetwork,
        device: torch.device | None = None,
        band_pixels: int = BAND_PIXELS,
        work: Callable[[Callable[[tuple[int, int]], None], list[tuple[int, int]]], None] = for_each,
    ) -> None:
        self.band_pixels, self.work = band_pixels, work
        self.scale, self.in_chans = network.scale, network.in_chans
        self.mean = network.mean.detach().float().to(device, copy=True)
        factor = 1 / network.img_range
        get = network.get_submodule
        upsampler = network.options.upsampler
        self.saved_multiply_adds = 0
        if upsampler == "pixelshuffledirect":
            run, r = chain([get("upsample.0")], factor, device), network.scale
            self.band: Step = lambda x: F.pixel_shuffle(run(x), r)
            self.floats_per_pixel = 2 * self.in_chans * self.scale**2
            return
        layers = list(get("conv_before_upsample").children())
        if upsampler == "pixelshuffle":
            linear = [*get("upsample").children(), get("conv_last")]
            # folding whole enlargements of 8 and more would take long and save little: their first steps stay as they are
            first, last = linear[:-FOLDED], linear[-FOLDED:]
            if (folded := fold_upsampler(last, factor)) is not None:
                done = self.scale // folded.scale  # enlargement by the first steps
                self.saved_multiply_adds = folded.saved_multiply_adds * done**2
                before, enlarge = chain([*layers, *first], device=device), Upsampler(folded, device)
                plain = chain(last, factor, device)
                self.band = lambda x: (enlarge if min(x.shape[2:]) * done > REACH else plain)(before(x))
                self.floats_per_pixel = (1 if done == 1 else 2) * 64 * done**2 + 2 * self.in_chans * self.scale**2
                return
            layers += linear[:-1]
        else:
            for name in ("conv_up1", "conv_up2")[: self.scale.bit_length() - 1]:
                layers += [nn.Upsample(scale_factor=2), get(name), nn.LeakyReLU(0.2)]
            layers += [get("conv_hr"), nn.LeakyReLU(0.2)]
        self.band = chain([*layers, get("conv_last")], factor, device)
        self.floats_per_pixel = 2 * 64 * self.scale**2  # the last enlargement, before and after shuffling

    def __call__(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` features to the finished image."""
        b, _, h, w = x.shape
        s = self.scale
        y = x.new_empty(b, self.in_chans, h * s, w * s)

        def band(bounds: tuple[int, int]) -> None:
            start, end = bounds
            top, bottom = max(0, start - HALO), min(h, end + HALO)
            part = self.band(x[:, :, top:bottom])[:, :, (start - top) * s : (end - top) * s]
            torch.add(part, self.mean, out=y[:, :, start * s : end * s])

        self.work(band, split(h, self.rows(b, w)))
        return y

    def rows(self, batch: int, width: int) -> int:
        """Rows of a band."""
        return max(1, self.band_pixels // (batch * width))

    def memory(self, batch: int, height: int, width: int) -> int:
        """Bytes that one band needs while it is computed."""
        return 4 * batch * width * min(height, self.rows(batch, width) + 2 * HALO) * self.floats_per_pixel

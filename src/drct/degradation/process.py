"""The second-order degradation: blur, resize, noise and compression, twice (Real-ESRGAN, arXiv 2107.10833, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from drct.degradation.codecs import FileKind, recode
from drct.degradation.draws import Draws
from drct.degradation.filters import blur, filter2d
from drct.degradation.jpeg import jpeg
from drct.degradation.kernels import draw_final_sinc, draw_kernels
from drct.degradation.noise import gaussian_noise, poisson_noise
from drct.degradation.options import DegradationOptions
from drct.errors import OptionError

Mode = Literal["area", "bilinear", "bicubic"]
MODES: tuple[Mode, ...] = ("area", "bilinear", "bicubic")
SHARPEN_SIGMA = 1.0  # radius of what small cameras sharpen by

Report = Callable[[str], None]


@torch.no_grad()
def degrade(
    gt: Tensor,
    options: DegradationOptions,
    *,
    scale: int = 4,
    generator: torch.Generator,
    report: Report | None = None,
) -> Tensor:
    """Make low-quality images from good ones.

    Kernels, strengths, greyness and qualities are drawn for each image; the kinds of noise, factors and filters of resizing,
    whether there is a second blur, and the order of the last steps once for the batch. The result depends on the arguments and
    the state of the generator only. Noise differs between kinds of devices; all else is the same up to rounding.

    Args:
        gt: ``(N, 3, H, W)`` RGB in 0..1; H and W multiples of ``scale``. Training gives ground truth that is already sharpened.
        options: ranges and probabilities.
        scale: how many times smaller the result is.
        generator: random numbers; one on the CPU serves all devices without waits.
        report: called with a few words about each step in turn, its values those of the first image.

    Returns:
        ``(N, 3, H / scale, W / scale)`` in 0..1, rounded to 8 bits, on the device of ``gt``.

    Raises:
        OptionError: the sides are not multiples of the scale.
    """
    n, c, h, w = gt.shape
    if c != 3 or h % scale or w % scale or 0 in gt.shape:
        raise OptionError(f"ground truth of {w} x {h} pixels and {c} channels: RGB whose sides are multiples of {scale} is needed")
    steps = _Steps(options, Draws(generator), n, (h // scale, w // scale), report)
    x = steps.blur(gt)
    x = steps.resize(x)
    x = steps.noise(x, "")
    x = steps.compress(x, options.jpeg_range)
    x = steps.blur_again(x)
    x = steps.resize_again(x)
    x = steps.noise(x, "2")
    x = steps.recompress(x)
    if steps.draws.chance(0.5):
        x = steps.sharpen(steps.finish(x))
        x = steps.compress(x, options.jpeg_range2)
    else:
        x = steps.compress(steps.sharpen(x), options.jpeg_range2)
        x = steps.finish(x)
    return x.clamp(0, 1).mul(255).round_().div_(255)


class _Steps:
    """The steps, sharing options, random numbers and the size to arrive at."""

    def __init__(self, options: DegradationOptions, draws: Draws, count: int, target: tuple[int, int], report: Report | None):
        self.options = options
        self.draws = draws
        self.count = count
        self.target = target
        self.report = report or (lambda words: None)

    def blur(self, x: Tensor) -> Tensor:
        o = self.options
        kernels = draw_kernels(
            self.draws,
            self.count,
            largest=o.blur_kernel_size,
            kinds=o.kernel_list,
            shares=o.kernel_prob,
            sinc_prob=o.sinc_prob,
            sigma=o.blur_sigma,
            betag=o.betag_range,
            betap=o.betap_range,
        )
        self.report(f"blur {_width(kernels[0]):.1f}")
        return filter2d(x, kernels)

    def blur_again(self, x: Tensor) -> Tensor:
        o = self.options
        if not self.draws.chance(o.second_blur_prob):
            return x
        kernels = draw_kernels(
            self.draws,
            self.count,
            largest=o.blur_kernel_size2,
            kinds=o.kernel_list2,
            shares=o.kernel_prob2,
            sinc_prob=o.sinc_prob2,
            sigma=o.blur_sigma2,
            betag=o.betag_range2,
            betap=o.betap_range2,
        )
        self.report(f"blur {_width(kernels[0]):.1f}")
        return filter2d(x, kernels)

    def resize(self, x: Tensor) -> Tensor:
        factor = self._factor(self.options.resize_prob, self.options.resize_range)
        h, w = x.shape[-2:]
        return self._resized(x, (int(h * factor), int(w * factor)), factor)

    def resize_again(self, x: Tensor) -> Tensor:
        factor = self._factor(self.options.resize_prob2, self.options.resize_range2)
        return self._resized(x, (int(self.target[0] * factor), int(self.target[1] * factor)), factor)

    def finish(self, x: Tensor) -> Tensor:
        """The wanted size and the last filter."""
        x = self._resized(x, self.target, None)
        return filter2d(x, draw_final_sinc(self.draws, self.count, self.options.final_sinc_prob, self.options.blur_kernel_size))

    def noise(self, x: Tensor, order: Literal["", "2"]) -> Tensor:
        o = self.options
        gaussian = self.draws.chance(getattr(o, f"gaussian_noise_prob{order}"))
        range_ = getattr(o, f"noise_range{order}" if gaussian else f"poisson_scale_range{order}")
        strength = self.draws.uniform(range_, self.count)
        grey = self.draws.chances(getattr(o, f"gray_noise_prob{order}"), self.count)
        noise = (gaussian_noise if gaussian else poisson_noise)(x, strength, grey, self.draws)
        self.report(f"{'grey' if grey[0] else 'colour'} {'Gaussian' if gaussian else 'Poisson'} noise {float(strength[0]):.1f}")
        if order == "" and o.noise_grain[1] > 0:
            noise = self._grainy(noise)
        return (x + noise).clamp(0, 1)

    def _grainy(self, noise: Tensor) -> Tensor:
        """Noise as demosaicing and noise reduction leave it: neighbouring pixels share it. Its strength stays what it was."""
        sigma = self.draws.number(self.options.noise_grain)
        if sigma < 0.1:
            return noise
        blurred = blur(noise, sigma, 2 * int(3 * sigma + 1) + 1)
        strength = noise.flatten(1).std(1) / blurred.flatten(1).std(1).clamp(min=1e-12)
        return blurred * strength.reshape(-1, 1, 1, 1)

    def sharpen(self, x: Tensor) -> Tensor:
        o = self.options
        if o.sharpen_prob == 0 or not self.draws.chance(o.sharpen_prob):
            return x
        strength = self.draws.uniform(o.sharpen_range, self.count)
        self.report(f"sharpen {float(strength[0]):.1f}")
        amount = strength.to(x.device, x.dtype).reshape(-1, 1, 1, 1)
        return (x + amount * (x - blur(x, SHARPEN_SIGMA, 7))).clamp(0, 1)

    def compress(self, x: Tensor, range_: tuple[float, float]) -> Tensor:
        quality = self.draws.uniform(range_, self.count)
        if self.options.codec == "maths":
            self.report(f"JPEG {float(quality[0]):.0f}")
            return jpeg(x.clamp(0, 1), quality)
        webp = self.draws.chances(self.options.webp_prob, self.count)
        kinds: list[FileKind] = ["webp" if is_webp else "jpeg" for is_webp in webp.tolist()]
        self.report(f"{'WebP' if webp[0] else 'JPEG'} {float(quality[0]):.0f}")
        return recode(x, quality, kinds)

    def recompress(self, x: Tensor) -> Tensor:
        """What happens to a photo that is passed on: other sizes, compressed again each time."""
        o = self.options
        low, high = o.recompressions
        if high == 0:
            return x
        for _ in range(self.draws.choice(range(low, high + 1))):
            if self.draws.chance(o.recompression_resize_prob):
                factor = self.draws.number(o.recompression_resize_range)
                x = self._resized(x, (int(self.target[0] * factor), int(self.target[1] * factor)), factor)
            x = self.compress(x, o.jpeg_range2)
        return x

    def _factor(self, shares: tuple[float, float, float], range_: tuple[float, float]) -> float:
        direction = self.draws.choice(("up", "down", "keep"), shares)
        ends = {"up": (1.0, range_[1]), "down": (range_[0], 1.0), "keep": (1.0, 1.0)}[direction]
        return self.draws.number(ends)

    def _resized(self, x: Tensor, size: tuple[int, int], factor: float | None) -> Tensor:
        mode = self.draws.choice(MODES)
        size = (max(1, size[0]), max(1, size[1]))
        self.report(f"{mode} x{factor:.2f}" if factor is not None else f"{mode} to size")
        if size == tuple(x.shape[-2:]):
            return x
        return F.interpolate(x, size, mode=mode)


def _width(kernel: Tensor) -> float:
    """How wide a kernel blurs: the root of its mean squared distance from the middle along one axis, in pixels.

    Sinc filters have negative lobes, whose share counts as none.
    """
    steps = torch.arange(kernel.shape[-1], dtype=kernel.dtype) - kernel.shape[-1] // 2
    square = (kernel * (steps.reshape(-1, 1) ** 2 + steps**2)).sum() / 2
    return float(square.clamp(min=0).sqrt())

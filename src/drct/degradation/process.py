"""The second-order degradation: blur, resize, noise and compression, twice (Real-ESRGAN, arXiv 2107.10833, section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from drct.degradation.codecs import recode
from drct.degradation.draws import Draws
from drct.degradation.filters import blur, filter2d
from drct.degradation.jpeg import jpeg
from drct.degradation.kernels import Kernels, draw_final_sinc, draw_kernels
from drct.degradation.noise import gaussian_noise, poisson_noise
from drct.degradation.options import DegradationOptions
from drct.errors import OptionError

Mode = Literal["area", "bilinear", "bicubic"]
MODES: tuple[Mode, ...] = ("area", "bilinear", "bicubic")
Order = Literal["", "2"]  # what the names of options end with
SHARPEN_SIGMA = 1.0  # radius of what small cameras sharpen by


@dataclasses.dataclass(frozen=True)
class Step:
    """One step that a batch went through.

    Attributes:
        names: what was done to each image: a kind of kernel, a filter of resizing, ``"Gaussian"`` or ``"Poisson"`` noise with
            ``"grey"`` or ``"colour"`` before it, ``"JPEG"``, ``"WebP"``, ``"sharpen"``.
        values: for each image the strength of a kernel (see :class:`drct.degradation.kernels.Kernels`), the factor of a resize
            against the size before it, the strength of noise or sharpening, or the quality of a compression.
        stage: where in the process: ``"blur"``, ``"resize"``, ``"noise"``, ``"compress"``, with ``"2"`` in the second order,
            ``"again"`` for what is passed on, ``"finish"`` for the last resize and filter, ``"sharpen"``.
    """

    stage: str
    names: tuple[str, ...]
    values: tuple[float, ...]

    def words(self, image: int = 0) -> str:
        """For people: ``"aniso 1.9"``, ``"area x0.40"``, ``"grey Poisson 1.2"``, ``"JPEG 63"``."""
        name, value = self.names[image], self.values[image]
        if name in MODES:
            return f"{name} x{value:.2f}"
        if name == "none":
            return "no filter"
        if name in ("JPEG", "WebP"):
            return f"{name} {value:.0f}"
        return f"{name} {value:.1f}"


Report = Callable[[Step], None]


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
            Half precision is computed in float32.
        options: ranges and probabilities.
        scale: how many times smaller the result is.
        generator: random numbers; one on the CPU serves all devices without waits.
        report: called with each step in turn.

    Returns:
        ``(N, 3, H / scale, W / scale)`` in 0..1, rounded to 8 bits, in the type and on the device of ``gt``.

    Raises:
        OptionError: the sides are not multiples of the scale.
    """
    n, c, h, w = gt.shape
    if c != 3 or h % scale or w % scale or 0 in gt.shape:
        raise OptionError(f"ground truth of {w} x {h} pixels and {c} channels: RGB whose sides are multiples of {scale} is needed")
    steps = _Steps(options, Draws(generator), n, (h // scale, w // scale), report)
    # drawing Poisson noise in half precision may never end
    x = steps.blur(gt.float() if gt.dtype in (torch.float16, torch.bfloat16) else gt, "")
    x = steps.resize(x, gt.shape[-2:], "")
    x = steps.noise(x, "")
    x = steps.compress(x, "")
    if steps.draws.chance(options.second_blur_prob):
        x = steps.blur(x, "2")
    x = steps.resize(x, steps.target, "2")
    x = steps.noise(x, "2")
    x = steps.pass_on(x)
    if steps.draws.chance(0.5):
        x = steps.compress(steps.sharpen(steps.finish(x)), "2")
    else:
        x = steps.finish(steps.compress(steps.sharpen(x), "2"))
    return x.clamp(0, 1).mul(255).round_().div_(255).to(gt.dtype)


class _Steps:
    """The steps, sharing options, random numbers and the size to arrive at."""

    def __init__(
        self, options: DegradationOptions, draws: Draws, count: int, target: tuple[int, int], report: Report | None
    ) -> None:
        self.options = options
        self.draws = draws
        self.count = count
        self.target = target
        self._report = report

    def blur(self, x: Tensor, order: Order) -> Tensor:
        kernels = draw_kernels(
            self.draws,
            self.count,
            largest=self._option("blur_kernel_size", order),
            kinds=self._option("kernel_list", order),
            shares=self._option("kernel_prob", order),
            sinc_prob=self._option("sinc_prob", order),
            sigma=self._option("blur_sigma", order),
            betag=self._option("betag_range", order),
            betap=self._option("betap_range", order),
        )
        return self._filtered(f"blur{order}", x, kernels)

    def resize(self, x: Tensor, relative_to: Sequence[int], order: Order) -> Tensor:
        direction = self.draws.choice(("up", "down", "keep"), self._option("resize_prob", order))
        low, high = self._option("resize_range", order)
        factor = self.draws.number({"up": (1.0, high), "down": (low, 1.0), "keep": (1.0, 1.0)}[direction])
        return self._resized(f"resize{order}", x, (int(relative_to[0] * factor), int(relative_to[1] * factor)))

    def finish(self, x: Tensor) -> Tensor:
        """The wanted size and the last filter."""
        x = self._resized("finish", x, self.target)
        kernels = draw_final_sinc(self.draws, self.count, self.options.final_sinc_prob, self.options.blur_kernel_size)
        return self._filtered("finish", x, kernels)

    def noise(self, x: Tensor, order: Order) -> Tensor:
        gaussian = self.draws.chance(self._option("gaussian_noise_prob", order))
        strength = self.draws.uniform(self._option("noise_range" if gaussian else "poisson_scale_range", order), self.count)
        grey = self.draws.chances(self._option("gray_noise_prob", order), self.count)
        noise = (gaussian_noise if gaussian else poisson_noise)(x, strength, grey, self.draws)
        name = "Gaussian" if gaussian else "Poisson"
        self._tell(f"noise{order}", [f"{'grey' if g else 'colour'} {name}" for g in grey.tolist()], strength)
        if order == "" and self.options.noise_grain[1] > 0:
            noise = self._grainy(noise)
        return (x + noise).clamp(0, 1)

    def _grainy(self, noise: Tensor) -> Tensor:
        """Noise as demosaicing and noise reduction leave it: neighbouring pixels share it. Its strength stays what it was."""
        sigma = self.draws.number(self.options.noise_grain)
        if sigma < 0.1:  # of no effect
            return noise
        blurred = blur(noise, sigma, 2 * int(3 * sigma + 1) + 1)
        strength = noise.flatten(1).std(1) / blurred.flatten(1).std(1).clamp(min=1e-12)
        return blurred * strength.reshape(-1, 1, 1, 1)

    def sharpen(self, x: Tensor) -> Tensor:
        if not self.draws.chance(self.options.sharpen_prob):
            return x
        strength = self.draws.uniform(self.options.sharpen_range, self.count)
        self._tell("sharpen", ["sharpen"] * self.count, strength)
        amount = strength.to(x.device, x.dtype).reshape(-1, 1, 1, 1)
        return (x + amount * (x - blur(x, SHARPEN_SIGMA, 7))).clamp(0, 1)

    def compress(self, x: Tensor, order: Order, stage: str | None = None) -> Tensor:
        quality = self.draws.uniform(self._option("jpeg_range", order), self.count)
        webp = self.draws.chances(self.options.webp_prob, self.count).tolist()
        self._tell(stage or f"compress{order}", ["WebP" if is_webp else "JPEG" for is_webp in webp], quality)
        if self.options.codec == "maths":
            return jpeg(x.clamp(0, 1), quality)
        return recode(x, quality, ["webp" if is_webp else "jpeg" for is_webp in webp])

    def pass_on(self, x: Tensor) -> Tensor:
        """What happens to a photo that people pass on: other sizes, compressed again each time."""
        low, high = self.options.recompressions
        for _ in range(self.draws.choice(range(low, high + 1))):
            if self.draws.chance(self.options.recompression_resize_prob):
                factor = self.draws.number(self.options.recompression_resize_range)
                x = self._resized("again", x, (int(self.target[0] * factor), int(self.target[1] * factor)))
            x = self.compress(x, "2", "again")
        return x

    def _filtered(self, stage: str, x: Tensor, kernels: Kernels) -> Tensor:
        self._tell(stage, kernels.names, kernels.strengths)
        return filter2d(x, kernels.weights)

    def _resized(self, stage: str, x: Tensor, size: tuple[int, int]) -> Tensor:
        mode = self.draws.choice(MODES)
        size = (max(1, size[0]), max(1, size[1]))
        self._tell(stage, [mode] * self.count, torch.full((self.count,), size[1] / x.shape[-1]))
        return x if size == tuple(x.shape[-2:]) else F.interpolate(x, size, mode=mode)

    def _option(self, name: str, order: Order) -> Any:
        return getattr(self.options, name + order)

    def _tell(self, stage: str, names: Sequence[str], values: Tensor) -> None:
        if self._report is not None:
            self._report(Step(stage, tuple(names), tuple(values.tolist())))

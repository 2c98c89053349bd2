"""What the second-order degradation can be told: the published keys, typed, and presets."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from drct.checking import first_problem
from drct.errors import OptionError, did_you_mean

KernelKind = Literal["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"]
KERNEL_KINDS: tuple[KernelKind, ...] = get_args(KernelKind)
PresetName = Literal["real", "web", "camera"]
PRESETS: tuple[PresetName, ...] = get_args(PresetName)

Range = tuple[float, float]
SMALLEST_KERNEL = 7  # sides are odd, from this one up to ``blur_kernel_size``


class DegradationOptions(BaseModel):
    """How ground truth becomes low quality (Real-ESRGAN, arXiv 2107.10833, section 3).

    Names and defaults are those of the published Real-DRCT option files; a ``2`` at the end of a name marks the second order.
    Additions of ours are marked "(ours)" and are off by default. Ranges are drawn from uniformly, and include both ends.

    Raises:
        OptionError: an unknown key (the nearest valid one is named), a value out of range, probabilities that do not sum to one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    blur_kernel_size: int = Field(21, description="largest side of the blur kernels, odd")
    kernel_list: tuple[KernelKind, ...] = Field(KERNEL_KINDS, description="kinds of blur kernels")
    kernel_prob: tuple[float, ...] = Field((0.45, 0.25, 0.12, 0.03, 0.12, 0.03), description="how often each kind is drawn")
    sinc_prob: float = Field(0.1, description="share of kernels that are sinc filters instead (ringing)")
    blur_sigma: Range = Field((0.2, 3.0), description="standard deviation of the blur in pixels")
    betag_range: Range = Field((0.5, 4.0), description="exponent of generalized Gaussian kernels")
    betap_range: Range = Field((1.0, 2.0), description="exponent of plateau kernels")
    resize_prob: tuple[float, float, float] = Field((0.2, 0.7, 0.1), description="enlarge, shrink, keep")
    resize_range: Range = Field((0.15, 1.5), description="smallest and largest factor")
    gaussian_noise_prob: float = Field(0.5, description="Gaussian noise; Poisson noise otherwise")
    noise_range: Range = Field((1.0, 30.0), description="standard deviation of Gaussian noise, of 255")
    poisson_scale_range: Range = Field((0.05, 3.0), description="strength of Poisson noise; 1 is photon noise")
    gray_noise_prob: float = Field(0.4, description="share of images whose noise is the same in all channels")
    jpeg_range: Range = Field((30.0, 95.0), description="JPEG quality")

    blur_kernel_size2: int = 21
    kernel_list2: tuple[KernelKind, ...] = KERNEL_KINDS
    kernel_prob2: tuple[float, ...] = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sinc_prob2: float = 0.1
    blur_sigma2: Range = (0.2, 1.5)
    betag_range2: Range = (0.5, 4.0)
    betap_range2: Range = (1.0, 2.0)
    second_blur_prob: float = Field(0.8, description="whether there is a second blur at all")
    resize_prob2: tuple[float, float, float] = (0.3, 0.4, 0.3)
    resize_range2: Range = Field((0.3, 1.2), description="relative to the size of the low-quality image")
    gaussian_noise_prob2: float = 0.5
    noise_range2: Range = (1.0, 25.0)
    poisson_scale_range2: Range = (0.05, 2.5)
    gray_noise_prob2: float = 0.4
    jpeg_range2: Range = (30.0, 95.0)
    final_sinc_prob: float = Field(0.8, description="sinc filter beside the last JPEG")

    codec: Literal["maths", "files"] = Field(
        "maths", description="(ours) JPEG by its formulas, on the tensor's device; or by writing and reading real files in memory"
    )
    webp_prob: float = Field(0.0, description="(ours) share of compressions that are WebP; needs codec 'files'")
    recompressions: tuple[int, int] = Field((0, 0), description="(ours) further rounds of resizing and compressing")
    recompression_resize_prob: float = Field(0.5, description="(ours) whether such a round resizes")
    recompression_resize_range: Range = Field((0.6, 1.2), description="(ours) relative to the size of the low-quality image")
    noise_grain: Range = Field((0.0, 0.0), description="(ours) standard deviation, in pixels, of a blur of the first noise")
    sharpen_prob: float = Field(0.0, description="(ours) sharpening before the last compression, as cameras do it")
    sharpen_range: Range = Field((0.3, 1.2), description="(ours) strength of that sharpening")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise OptionError(first_problem(error, DegradationOptions.model_fields, noun="degradation option", depth=1)) from None

    @classmethod
    def preset(cls, name: str) -> DegradationOptions:
        """The options of a preset.

        Args:
            name: ``"real"``, the published ones; ``"web"``, photos that were resized and compressed several times, by JPEG and
                WebP; ``"camera"``, snapshots of a small camera: soft, with coarse noise, sharpened, hardly compressed.

        Raises:
            OptionError: there is no such preset.
        """
        if name not in _PRESETS:
            raise OptionError(f"there is no degradation preset '{name}'{did_you_mean(name, PRESETS)}: {', '.join(PRESETS)}")
        return cls(**_PRESETS[name])

    @model_validator(mode="after")
    def _possible(self) -> DegradationOptions:
        for order in ("", "2"):
            self._check_kernels(order)
            _check_range(f"resize_range{order}", getattr(self, f"resize_range{order}"), 0.01, 16)
            _check_range(f"noise_range{order}", getattr(self, f"noise_range{order}"), 0, 255)
            _check_range(f"poisson_scale_range{order}", getattr(self, f"poisson_scale_range{order}"), 0, 100)
            _check_range(f"jpeg_range{order}", getattr(self, f"jpeg_range{order}"), 1, 100)
            _check_sum(f"resize_prob{order}", getattr(self, f"resize_prob{order}"))
        for name in type(self).model_fields:
            if name.rstrip("2").endswith("_prob") and isinstance(getattr(self, name), float):
                _check_share(name, getattr(self, name))
        for name in ("resize_range", "resize_range2", "recompression_resize_range"):
            low, high = getattr(self, name)
            if not low <= 1 <= high:
                raise ValueError(f"{name} is {low:g} to {high:g}, but must include 1: it holds the smallest and the largest factor")
        _check_range("recompressions", self.recompressions, 0, 20)
        _check_range("recompression_resize_range", self.recompression_resize_range, 0.01, 16)
        _check_range("noise_grain", self.noise_grain, 0, 10)
        _check_range("sharpen_range", self.sharpen_range, 0, 10)
        if self.webp_prob > 0 and self.codec != "files":
            raise ValueError("webp_prob is above 0, but WebP needs codec 'files'")
        return self

    def _check_kernels(self, order: str) -> None:
        kinds, shares = getattr(self, f"kernel_list{order}"), getattr(self, f"kernel_prob{order}")
        if len(kinds) != len(shares) or not kinds:
            raise ValueError(f"kernel_prob{order} holds {len(shares)} numbers for the {len(kinds)} kinds of kernel_list{order}")
        _check_sum(f"kernel_prob{order}", shares)
        size = getattr(self, f"blur_kernel_size{order}")
        if size % 2 == 0 or not SMALLEST_KERNEL <= size <= 101:
            raise ValueError(f"blur_kernel_size{order} is {size}, but must be odd, {SMALLEST_KERNEL} to 101")
        _check_range(f"blur_sigma{order}", getattr(self, f"blur_sigma{order}"), 0.05, 50)
        for name in (f"betag_range{order}", f"betap_range{order}"):
            _check_range(name, getattr(self, name), 0.05, 20)
            low, high = getattr(self, name)
            if not low <= 1 <= high:
                raise ValueError(f"{name} is {low:g} to {high:g}, but must include 1: half of the kernels lie on each side of it")


_PRESETS: dict[str, dict[str, Any]] = {
    "real": {},
    "web": {
        "codec": "files",
        "webp_prob": 0.3,
        "recompressions": (1, 3),
        "blur_sigma": (0.2, 1.5),
        "sinc_prob": 0.05,
        "resize_range": (0.25, 1.25),
        "noise_range": (1.0, 10.0),
        "poisson_scale_range": (0.05, 1.0),
        "jpeg_range": (40.0, 95.0),
        "second_blur_prob": 0.3,
        "blur_sigma2": (0.2, 1.0),
        "resize_range2": (0.5, 1.2),
        "noise_range2": (0.0, 4.0),
        "poisson_scale_range2": (0.0, 0.5),
        "jpeg_range2": (30.0, 90.0),
        "final_sinc_prob": 0.3,
    },
    "camera": {
        "codec": "files",
        "blur_sigma": (0.4, 3.0),
        "sinc_prob": 0.0,
        "resize_prob": (0.0, 0.6, 0.4),
        "resize_range": (0.35, 1.0),
        "gaussian_noise_prob": 0.3,
        "noise_range": (2.0, 18.0),
        "poisson_scale_range": (0.3, 2.0),
        "gray_noise_prob": 0.2,
        "noise_grain": (0.0, 1.2),
        "jpeg_range": (85.0, 98.0),
        "second_blur_prob": 0.5,
        "sinc_prob2": 0.0,
        "blur_sigma2": (0.2, 1.0),
        "resize_prob2": (0.1, 0.3, 0.6),
        "resize_range2": (0.6, 1.2),
        "noise_range2": (0.0, 4.0),
        "poisson_scale_range2": (0.0, 0.5),
        "sharpen_prob": 0.8,
        "sharpen_range": (0.2, 1.0),
        "jpeg_range2": (80.0, 97.0),
        "final_sinc_prob": 0.0,
    },
}


def _check_range(name: str, range_: Range, low: float, high: float) -> None:
    first, last = range_
    if not low <= first <= last <= high:
        raise ValueError(f"{name} is {first:g} to {last:g}, but must rise and lie within {low:g} to {high:g}")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value:g}, but a probability lies within 0 to 1")


def _check_sum(name: str, shares: tuple[float, ...]) -> None:
    for share in shares:
        _check_share(name, share)
    if not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ValueError(f"{name} sums to {sum(shares):g}, but probabilities must sum to 1")

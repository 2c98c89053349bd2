"""The process as a whole: pure, in range, and with the shares and ranges of its options."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor

from drct.degradation import PRESETS, DegradationOptions, degrade
from drct.degradation.options import KERNEL_KINDS
from drct.degradation.process import Step
from drct.errors import OptionError

DEFAULTS = DegradationOptions()
# nothing happens but what a test asks for
QUIET: dict[str, Any] = {
    "blur_sigma": (0.05, 0.05),
    "kernel_list": ("iso",),
    "kernel_prob": (1.0,),
    "sinc_prob": 0.0,
    "second_blur_prob": 0.0,
    "final_sinc_prob": 0.0,
    "resize_prob": (0.0, 0.0, 1.0),
    "resize_prob2": (0.0, 0.0, 1.0),
    "noise_range": (0.0, 0.0),
    "noise_range2": (0.0, 0.0),
    "gaussian_noise_prob": 1.0,
    "gaussian_noise_prob2": 1.0,
    "jpeg_range": (100.0, 100.0),
    "jpeg_range2": (100.0, 100.0),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def gt() -> Tensor:
    """Smooth colours with an edge."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 96), indexing="ij")
    image = torch.stack([x, y, (x + y > 1).float()])
    return torch.stack([image, image.flip(-1), image.roll(1, 0)])


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("scale", [2, 4])
def test_presets_make_small_images_of_8_bits(name: str, scale: int, gt: Tensor) -> None:
    for seed in range(4):
        lq = degrade(gt, DegradationOptions.preset(name), scale=scale, generator=seeded(seed))
        assert lq.shape == (3, 3, 64 // scale, 96 // scale)
        assert lq.dtype == torch.float32
        assert lq.min() >= 0
        assert lq.max() <= 1
        assert torch.equal(lq, (lq * 255).round() / 255)
        # still a picture of the same thing
        assert (lq.mean((-2, -1)) - gt.mean((-2, -1))).abs().max() < 0.15


@pytest.mark.parametrize("name", PRESETS)
def test_the_result_depends_on_input_and_seed_only(name: str, gt: Tensor) -> None:
    options, before = DegradationOptions.preset(name), gt.clone()
    first = degrade(gt, options, generator=seeded(5))
    torch.manual_seed(99)
    steps: list[Step] = []
    assert torch.equal(degrade(gt, options, generator=seeded(5), report=steps.append), first)
    assert not torch.equal(degrade(gt, options, generator=seeded(6)), first)
    assert torch.equal(gt, before)
    assert all(len(step.names) == len(step.values) == len(gt) and step.words(1) for step in steps)


def test_images_of_a_batch_differ(gt: Tensor) -> None:
    lq = degrade(gt[:1].expand(3, -1, -1, -1), DEFAULTS, generator=seeded(0))
    assert not torch.equal(lq[0], lq[1])


def test_tiny_images(gt: Tensor) -> None:
    for seed in range(8):
        assert degrade(gt[..., :4, :4], DEFAULTS, generator=seeded(seed)).shape == (3, 3, 1, 1)


@pytest.mark.parametrize("shape", [(1, 3, 63, 64), (1, 1, 64, 64), (1, 3, 0, 64)])
def test_ground_truth_that_does_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match="multiples of 4"):
        degrade(torch.rand(shape), DEFAULTS, generator=seeded(0))


def test_without_any_degradation_only_the_size_changes() -> None:
    """What is left is JPEG at its best, and at the end a resize of a smooth image."""
    y, x = torch.meshgrid(torch.linspace(0.2, 0.8, 64), torch.linspace(0.2, 0.8, 64), indexing="ij")
    gt = ((x + y) / 2).expand(1, 3, -1, -1)  # grey, because JPEG halves the resolution of colours
    lq = degrade(gt, DegradationOptions(**QUIET), generator=seeded(1))
    small = torch.nn.functional.interpolate(gt, (16, 16), mode="area")
    assert (lq - small).abs().max() < 3 / 255


@pytest.mark.parametrize("grey", [0.0, 1.0])
def test_gaussian_noise_has_the_strength_that_was_drawn(grey: float) -> None:
    gt = torch.full((2, 3, 128, 128), 0.5)
    options = DegradationOptions(**{**QUIET, "noise_range2": (12.0, 12.0), "gray_noise_prob2": grey})
    lq = degrade(gt, options, scale=1, generator=seeded(2))
    luma = torch.einsum("j,njhw->nhw", torch.tensor([0.299, 0.587, 0.114]), lq) * 255
    expected = 12 if grey else 12 * math.hypot(0.299, 0.587, 0.114)
    assert luma.flatten(1).std(1).tolist() == pytest.approx([expected] * 2, rel=0.05)
    between = (lq[:, 0] - lq[:, 1]).flatten(1).std(1) * 255
    assert (between < 1.5 if grey else between > 3).all()


def test_poisson_noise_grows_with_the_light() -> None:
    gt = torch.linspace(0.1, 0.9, 5).repeat_interleave(64).expand(1, 3, 128, 320).contiguous()
    options = DegradationOptions(
        **{**QUIET, "gaussian_noise_prob2": 0.0, "poisson_scale_range2": (1.0, 1.0), "gray_noise_prob2": 1.0}
    )
    lq = degrade(gt, options, scale=1, generator=seeded(3))
    spread = lq[0, 1].unflatten(1, (5, 64)).transpose(0, 1).flatten(1).std(1)
    levels = 2 ** math.ceil(math.log2(len(gt.mul(255).round().unique())))
    expected = (torch.linspace(0.1, 0.9, 5) / levels).sqrt()
    assert levels == 8
    assert spread[:3].tolist() == pytest.approx(expected[:3].tolist(), rel=0.15)  # brighter ones are clipped
    assert spread[0] < spread[1] < spread[2]


def check_statistics(seen: dict[str, list[tuple[str, float]]], runs: int, options: DegradationOptions) -> None:
    """Shares within five standard deviations of a binomial, ranges kept and filled."""

    def share(found: int, of: int, expected: float) -> None:
        assert abs(found / of - expected) <= 5 * math.sqrt(expected * (1 - expected) / of) + 1e-9, (found, of, expected)

    def filled(values: list[float], range_: tuple[float, float], grain: float = 0.0) -> None:
        low, high = range_
        span = high - low
        assert low - 1e-6 - grain <= min(values)
        assert max(values) <= high + 1e-6
        slack = 10 / len(values)  # nothing in the outermost tenth of a thousand draws
        assert min(values) < low + span * slack + grain
        assert max(values) > high - span * slack - grain
        assert abs(sum(values) / len(values) - (low + high) / 2) < 5 * span / math.sqrt(12 * len(values)) + grain

    for order in ("", "2"):
        blurs = seen[f"blur{order}"]
        share(len(blurs), runs, options.second_blur_prob if order else 1.0)
        sinc_prob = getattr(options, f"sinc_prob{order}")
        kinds = Counter(name for name, _ in blurs)
        share(kinds["sinc"], len(blurs), sinc_prob)
        for kind, expected in zip(KERNEL_KINDS, getattr(options, f"kernel_prob{order}"), strict=True):
            share(kinds[kind], len(blurs), expected * (1 - sinc_prob))
        filled([value for name, value in blurs if name == "iso"], getattr(options, f"blur_sigma{order}"))
        cutoffs = [value for name, value in blurs if name == "sinc"]
        assert all(math.pi / 5 <= value <= math.pi for value in cutoffs)

        noises = seen[f"noise{order}"]
        gaussian = [value for name, value in noises if name.endswith("Gaussian")]
        share(len(gaussian), runs, getattr(options, f"gaussian_noise_prob{order}"))
        share(sum(name.startswith("grey") for name, _ in noises), runs, getattr(options, f"gray_noise_prob{order}"))
        filled(gaussian, getattr(options, f"noise_range{order}"))
        poisson = [value for name, value in noises if name.endswith("Poisson")]
        filled(poisson, getattr(options, f"poisson_scale_range{order}"))
        filled([value for _, value in seen[f"compress{order}"]], getattr(options, f"jpeg_range{order}"))

    resizes = seen["resize"]
    for mode in ("area", "bilinear", "bicubic"):
        share(sum(name == mode for name, _ in resizes), runs, 1 / 3)
    up, _, keep = options.resize_prob
    low, high = options.resize_range
    share(sum(value > 1 for _, value in resizes), runs, up)
    share(sum(value == 1 for _, value in resizes), runs, keep)
    filled([value for _, value in resizes if value < 1], (low, 1.0), 1 / 64)  # whole pixels
    filled([value for _, value in resizes if value > 1], (1.0, high), 1 / 64)
    share(sum(name == "sinc" for name, _ in seen["finish"]), runs, options.final_sinc_prob)


def run_many(runs: int, options: DegradationOptions) -> dict[str, list[tuple[str, float]]]:
    seen: dict[str, list[tuple[str, float]]] = defaultdict(list)

    def note(step: Step) -> None:
        seen[step.stage] += zip(step.names, step.values, strict=True)

    gt = torch.rand(1, 3, 64, 64, generator=seeded(0))
    for seed in range(runs):
        degrade(gt, options, generator=seeded(seed), report=note)
    return seen


def test_statistics_of_a_few_degradations() -> None:
    check_statistics(run_many(80, DEFAULTS), 80, DEFAULTS)


@pytest.mark.slow
def test_statistics_of_a_thousand_degradations() -> None:
    check_statistics(run_many(1000, DEFAULTS), 1000, DEFAULTS)

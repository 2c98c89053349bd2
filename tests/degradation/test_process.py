"""The process as a whole: pure, in range, and with the shares and ranges of its options."""

from __future__ import annotations

import inspect
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from drct.degradation import PRESETS, DegradationOptions, degrade, kernels, process
from drct.degradation.draws import Draws
from drct.degradation.kernels import draw_kernels
from drct.degradation.options import KERNEL_KINDS, KernelKind
from drct.degradation.process import Step
from drct.errors import OptionError

DEFAULTS = DegradationOptions()
# the second order differs from the first in all that it has
UNLIKE: dict[str, Any] = {
    "blur_kernel_size2": 13,
    "kernel_list2": KERNEL_KINDS[::-1],
    "kernel_prob2": (0.0, 0.7, 0.0, 0.0, 0.1, 0.2),
    "sinc_prob2": 0.5,
    "blur_sigma2": (0.5, 1.0),
    "betag_range2": (0.8, 2.0),
    "betap_range2": (0.9, 1.5),
    "gaussian_noise_prob2": 0.1,
    "noise_range2": (40.0, 50.0),
    "poisson_scale_range2": (4.0, 5.0),
    "gray_noise_prob2": 0.9,
    "jpeg_range2": (10.0, 25.0),
}
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    """Drawing Poisson noise in it never ended."""
    gt, options = torch.rand(1, 3, 32, 32).to(dtype), DegradationOptions(gaussian_noise_prob=0, gaussian_noise_prob2=0)
    half, single = (degrade(x, options, generator=seeded(0)) for x in (gt, gt.float()))
    assert half.dtype == dtype
    assert torch.equal(half, single.to(dtype))


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


def noted(monkeypatch: pytest.MonkeyPatch, place: Any, name: str) -> list[dict[str, Any]]:
    """The arguments of every later call of a function, by name; it works as before."""
    function: Callable[..., Any] = getattr(place, name)
    calls: list[dict[str, Any]] = []

    def note(*args: Any, **named: Any) -> Any:
        calls.append(inspect.signature(function).bind(*args, **named).arguments)
        return function(*args, **named)

    monkeypatch.setattr(place, name, note)
    return calls


@pytest.mark.parametrize(
    ("kind", "beta"),
    [("aniso", (1.0, 1.0)), ("generalized_aniso", (0.5, 4.0)), ("plateau_aniso", (0.25, 2.0))],
)
def test_kernels_turn_all_the_way_round_with_the_exponents_of_their_kind(
    kind: KernelKind, beta: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = noted(monkeypatch, kernels, "blur_kernels")
    draw_kernels(
        Draws(seeded(0)),
        1000,
        largest=7,
        kinds=[kind],
        shares=[1.0],
        sinc_prob=0.0,
        sigma=(0.2, 3.0),
        betag=(0.5, 4.0),
        betap=(0.25, 2.0),
    )
    (call,) = calls
    assert [call["theta"].min(), call["theta"].max()] == pytest.approx([-math.pi, math.pi], abs=0.05)
    assert call["theta"].mean().abs() < 0.3
    assert [call["beta"].min(), call["beta"].max()] == pytest.approx(beta, abs=0.03)
    if kind != "aniso":
        assert (call["beta"] < 1).sum() / 1000 == pytest.approx(0.5, abs=0.08)


def test_small_sinc_kernels_have_no_low_cut_off() -> None:
    cutoffs = kernels._draw_cutoffs(Draws(seeded(0)), torch.tensor([11, 13]).repeat_interleave(1000))
    for drawn, lowest in zip(cutoffs.chunk(2), (math.pi / 3, math.pi / 5), strict=True):
        assert lowest <= drawn.min() < lowest + 0.02
        assert math.pi - 0.02 < drawn.max() <= math.pi


def test_either_blur_has_options_of_its_own(gt: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = noted(monkeypatch, process, "draw_kernels")
    options = DegradationOptions(**UNLIKE, second_blur_prob=1.0)
    degrade(gt, options, generator=seeded(0))
    names = {
        "largest": "blur_kernel_size",
        "kinds": "kernel_list",
        "shares": "kernel_prob",
        "sinc_prob": "sinc_prob",
        "sigma": "blur_sigma",
        "betag": "betag_range",
        "betap": "betap_range",
    }
    for call, order in zip(calls, ("", "2"), strict=True):
        assert {key: call[key] for key in names} == {key: getattr(options, name + order) for key, name in names.items()}


def test_the_last_filter_is_as_large_as_the_first(gt: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = noted(monkeypatch, process, "draw_final_sinc")
    degrade(gt, DegradationOptions(blur_kernel_size=9, blur_kernel_size2=15), generator=seeded(0))
    assert [call["largest"] for call in calls] == [9]


def stages(options: DegradationOptions, runs: int) -> list[list[str]]:
    """Names of the steps of every run."""
    found: list[list[str]] = [[] for _ in range(runs)]
    for seed in range(runs):
        degrade(
            torch.full((1, 3, 8, 8), 0.5),
            options,
            generator=seeded(seed),
            report=lambda step, run=found[seed]: run.append(step.stage),
        )
    return found


def test_the_last_filter_comes_before_or_after_the_last_compression() -> None:
    ends = Counter(tuple(run[-3:]) for run in stages(DegradationOptions(**QUIET, blur_kernel_size=7), 30))
    assert ends.keys() == {("finish", "finish", "compress2"), ("compress2", "finish", "finish")}
    assert min(ends.values()) > 6


def test_images_are_passed_on_as_often_as_the_options_say() -> None:
    options = DegradationOptions(**QUIET, blur_kernel_size=7, recompressions=(0, 2), recompression_resize_prob=0.0)
    assert {run.count("again") for run in stages(options, 30)} == {0, 1, 2}


def test_values_between_two_levels_are_rounded() -> None:
    lq = degrade(torch.full((1, 3, 16, 16), 0.5), DegradationOptions(**QUIET), generator=seeded(0))
    assert (lq * 255).unique().tolist() == pytest.approx([128])


def test_sharpening_raises_gradients(gt: Tensor) -> None:
    def energy(**more: Any) -> Tensor:
        lq = degrade(gt, DegradationOptions(**QUIET, **more), scale=1, generator=seeded(0))
        return lq.diff(dim=-1).square().mean((1, 2, 3))

    assert (energy(sharpen_prob=1.0, sharpen_range=(0.5, 0.5)) > 1.1 * energy()).all()


def test_grain_joins_neighbours_and_keeps_the_strength() -> None:
    options = DegradationOptions(**{**QUIET, "noise_range": (12.0, 12.0), "gray_noise_prob": 1.0, "noise_grain": (1.0, 1.0)})
    lq = degrade(torch.full((2, 3, 96, 96), 0.5), options, scale=1, generator=seeded(0))
    noise = lq[:, 1] * 255 - 127.5
    assert noise.flatten(1).std(1).tolist() == pytest.approx([12, 12], rel=0.03)
    neighbours = (noise[..., 1:] * noise[..., :-1]).mean((1, 2)) / 12**2
    # white noise blurred by a Gaussian g is correlated as g * g: exp(-1 / 4) one pixel apart at a deviation of 1
    assert neighbours.tolist() == pytest.approx([math.exp(-1 / 4)] * 2, abs=0.05)


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
        for kind, expected in zip(getattr(options, f"kernel_list{order}"), getattr(options, f"kernel_prob{order}"), strict=True):
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


@pytest.mark.parametrize("options", [DEFAULTS, DegradationOptions(**UNLIKE)], ids=["defaults", "unlike orders"])
def test_statistics_of_a_few_degradations(options: DegradationOptions) -> None:
    check_statistics(run_many(80, options), 80, options)


@pytest.mark.slow
def test_statistics_of_a_thousand_degradations() -> None:
    check_statistics(run_many(1000, DEFAULTS), 1000, DEFAULTS)

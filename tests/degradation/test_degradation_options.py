"""Options: published keys and values, presets, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from drct.degradation import PRESETS, DegradationOptions
from drct.errors import OptionError


def test_the_published_values_are_the_defaults() -> None:
    options = DegradationOptions()
    assert options.resize_prob == (0.2, 0.7, 0.1)
    assert options.resize_range == (0.15, 1.5)
    assert options.resize_prob2 == (0.3, 0.4, 0.3)
    assert options.resize_range2 == (0.3, 1.2)
    assert options.kernel_prob == options.kernel_prob2 == (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    assert (options.blur_sigma, options.blur_sigma2) == ((0.2, 3), (0.2, 1.5))
    assert (options.noise_range, options.noise_range2) == ((1, 30), (1, 25))
    assert (options.poisson_scale_range, options.poisson_scale_range2) == ((0.05, 3), (0.05, 2.5))
    assert (options.jpeg_range, options.jpeg_range2) == ((30, 95), (30, 95))
    assert (options.sinc_prob, options.sinc_prob2, options.final_sinc_prob) == (0.1, 0.1, 0.8)
    assert (options.second_blur_prob, options.gray_noise_prob, options.gaussian_noise_prob) == (0.8, 0.4, 0.5)
    assert DegradationOptions.preset("real") == options


def test_lists_of_yaml_files_are_taken() -> None:
    options = DegradationOptions(kernel_list=["iso", "aniso"], kernel_prob=[0.5, 0.5], jpeg_range=[40, 90], blur_sigma=[0.2, 2])
    assert options.jpeg_range == (40.0, 90.0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kernel_prob": (0.5, 0.25, 0.12, 0.03, 0.12, 0.03)}, "kernel_prob sums to 1.05, but probabilities must sum to 1"),
        ({"kernel_prob2": (0.5, 0.5)}, "kernel_prob2 holds 2 numbers for the 6 kinds of kernel_list2"),
        ({"kernel_list": (), "kernel_prob": ()}, "kernel_prob holds 0 numbers"),
        ({"kernel_list": ("iso", "round"), "kernel_prob": (0.5, 0.5)}, "kernel_list is 'round'"),
        ({"resize_prob": (0.5, 0.7, -0.2)}, "resize_prob is -0.2, but a probability lies within 0 to 1"),
        ({"resize_prob2": (0.2, 0.7)}, "resize_prob2"),
        ({"sinc_prob": 1.5}, "sinc_prob is 1.5, but a probability lies within 0 to 1"),
        ({"gray_noise_prob2": -0.1}, "gray_noise_prob2 is -0.1"),
        ({"resize_range": (1.1, 1.5)}, "resize_range is 1.1 to 1.5, but must include 1"),
        ({"noise_range": (30, 1)}, "noise_range is 30 to 1, but must rise and lie within 0 to 255"),
        ({"jpeg_range2": (0, 95)}, "jpeg_range2 is 0 to 95, but must rise and lie within 1 to 100"),
        ({"poisson_scale_range": (float("nan"), 1)}, "poisson_scale_range is nan"),
        ({"betap_range": (1.5, 2)}, "betap_range is 1.5 to 2, but must include 1"),
        ({"blur_sigma": (0, 3)}, "blur_sigma is 0 to 3"),
        ({"blur_kernel_size": 20}, "blur_kernel_size is 20, but must be odd"),
        ({"blur_kernel_size2": 5}, "blur_kernel_size2 is 5"),
        ({"webp_prob": 0.5}, "WebP needs codec 'files'"),
        ({"recompressions": (3, 1)}, "recompressions is 3 to 1"),
        ({"noise_rang": (1, 30)}, "degradation option 'noise_rang' is unknown (did you mean 'noise_range'?)"),
        ({"jpeg_range": "high"}, "jpeg_range is 'high'"),
    ],
)
def test_impossible_values_are_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        DegradationOptions(**values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_presets_are_refused() -> None:
    with pytest.raises(OptionError, match="'webb' \\(did you mean 'web'\\?\\): real, web, camera"):
        DegradationOptions.preset("webb")


def test_presets_differ() -> None:
    assert len({repr(DegradationOptions.preset(name)) for name in PRESETS}) == 3

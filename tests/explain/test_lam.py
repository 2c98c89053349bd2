"""Local attribution maps: published values, bounds, and what the path is made of."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from drct.errors import OptionError
from drct.explain import lam
from drct.explain.cost import gradient_memory
from drct.explain.lam import Window, attribute, batch_size, density, detail, diffusion_index, gaussian_kernel, path
from drct.networks import SuperResolutionNetwork, create_network
from drct.weights import load_network

SMALL = {"embed_dim": 60, "depths": [6] * 4, "num_heads": [6] * 4, "window_size": 8, "gc": 16}


@pytest.mark.parametrize("case", ["h40_w200_window24_fold20", pytest.param("h110_w150_window16_fold50", marks=pytest.mark.slow)])
def test_map_and_index_equal_the_published_implementation(case: str, shared: Path, seeded: ModuleType) -> None:
    reference = np.load(shared / "reference" / "lam.npz")
    settings = json.loads((shared / "reference" / "lam.json").read_text())[case]
    network = seeded.fill(create_network("drct", scale=4, **SMALL).eval())
    window = Window(settings["x"], settings["y"], settings["window"])
    result = attribute(network, torch.from_numpy(reference["x"])[None], window, fold=settings["fold"])
    assert np.abs(result.map - reference[f"{case}/attribution"]).max() < 1e-3
    signed = reference[f"{case}/gradient"]
    assert np.abs(result.gradient - signed).max() < 1e-3 * np.abs(signed).max()
    assert result.diffusion_index == pytest.approx(settings["diffusion_index"], abs=1e-2)


@pytest.fixture
def network(models: list[Path]) -> SuperResolutionNetwork:
    return load_network(models[0])


def test_batches_do_not_change_the_map(network: SuperResolutionNetwork) -> None:
    lr = torch.rand(1, 3, 11, 9, generator=torch.Generator().manual_seed(1))
    window = Window(10, 12, 8)
    steps: list[tuple[int, int]] = []
    one = attribute(network, lr, window, fold=7, batch=1)
    several = attribute(network, lr, window, fold=7, batch=3, advance=lambda *step: steps.append(step))
    assert steps == [(3, 7), (6, 7), (7, 7)]
    np.testing.assert_allclose(one.map, several.map, atol=1e-4)
    assert one.map.max() == 1
    assert one.gradient.shape == (3, 11, 9)


def test_a_gpu_takes_what_fits_into_half_of_what_can_be_had(
    network: SuperResolutionNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lam, "device_of", lambda network: torch.device("cuda"))
    monkeypatch.setattr(lam, "free_memory", lambda device: 7 * gradient_memory(network, 8, 9))
    assert batch_size(network, 8, 9) == 3


def test_the_network_is_left_alone_and_sr_is_that_of_the_image(network: SuperResolutionNetwork) -> None:
    lr = torch.rand(1, 3, 8, 8)
    result = attribute(network, lr, Window(4, 4, 8), fold=2)
    assert all(p.requires_grad and p.grad is None for p in network.parameters())
    assert not any("attention" in vars(module) for module in network.modules())
    with torch.inference_mode():
        expected = network(lr)[0].clamp(0, 1).permute(1, 2, 0)
    np.testing.assert_allclose(result.sr, expected, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 4])
def test_networks_of_other_channels(channels: int) -> None:
    options = {"embed_dim": 8, "gc": 4, "depths": [1], "num_heads": [2], "window_size": 4}
    network = create_network("drct", scale=2, in_chans=channels, **options).eval()
    result = attribute(network, torch.rand(1, channels, 8, 8), Window(2, 2, 4), fold=2)
    assert result.gradient.shape == (channels, 8, 8)
    assert result.sr.shape == (16, 16, channels)


def test_batches_are_bounded(network: SuperResolutionNetwork) -> None:
    assert batch_size(network, 16, 16) == 16
    assert batch_size(network, 500, 500) == 1


def test_path_ends_at_the_image_and_derivatives_add_up_to_the_way() -> None:
    lr = torch.rand(1, 3, 12, 10)
    images, changes = path(lr, 1.2, 5, 9, range(5))
    assert torch.equal(images[-1], lr[0])
    way = changes.mean(0)  # each is fold times the step
    start, _ = path(lr, 1.2, 1, 9, range(1))
    blurred = torch.nn.functional.conv2d(
        torch.nn.functional.pad(lr[0][:, None].double(), (4,) * 4, mode="reflect"), gaussian_kernel(9, 1.2)[None, None]
    )[:, 0]
    assert torch.equal(start[0], lr[0])
    torch.testing.assert_close(way.double(), lr[0].double() - blurred, atol=1e-5, rtol=0)


def test_detail_is_the_sum_of_gradient_magnitudes() -> None:
    ys, xs = torch.meshgrid(torch.arange(10.0), torch.arange(12.0), indexing="ij")
    ramp = (3 * ys + 4 * xs).expand(2, 3, 10, 12)
    torch.testing.assert_close(detail(ramp, Window(2, 3, 5)), torch.full((2,), 5.0 * 25 * 3))


def test_diffusion_index_of_one_pixel_and_of_all() -> None:
    one = np.zeros((10, 10))
    one[3, 4] = 1
    assert diffusion_index(one) == pytest.approx(1, abs=0.01)
    assert diffusion_index(np.ones((10, 10))) == pytest.approx(100)


def test_density_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    values = rng.random((14, 17)) ** 8
    points = np.stack([axis.ravel() for axis in np.mgrid[:14, :17]])
    expected = stats.gaussian_kde(points, weights=values.ravel())(points).reshape(values.shape)
    np.testing.assert_allclose(density(values), expected / expected.max(), atol=1e-3)
    # smoother than the map: neighbours differ less
    assert np.abs(np.diff(density(values))).mean() < 0.5 * np.abs(np.diff(values / values.max())).mean()


@pytest.mark.filterwarnings("error")
def test_density_of_a_single_pixel_is_that_pixel() -> None:
    values = np.zeros((8, 9), np.float32)
    values[3, 4] = 2
    np.testing.assert_allclose(density(values), values / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("window", "message"),
    [
        (Window(32, 0, 4), "point 32,0 is outside the image of 32 x 40 pixels"),
        (Window(-1, 0, 4), "outside"),
        (Window(16, 0, 16), "does not fit .* X may be at most 15, Y at most 23"),
        (Window(0, 0, 50), "smaller window"),
        (Window(0, 0, 0), "at least 1"),
    ],
)
def test_bad_windows_are_named(network: SuperResolutionNetwork, window: Window, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        attribute(network, torch.rand(1, 3, 10, 8), window)


def test_bad_paths_are_named(network: SuperResolutionNetwork) -> None:
    window, lr = Window(1, 1, 4), torch.rand(1, 3, 10, 8)
    wrong = [({"sigma": sigma}, "above 0 and at most 10000") for sigma in (0.0, float("inf"), float("nan"))]
    for options, message in (*wrong, ({"fold": 0}, "at least 1"), ({"kernel_size": 4}, "odd")):
        with pytest.raises(OptionError, match=message):
            attribute(network, lr, window, **options)
    with pytest.raises(OptionError, match="too small"):
        attribute(network, torch.rand(1, 3, 4, 9), window)
    for shape in ((3, 10, 8), (2, 3, 10, 8), (1, 1, 10, 8)):
        with pytest.raises(OptionError, match="is needed"):
            attribute(network, torch.rand(shape), window)


def test_a_window_that_depends_on_nothing_is_an_error(network: SuperResolutionNetwork) -> None:
    for parameter in network.parameters():
        parameter.data.zero_()
    with pytest.raises(OptionError, match="does not depend on the image"):
        attribute(network, torch.rand(1, 3, 8, 8), Window(1, 1, 4), fold=2)

"""``--model auto``: which network a picture goes through, and mixtures of two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from upscaling_helpers import tiny_network

import drct
from drct.errors import ImageError, OptionError
from drct.imaging import Picture, read, resize, write
from drct.networks import create_network
from drct.upscaling import AutoUpscaler, UpscaleOptions, Upscaler, choosing, upscale
from drct.weights import models, save_network

CLEAN, REAL = "drct-light", "drct-real-light"


def other_network() -> drct.networks.SuperResolutionNetwork:  # type: ignore[name-defined]
    """Of the same sizes as the tiny one x4, with other weights."""
    network = tiny_network(4)
    generator = torch.Generator().manual_seed(99)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += torch.randn(parameter.shape, generator=generator) * 0.02
    return network


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny networks under the bundled names: for clean pictures x2 and x4, for degraded ones x4."""
    folder = tmp_path_factory.mktemp("bundled")
    for scale in (2, 4):
        save_network(tiny_network(scale), folder / f"{CLEAN}-x{scale}.safetensors")
    save_network(other_network(), folder / f"{REAL}-x4.safetensors")
    return folder


@pytest.fixture
def bundled(both: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(models, "BUNDLED", both)
    monkeypatch.setenv("DRCT_MODELS", str(tmp_path / "none"))
    return both


@pytest.fixture
def without_real(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bundled"
    folder.mkdir()
    for path in bundled.glob(f"{CLEAN}*"):
        (folder / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(models, "BUNDLED", folder)


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    """A sharp one: boxes on a slope, made smaller."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[0:160, 0:192]
    image = np.stack([60 + x * 0.5, 200 - y, 60 + x * 0.7], -1)
    for _ in range(40):
        top, left, height, width = rng.integers(0, 150), rng.integers(0, 180), *rng.integers(6, 40, 2)
        image[top : top + height, left : left + width] = rng.uniform(20, 235, 3)
    return resize(image.astype(np.uint8), 1 / 4)


@pytest.fixture(scope="module")
def dirty(clean: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 12, clean.shape)
    return (clean + noise).round().clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("size", [{}, {"scale": 2}, {"scale": 3.5}, {"width": 100}])
def test_each_picture_gets_the_network_that_suits_it(bundled, clean, dirty, size) -> None:
    auto, fidelity, real = AutoUpscaler(device="cpu"), Upscaler(CLEAN, device="cpu"), Upscaler(f"{REAL}-x4", device="cpu")
    for pixels, plain, name in ((clean, fidelity, CLEAN), (dirty, real, REAL)):
        result = auto.picture(Picture(pixels), **size)
        np.testing.assert_array_equal(result.picture.pixels, plain.upscale(pixels, **(size or {"scale": 4})).pixels)
        assert result.choice.startswith(f"{name}: ")
        assert all(p.model.startswith(f"{name}-x") for p in result.passes)
        np.testing.assert_array_equal(auto(pixels, **size), result.picture.pixels)
    assert auto.picture(Picture(clean)).choice == f"{CLEAN}: clean"
    assert "noise" in auto.picture(Picture(dirty)).choice


def test_large_results_of_degraded_pictures_go_on_with_the_other_network(bundled, dirty) -> None:
    auto = AutoUpscaler(device="cpu")
    for scale, models_ in {5: [f"{REAL}-x4", f"{CLEAN}-x2"], 9: [f"{REAL}-x4", f"{CLEAN}-x2", f"{CLEAN}-x2"]}.items():
        result = auto.picture(Picture(dirty[:24, :24]), scale=scale)
        assert [p.model for p in result.passes] == models_
        assert (result.picture.height, result.picture.width) == (24 * scale, 24 * scale)


@pytest.mark.parametrize(("scale", "models_"), [(2.03, [f"{REAL}-x2"]), (8.1, [f"{REAL}-x4", f"{REAL}-x2"])])
def test_sizes_just_beyond_those_of_the_networks_take_no_larger_ones(bundled, dirty, tmp_path, monkeypatch, scale, models_) -> None:
    save_network(tiny_network(2), tmp_path / f"{REAL}-x2.safetensors")
    monkeypatch.setenv("DRCT_MODELS", str(tmp_path))
    result = AutoUpscaler(device="cpu").picture(Picture(dirty), scale=scale)
    assert [p.model for p in result.passes] == models_


def test_alpha_goes_the_same_way(bundled, dirty) -> None:
    alpha = np.zeros(dirty.shape[:2], np.uint8)
    alpha[8:20] = 255
    result = AutoUpscaler(device="cpu").picture(Picture(dirty, alpha=alpha))
    assert {p.model for p in result.passes} == {f"{REAL}-x4"}
    assert result.picture.alpha is not None
    assert result.picture.alpha.shape == result.picture.pixels.shape[:2]


def test_without_the_network_for_degraded_pictures(without_real, clean, dirty) -> None:
    auto = AutoUpscaler(device="cpu")
    result = auto.picture(Picture(dirty))
    assert result.passes[0].model == f"{CLEAN}-x4"
    assert result.choice.startswith(f"{CLEAN}: noise ")
    assert result.choice.endswith(f", but there is no {REAL} here")
    np.testing.assert_array_equal(result.picture.pixels, Upscaler(CLEAN, device="cpu")(dirty, scale=4))
    with pytest.raises(OptionError, match=f"{REAL}, which is not on this machine"):
        AutoUpscaler(strength=0.5, device="cpu")


def test_strength_mixes_the_networks(bundled, clean, dirty) -> None:
    images = [AutoUpscaler(strength=s, device="cpu").upscale(clean.astype(np.float32) / 255).pixels for s in (0, 0.5, 1)]
    plain = [Upscaler(f"{name}-x4", device="cpu").upscale(clean.astype(np.float32) / 255).pixels for name in (CLEAN, REAL)]
    np.testing.assert_allclose(images[0], plain[0], atol=1e-5)
    np.testing.assert_allclose(images[2], plain[1], atol=1e-5)
    distance = [np.abs(images[1] - end).mean() for end in (images[0], images[2])]
    assert max(distance) < np.abs(images[0] - images[2]).mean()
    # whatever the picture looks like
    for pixels in (clean, dirty):
        result = AutoUpscaler(strength=0.5, device="cpu").picture(Picture(pixels))
        assert result.choice == f"{CLEAN} with 0.5 of {REAL}, as asked for"
        assert result.passes[0].model == f"{CLEAN}-x4 with 0.5 of {REAL}-x4"


def test_networks_that_cannot_be_mixed(bundled, both, tmp_path, monkeypatch) -> None:
    folder = tmp_path / "others"
    folder.mkdir()
    save_network(tiny_network(4), folder / f"{CLEAN}-x4.safetensors")
    wide = create_network("drct", scale=4, embed_dim=12, gc=4, depths=[1], num_heads=[2], window_size=4)
    save_network(wide, folder / f"{REAL}-x4.safetensors")
    monkeypatch.setattr(models, "BUNDLED", folder)
    with pytest.raises(OptionError, match="strength mixes two networks of the same sizes"):
        AutoUpscaler(strength=0.5, device="cpu")


@pytest.mark.parametrize("strength", ["0.5", True, np.array([0.5])])
def test_strength_is_a_number(bundled, strength) -> None:
    with pytest.raises(OptionError, match=r"strength is .*, but must be a number within 0 to 1"):
        AutoUpscaler(strength=strength, device="cpu")
    assert type(AutoUpscaler(strength=np.float32(0.5), device="cpu").strength) is float


@pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
def test_strength_out_of_range(bundled, strength) -> None:
    with pytest.raises(OptionError, match="strength is "):
        AutoUpscaler(strength=strength, device="cpu")
    with pytest.raises(OptionError, match="strength is "):
        UpscaleOptions(inputs=("a.png",), strength=strength)


def test_strength_belongs_to_auto() -> None:
    with pytest.raises(OptionError, match="model is 'drct-light': leave out one of them"):
        UpscaleOptions(inputs=("a.png",), model="drct-light", strength=0.5)


def test_digests_stand_for_all_networks_that_may_be_used(bundled, without_real) -> None:
    alone = AutoUpscaler(device="cpu")
    models.BUNDLED = bundled  # put back by the fixtures
    both, half = AutoUpscaler(device="cpu"), AutoUpscaler(strength=0.5, device="cpu")
    assert len({upscaler.digest(4) for upscaler in (alone, both, half)}) == 3
    assert both.digest(4) == AutoUpscaler(device="cpu").digest(4)
    assert alone.scales_for(10, 10, scale=2) == (2,)
    assert both.scales_for(10, 10, scale=2) == (2, 4)
    assert half.scales_for(10, 10, scale=2) == (4,)


@pytest.mark.parametrize("limit", ["DEFECTS", "POOR_JPEG"])
def test_digests_tell_how_is_chosen(bundled, monkeypatch, limit) -> None:
    auto = AutoUpscaler(device="cpu")
    before = auto.digest(4)
    monkeypatch.setattr(choosing, limit, {**choosing.DEFECTS, "noise": (0.5, 3.0)} if limit == "DEFECTS" else 90)
    assert auto.digest(4) != before


def test_files_are_told_apart(bundled, clean, dirty, tmp_path) -> None:
    """The default of a run over files; each result says what was chosen, and a JPEG's own tables count."""
    folder = tmp_path / "in"
    folder.mkdir()
    write(folder / "a.png", clean)
    write(folder / "b.png", dirty)
    write(folder / "c.jpg", np.full((40, 40, 3), 100, np.uint8), quality=30)
    options = UpscaleOptions(inputs=(folder,), output=tmp_path / "out", device="cpu")
    report = upscale(options)
    assert report.model == "auto"
    assert [result.status for result in report.results] == ["done"] * 3
    choices = [result.choice for result in report.results]
    assert choices[0] == f"{CLEAN}: clean"
    assert choices[1].startswith(f"{REAL}: noise ")
    assert choices[2] == f"{REAL}: JPEG quality 30"
    assert report.results[2].to_json()["choice"] == choices[2]
    assert read(tmp_path / "out" / "b_x4.png").pixels.shape == (160, 192, 3)
    assert [result.status for result in upscale(options).results] == ["skipped"] * 3


def test_a_model_by_name_is_not_looked_for(bundled, dirty, tmp_path) -> None:
    write(tmp_path / "b.png", dirty)
    (result,) = upscale(UpscaleOptions(inputs=(tmp_path / "b.png",), model=CLEAN, device="cpu")).results
    assert result.choice == ""
    assert result.passes[0].model == f"{CLEAN}-x4"


def test_verified_tiles_are_those_of_the_chosen_network(bundled, dirty) -> None:
    auto = AutoUpscaler(device="cpu", tile=16, overlap=8)
    real = Upscaler(f"{REAL}-x4", device="cpu", tile=16, overlap=8)
    assert auto.compare_whole(dirty) == real.compare_whole(dirty)


def test_verified_tiles_are_those_of_the_size_that_was_asked_for(bundled, clean, tmp_path) -> None:
    how = {"device": "cpu", "tile": 16, "overlap": 8}
    one, two = Upscaler(CLEAN, **how), Upscaler(f"{CLEAN}-x2", **how)
    write(tmp_path / "a.png", clean)
    for upscaler in (one, two):
        assert upscaler.compare_whole(clean, scale=2) == two.compare_whole(clean)
    assert one.compare_whole(clean) != two.compare_whole(clean)
    options = UpscaleOptions(inputs=(tmp_path / "a.png",), model=CLEAN, scale=2, verify_tiles=True, **how)
    assert upscale(options).results[0].tile_difference == two.compare_whole(clean)


def test_a_file_that_is_judged_by_its_quality_has_the_tiles_verified_that_it_got(bundled, clean, tmp_path) -> None:
    write(tmp_path / "a.jpg", clean, quality=60)  # clean, by its pixels
    how = {"device": "cpu", "tile": 16, "overlap": 8}
    (result,) = upscale(UpscaleOptions(inputs=(tmp_path / "a.jpg",), verify_tiles=True, **how)).results
    assert result.choice.startswith(f"{REAL}: JPEG quality 60")
    assert result.tile_difference == Upscaler(f"{REAL}-x4", **how).compare_whole(read(tmp_path / "a.jpg"))


@pytest.mark.parametrize(
    ("value", "message"), [(np.inf, "hold NaN or infinite values"), (np.nan, "hold NaN or"), (3e38, "reach from -3e")]
)
def test_floats_that_are_no_picture_are_told_by_the_error_alone(value: float, message: str, bundled, recwarn) -> None:
    image = np.full((30, 30, 3), value, np.float32)
    image[::2] *= -1
    with pytest.raises(ImageError, match=message):
        AutoUpscaler(device="cpu")(image)
    assert not recwarn.list


def test_results_are_known_by_the_strength_of_the_given_upscaler(bundled, clean, tmp_path: Path) -> None:
    write(tmp_path / "a.png", clean)
    options = UpscaleOptions(inputs=(tmp_path / "a.png",), output=tmp_path / "out")
    assert upscale(options.model_copy(update={"strength": 0.5, "device": "cpu"})).results[0].status == "done"
    report = upscale(options, None, AutoUpscaler(strength=0.5, device="cpu"))
    assert (report.results[0].status, report.model) == ("skipped", "auto")
    assert upscale(options, None, AutoUpscaler(device="cpu")).results[0].status == "done"


@pytest.mark.parametrize("array", [np.zeros((8, 8, 3)), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8), bool)])
def test_what_is_no_image_is_refused_before_it_is_looked_at(array: np.ndarray, both: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "BUNDLED", both)
    with pytest.raises(ImageError):
        AutoUpscaler()(array)
    for upscaler in (AutoUpscaler(device="cpu"), Upscaler(CLEAN, device="cpu")):
        with pytest.raises(ImageError, match=r"is a ndarray, not a drct\.imaging\.Picture: use upscale for arrays"):
            upscaler.picture(array)
    with pytest.raises(OptionError, match=r"takes drct\.UpscaleOptions\(inputs=\.\.\., \.\.\.\), not a str"):
        upscale("photos")
    assert UpscaleOptions(inputs="photos").inputs == (Path("photos"),)

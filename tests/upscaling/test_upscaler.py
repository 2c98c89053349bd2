"""One picture through the upscaler: types, sizes, scales, transparency, memory."""

from __future__ import annotations

import dataclasses
import os
import pickle
import sys
from fractions import Fraction
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing  # which has tensors shared
from upscaling_helpers import smooth_image, tiny_network

import drct
from drct.errors import CheckpointError, DeviceError, ImageError, ModelNotFoundError, OptionError, OutOfMemoryError
from drct.imaging import Picture, from_tensor, read, resize, to_depth, to_tensor, write
from drct.networks import SuperResolutionNetwork, create_network
from drct.upscaling import Upscaler, self_ensemble, target_size
from drct.upscaling.alpha import bleed


@dataclasses.dataclass(frozen=True)
class _NoOptions:
    pass


class Nearest(SuperResolutionNetwork):
    """Repeats pixels; runs out of memory above a number of input pixels."""

    architecture = "nearest"

    def __init__(self, scale: int = 4, limit: int | None = None, in_chans: int = 3) -> None:
        super().__init__(_NoOptions(), scale=scale, in_chans=in_chans, pad_multiple=8, img_range=1.0)
        self.limit = limit
        self.seen: list[tuple[int, ...]] = []

    def forward_padded(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(x.shape))
        if self.limit is not None and x.shape[-1] * x.shape[-2] > self.limit:
            raise torch.OutOfMemoryError("out of memory (for this test)")
        return x.repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("shape", [(9, 14, 3), (9, 14), (9, 14, 1), (1, 1, 3), (40, 3, 3)])
def test_type_and_dimensions_stay(network, dtype, shape):
    peak = {"uint8": 255, "uint16": 65535, "float32": 1}[np.dtype(dtype).name]
    image = (np.random.default_rng(0).random(shape) * peak).astype(dtype)
    result = Upscaler(network, device="cpu")(image)
    assert result.dtype == dtype
    assert result.shape == (4 * shape[0], 4 * shape[1], *shape[2:])
    expected = from_tensor(network(to_tensor(image)), dtype, grey=len(shape) == 2 or shape[2] == 1)
    assert np.abs(result.reshape(expected.shape).astype(np.float64) - expected).max() <= max(1e-4, 1 if peak > 1 else 0)


@pytest.mark.parametrize("dtype", ["u2", "f4"])
@pytest.mark.parametrize("shape", [(6, 7, 3), (6, 7)])
def test_both_orders_of_bytes_give_the_same(network, dtype, shape):
    peak = 65535 if dtype == "u2" else 1
    little = (np.random.default_rng(0).random(shape) * peak).astype(f"<{dtype}")
    upscaler = Upscaler(network, device="cpu")
    results = [upscaler(image) for image in (little, little.astype(f">{dtype}"))]
    assert [result.dtype for result in results] == [np.dtype(dtype)] * 2
    assert np.array_equal(*results)
    if dtype == "f4":
        little[0, 0] = np.nan
        with pytest.raises(ImageError, match="NaN"):
            upscaler(little.astype(">f4"))


def test_equal_to_the_network_itself(network):
    image = smooth_image(30, 41)
    with torch.inference_mode():
        expected = from_tensor(network(to_tensor(image)), np.float32)
    result = Upscaler(network, device="cpu", precision="fp32")(image.astype(np.float32) / np.float32(255))
    assert np.abs(result - expected).max() < 1e-4


def test_floats_beyond_the_range_are_scaled_for_the_network():
    image = np.linspace(-3, 12, 48, dtype=np.float32).reshape(4, 4, 3)
    result = Upscaler(Nearest(2), device="cpu")(image)
    assert np.abs(result - image.repeat(2, 0).repeat(2, 1)).max() < 1e-4


@pytest.mark.filterwarnings("error")  # before anything is computed with it
@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 2), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros((4,), np.uint8), "shape"),
        (np.zeros((4, 4, 3), np.int64), "int64"),
        (np.full((4, 4, 3), np.nan, np.float32), "NaN"),
        (np.float32([[0, np.inf]]), "infinite"),
        (np.float32([[0, -np.inf]]), "infinite"),
        ([[1, 2]], "numpy"),
    ],
)
def test_what_is_no_image_is_refused(network, image, message):
    with pytest.raises(ImageError, match=message):
        Upscaler(network, device="cpu")(image)


@pytest.mark.parametrize(
    ("scale", "size"), [(4, (40, 60)), (2.5, (25, 38)), (1, (10, 15)), (0.3, (3, 5)), (3.99, (40, 60)), (0.001, (1, 1))]
)
def test_any_scale(scale, size):
    image = np.full((10, 15, 3), 77, np.uint8)
    result = Upscaler(Nearest(4), device="cpu").upscale(image, scale=scale)
    assert result.pixels.shape == (*size, 3)
    assert [p.scale for p in result.passes] == [4]
    assert (result.pixels == 77).all()


def test_exact_sizes():
    upscaler = Upscaler(Nearest(4), device="cpu")
    image = np.zeros((10, 15, 3), np.uint8)
    assert upscaler(image, width=31).shape == (21, 31, 3)
    assert upscaler(image, height=20).shape == (20, 30, 3)
    assert upscaler(image, width=20, height=50).shape == (50, 20, 3)


def test_network_first_then_one_resize():
    image = smooth_image(12, 10)
    upscaler = Upscaler(Nearest(4), device="cpu")
    sixteen = upscaler(image.astype(np.uint16) * 257)
    expected = (resize(sixteen, size=(30, 25)).astype(np.float64) / 257 + 0.5).astype(np.uint8)
    assert np.array_equal(upscaler(image, scale=2.5), expected)


@pytest.mark.parametrize(
    ("scale", "passes"),
    [(1.5, [2]), (2, [2]), (2.5, [3]), (3, [3]), (4, [4]), (4.05, [4]), (6, [2, 3]), (5, [2, 3]), (8, [2, 4]), (16, [4, 4])],
)
def test_networks_are_chosen_for_the_scale(family, scale, passes):
    result = Upscaler(family, device="cpu").upscale(smooth_image(6, 5), scale=scale)
    assert [p.scale for p in result.passes] == passes
    assert [p.model for p in result.passes] == [f"tiny-x{s}" for s in passes]
    assert result.pixels.shape == (int(6 * scale + 0.5), int(5 * scale + 0.5), 3)


def test_a_family_has_scale_4_unless_told_otherwise(family):
    assert Upscaler(family, device="cpu")(smooth_image(3, 3)).shape == (12, 12, 3)
    assert Upscaler(family + "-x2", device="cpu")(smooth_image(3, 3)).shape == (6, 6, 3)


@pytest.mark.parametrize("scale", [0, -1, 16.5, float("nan"), float("inf")])
def test_impossible_scales_are_refused(scale):
    with pytest.raises(OptionError, match="scale"):
        Upscaler(Nearest(4), device="cpu")(np.zeros((4, 4, 3), np.uint8), scale=scale)


def test_target_size_refuses_what_is_too_large():
    with pytest.raises(OptionError, match="at most 16"):
        target_size(10, 10, 4, to_width=161)
    with pytest.raises(OptionError, match="at least 1"):
        target_size(10, 10, 4, to_height=0)
    assert target_size(10, 10, 4, to_width=160) == (160, 160)


def test_images_are_computed_in_float32_on_every_cpu(network, monkeypatch):
    monkeypatch.setattr(drct.engine.devices, "bf16_instructions", lambda: ("amx_bf16",))
    assert drct.engine.resolve_precision("auto", "cpu") == "bf16"
    assert Upscaler(network, device="cpu").precision == "fp32"
    assert Upscaler(network, device="cpu", precision="bf16").precision == "bf16"


def test_wrong_options_and_models(network, tmp_path):
    with pytest.raises(OptionError, match="tile"):
        Upscaler(network, tile="huge")
    with pytest.raises(OptionError, match="alpha"):
        Upscaler(network, alpha="magic")
    with pytest.raises(DeviceError, match="abacus"):
        Upscaler(network, device="abacus")
    with pytest.raises(DeviceError, match="bf61"):
        Upscaler(network, device="cpu", precision="bf61")
    with pytest.raises(ModelNotFoundError):
        Upscaler("drct-lihgt-x9")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match=r"broken\.safetensors"):
        Upscaler(broken)
    with pytest.raises(OptionError, match="too small"):
        Upscaler(Nearest(), device="cpu", tile=8)(np.zeros((100, 100, 3), np.uint8))


def test_grey_networks_take_colours_one_by_one():
    image = smooth_image(9, 9)
    assert np.array_equal(Upscaler(Nearest(2, in_chans=1), device="cpu")(image), image.repeat(2, 0).repeat(2, 1))


def test_ensemble_is_the_mean_over_flips_and_rotations(network):
    x = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        single, mean = network(x), self_ensemble(network)(x)
        turned = self_ensemble(network)(x.flip(-1).transpose(-1, -2))
    assert mean.shape == single.shape
    assert not torch.allclose(mean, single, atol=1e-4)
    assert torch.allclose(turned, mean.flip(-1).transpose(-1, -2), atol=1e-5)
    assert torch.allclose(self_ensemble(Nearest(2))(x), Nearest(2)(x), atol=1e-6)


def test_tiles_follow_the_option():
    image = smooth_image(100, 90)
    for tile, count in (("off", 1), ("auto", 1), (64, 4)):
        result = Upscaler(Nearest(2), device="cpu", tile=tile).upscale(image)
        assert result.passes[0].plan.tiles == count
        assert np.array_equal(result.pixels, image.repeat(2, 0).repeat(2, 1))


def test_one_step_down_when_memory_runs_out():
    upscaler = Upscaler(Nearest(2, limit=128 * 128), device="cpu")
    image = smooth_image(200, 280)
    result = upscaler.upscale(image)
    plan = result.passes[0].plan
    assert max(plan.tile_height, plan.tile_width) <= 128
    assert any("memory ran out with the whole image: went on with tiles of 256" in n for n in result.notices)
    assert any("went on with tiles of 128" in n for n in result.notices)
    assert np.array_equal(result.pixels, image.repeat(2, 0).repeat(2, 1))
    again = upscaler.upscale(image)
    assert again.notices == ()  # what was learnt is kept
    assert again.passes[0].plan == plan


def test_when_memory_runs_out_programs_give_up_what_they_keep(monkeypatch):
    upscaler = Upscaler(Nearest(2, limit=128 * 128), device="cpu")
    released = []
    monkeypatch.setattr(upscaler.program(2), "release", lambda: released.append(dict(upscaler._largest_tile)))
    upscaler.upscale(smooth_image(200, 280))
    assert released == [{2: 256}, {2: 192}, {2: 128}]


def test_out_of_memory_without_auto_is_an_error():
    image = smooth_image(200, 200)
    with pytest.raises(OutOfMemoryError, match="--tile auto"):
        Upscaler(Nearest(2, limit=100), device="cpu", tile="off")(image)
    with pytest.raises(OutOfMemoryError, match="tiles of 64"):
        Upscaler(Nearest(2, limit=100), device="cpu", tile=64)(image)
    with pytest.raises(OutOfMemoryError, match="tiles of 64"):
        Upscaler(Nearest(2, limit=1000), device="cpu")(image)


def test_a_result_that_no_memory_could_hold_is_refused():
    image = np.broadcast_to(np.zeros((1, 1, 3), np.uint8), (200_000, 200_000, 3))
    with pytest.raises(OutOfMemoryError, match="GiB"):
        Upscaler(Nearest(4), device="cpu")(image, scale=4)


def test_tiled_and_whole_are_compared(network):
    mean, largest = Upscaler(network, device="cpu", tile=32, overlap=8).compare_whole(smooth_image(60, 70))
    assert 0 < mean < largest < 0.5
    assert Upscaler(network, device="cpu", tile="off").compare_whole(smooth_image(20, 20)) == (0, 0)


def test_what_is_compared_is_what_the_network_is_given(network):
    upscaler = Upscaler(network, device="cpu", tile=32, overlap=8)
    image = smooth_image(60, 70).astype(np.float32)
    image = (image - image.min()) / (image.max() - image.min())
    expected = upscaler.compare_whole(image)
    assert upscaler.compare_whole(image * 40 - 3) == pytest.approx(expected, rel=0.01)
    hidden = image.copy()
    hidden[20:40, 20:40] = 1 - hidden[20:40, 20:40]
    alpha = np.ones((60, 70), np.float32)
    alpha[20:40, 20:40] = 0
    assert upscaler.compare_whole(Picture(hidden, alpha=alpha)) == upscaler.compare_whole(Picture(image, alpha=alpha))


def test_progress_only_grows_and_ends_at_one(family):
    seen: list[float] = []
    Upscaler(family, device="cpu", tile=32).upscale(smooth_image(40, 40), scale=8, progress=seen.append)
    assert len(seen) > 10
    assert seen == sorted(seen)
    assert seen[-1] == pytest.approx(1)


def picture(alpha: np.ndarray | None = None, **kwargs) -> Picture:
    return Picture(smooth_image(10, 12, **kwargs), alpha)


def test_pictures_keep_what_they_carry():
    source = dataclasses.replace(picture(), icc=b"profile", xmp=b"xmp", resolution=(10.0, 20.0))
    result = Upscaler(Nearest(4), device="cpu").picture(source, width=24, height=30).picture
    assert (result.height, result.width) == (30, 24)
    assert (result.icc, result.xmp) == (b"profile", b"xmp")
    assert result.resolution == (20.0, 60.0)


@pytest.mark.parametrize("mode", ["network", "resize"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_alpha_is_upscaled(mode, dtype):
    alpha = np.zeros((10, 12), np.uint8)
    alpha[3:7, 4:9] = 255
    source = Picture(to_depth(smooth_image(10, 12), np.dtype(dtype).name), to_depth(alpha, np.dtype(dtype).name))
    result = Upscaler(Nearest(4), device="cpu", alpha=mode).picture(source).picture
    assert result.alpha is not None
    assert result.alpha.dtype == dtype
    assert result.alpha.shape == (40, 48)
    assert source.alpha is not None
    assert result.alpha[20, 24] == source.alpha.max() == result.alpha.max()
    assert result.alpha[0, 0] == 0


def test_opaque_alpha_stays_opaque_and_costs_nothing():
    network = Nearest(4)
    upscaler = Upscaler(network, device="cpu")
    result = upscaler.picture(picture(np.full((10, 12), 255, np.uint8)))
    assert (result.picture.alpha == 255).all()
    assert len(result.passes) == 1


def test_colours_bleed_under_transparency():
    pixels = np.zeros((9, 7, 3), np.uint8)
    alpha = np.zeros((9, 7), np.uint8)
    pixels[2:5, 2:5] = (200, 100, 50)
    alpha[2:5, 2:5] = 128
    pixels[8, 0] = (1, 2, 3)  # hidden
    result = bleed(pixels, alpha)
    assert (result == (200, 100, 50)).all()
    assert bleed(pixels, np.zeros((9, 7), np.uint8)) is pixels


def test_bled_colours_are_rounded_half_up():
    pixels = np.array([[1, 2, 90, 90]], np.uint8)[:, :, None]
    alpha = np.array([[255, 255, 0, 0]], np.uint8)
    assert bleed(pixels, alpha).ravel().tolist() == [1, 2, 2, 2]


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_visible_colours_are_untouched_by_the_bleeding(dtype):
    rng = np.random.default_rng(1)
    pixels = (rng.random((13, 20, 3)) * 1000).astype(dtype)
    alpha = (rng.random((13, 20)) > 0.4).astype(dtype)
    result = bleed(pixels, alpha)
    assert result.dtype == dtype
    assert np.array_equal(result[alpha > 0], pixels[alpha > 0])
    assert result.min() >= pixels[alpha > 0].min()
    assert result.max() <= pixels[alpha > 0].max()


def test_files_and_faces(model: Path, tmp_path: Path):
    source, target = tmp_path / "in.png", tmp_path / "out.png"
    image = smooth_image(16, 20)
    write(source, image)
    upscaler = drct.Upscaler(model, device="cpu")
    result = upscaler.file(source, target)
    assert np.array_equal(read(target).pixels, upscaler(image))
    assert result.passes[0].plan.whole
    with pytest.raises(drct.ImageError, match=r"missing\.png"):
        upscaler.file(tmp_path / "missing.png", target)


def test_tiny_networks_differ_by_scale():
    assert {tiny_network(scale).scale for scale in (2, 3, 4)} == {2, 3, 4}


def test_a_scale_does_not_go_with_an_exact_size() -> None:
    upscaler = Upscaler(tiny_network(2))
    with pytest.raises(OptionError, match="scale does not go with width or height"):
        upscaler(np.zeros((8, 8, 3), np.uint8), scale=2, width=10)
    with pytest.raises(OptionError, match="scale does not go with width or height"):
        upscaler.picture(Picture(np.zeros((8, 8, 3), np.uint8)), scale=2, height=10)


def test_a_folder_hides_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "drct-light").mkdir()
    (tmp_path / "mine").mkdir()
    for name in ("drct-light", "drct_light", "DRCT_Light"):
        assert Upscaler(name, device="cpu").scales == (2, 3, 4)
    with pytest.raises(ModelNotFoundError, match="mine is a folder"):
        Upscaler("mine", device="cpu")


@pytest.mark.parametrize("given", ["network", "family"])
def test_a_used_upscaler_is_sent_to_another_process(given: str, request: pytest.FixtureRequest) -> None:
    upscaler = Upscaler(request.getfixturevalue(given), device="cpu")
    image = smooth_image(8, 9)
    expected = upscaler(image)
    sent = pickle.loads(pickle.dumps(upscaler))
    assert np.array_equal(sent(image), expected)
    assert sent.scales == upscaler.scales


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted by /proc")
def test_sending_an_upscaler_opens_no_files(network: SuperResolutionNetwork) -> None:
    """Torch has multiprocessing share tensors by open files, one for each."""
    upscaler = Upscaler(network, device="cpu")
    before = len(os.listdir("/proc/self/fd"))
    data = ForkingPickler.dumps(upscaler)
    assert len(os.listdir("/proc/self/fd")) == before
    assert np.array_equal(pickle.loads(data)(smooth_image(8, 9)), upscaler(smooth_image(8, 9)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"width": 2.5}, "width is 2.5, but must be a whole number"),
        ({"width": "9"}, "width is '9', but"),
        ({"height": 0}, "height is 0, but"),
        ({"scale": "2"}, "scale is '2', but must be a number"),
    ],
)
def test_sizes_that_are_no_sizes(network: SuperResolutionNetwork, given: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Upscaler(network, device="cpu")(smooth_image(8, 8), **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"overlap": "3"}, "overlap is '3'"),
        ({"overlap": None}, "overlap is None"),
        ({"tile": 64.5}, "tile is 64.5"),
        ({"tile": np.array([64, 64])}, "tile is array"),
        ({"alpha": np.array(["network", "resize"])}, "alpha is array"),
        ({"ensemble": "no"}, "ensemble is 'no', but must be True or False"),
        ({"model": None}, "model is None"),
        ({"model": torch.nn.Linear(2, 2)}, "model is Linear"),
    ],
)
def test_values_of_other_types(network: SuperResolutionNetwork, given: dict, message: str) -> None:
    model = given.pop("model", network) if "model" in given else network
    with pytest.raises(OptionError, match=message):
        Upscaler(model, **{"device": "cpu"} | given)
    with pytest.raises(DeviceError, match="device 'None' is unknown"):
        Upscaler(network, device=None)


def test_whole_numbers_of_numpy_are_whole_numbers(network: SuperResolutionNetwork) -> None:
    image = smooth_image(8, 9)
    upscaler = Upscaler(network, device="cpu", tile=np.int64(64), overlap=np.int32(8))
    assert upscaler(image, width=np.int64(18)).shape == (16, 18, 3)
    assert (type(upscaler.tile), type(upscaler.overlap)) == (int, int)
    assert Upscaler(network, device="cpu", ensemble=np.True_).ensemble is True


@pytest.mark.parametrize("kind", [np.int16, np.uint16])
def test_narrow_numbers_of_numpy_do_not_overflow(kind: type) -> None:
    assert target_size(1080, 1920, 4, kind(3840)) == target_size(1080, 1920, 4, 3840) == (2160, 3840)
    assert target_size(1080, 1920, 4, to_height=kind(2160)) == (2160, 3840)
    assert target_size(kind(1080), kind(1920), kind(2)) == (2160, 3840)
    assert target_size(kind(1080), kind(1920), 2, kind(3840)) == (2160, 3840)
    assert Upscaler(Nearest(4), device="cpu").scales_for(kind(300), kind(400), height=kind(1200)) == (4,)


def test_narrow_scales_of_numpy_do_not_round() -> None:
    scale = np.float16(2.3)
    assert target_size(4001, 3001, scale) == target_size(4001, 3001, float(scale))
    assert target_size(200, 300, np.uint8(2)) == (400, 600)


def test_a_network_without_values_is_refused() -> None:
    with torch.device("meta"):
        network = create_network("drct", scale=2, embed_dim=12, depths=[1], num_heads=[2], window_size=4, gc=4)
    with pytest.raises(OptionError, match="made on the meta device, and no weights were loaded"):
        Upscaler(network, device="cpu")


@pytest.mark.parametrize("tile", ["off", 16])
def test_what_a_caller_has_set_stays_and_changes_nothing(model: Path, tile: int | str) -> None:
    """Default types and devices, and random numbers; the network is loaded inside the call."""
    image = smooth_image(30, 41)
    expected = Upscaler(model, device="cpu", tile=tile)(image)
    torch.manual_seed(5)
    number = torch.rand(1)
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")  # stands for a GPU
        torch.manual_seed(5)
        assert np.array_equal(Upscaler(model, device="cpu", tile=tile)(image), expected)
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_default_device().type == "meta"
    finally:
        torch.set_default_device("cpu")
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.rand(1), number)


def test_networks_with_position_embeddings_enlarge_their_one_size():
    sizes = {"embed_dim": 16, "gc": 8, "depths": [1], "num_heads": [2], "window_size": 8}
    upscaler = Upscaler(create_network("drct", scale=2, ape=True, img_size=32, **sizes), device="cpu")
    assert upscaler(np.zeros((32, 32, 3), np.uint8)).shape == (64, 64, 3)
    with pytest.raises(OptionError, match="with ape the input must be 32 x 32"):
        upscaler(np.zeros((40, 32, 3), np.uint8))


@pytest.mark.parametrize(
    "alpha", [np.zeros((5, 5), np.uint8), np.zeros((10, 12, 1), np.uint8), [[0] * 12] * 10, np.full((10, 12), 0.5, np.float32)]
)
def test_transparency_that_does_not_fit_is_refused(network, alpha):
    with pytest.raises(ImageError, match=r"the picture's alpha is .*uint8 of shape \(10, 12\) is needed"):
        Upscaler(network, device="cpu").picture(picture(alpha))


def test_questions_about_networks_that_are_not_there():
    upscaler = Upscaler(Nearest(2), device="cpu")
    for ask in (upscaler.program, upscaler.name, upscaler.digest, upscaler.tile_limit):
        for scale in (3, "2x", [2], None):
            with pytest.raises(OptionError, match=r"scale is .*, but there are networks for 2 times here"):
                ask(scale)
    for rows, columns in ((0, 10), (10, -1), (1.5, 2), ("a", 1)):
        with pytest.raises(OptionError, match="whole numbers from 1 on"):
            upscaler.scales_for(rows, columns)
    with pytest.raises(OptionError, match="scale is 25, but must be above 0"):
        upscaler(smooth_image(9, 9), scale=Fraction(25))


def test_floats_too_far_apart_for_float32_say_so(recwarn):
    image = (np.array([-1, 0, 1], np.float32) * 3e38).repeat(9).reshape(3, 3, 3)
    with pytest.raises(ImageError, match=r"the pixels reach from -3e\+38 to 3e\+38, which is too far for float32"):
        Upscaler(Nearest(2), device="cpu")(image)
    assert not recwarn.list

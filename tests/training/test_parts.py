"""Options, schedules, losses, averages."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from drct.checking import read_option_file
from drct.errors import OptionError
from drct.imaging import write
from drct.networks import create_network
from drct.training import steps
from drct.training.discriminator import UNetDiscriminatorSN
from drct.training.ema import EMA
from drct.training.linear_start import area_weights, interpolation_kernels, linear_start, resample_tail
from drct.training.loop import fingerprint, repeatable
from drct.training.losses import LOSSES
from drct.training.options import Metric, ValSet, parse_options, read_options
from drct.training.schedule import Schedule
from drct.training.steps import Learner, build_loss
from drct.training.validation import BEST_PSNR, ValidationSet, validate

Make = Callable[..., dict[str, Any]]

MINIMAL: dict[str, Any] = {
    "name": "x",
    "scale": 4,
    "datasets": {"train": {"type": "PairedImageDataset", "dataroot_gt": "gt", "dataroot_lq": "lq"}},
    "network_g": {"type": "DRCT"},
    "train": {"ema_decay": 0.999, "optim_g": {"type": "Adam", "lr": "2e-4", "betas": [0.9, 0.99]}},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    keys = path.split(".")
    data: dict[str, Any] = {**MINIMAL}
    place = data
    for key in keys[:-1]:
        place[key] = dict(place.get(key, {}))
        place = place[key]
    place[keys[-1]] = value
    return data


def test_numbers_written_as_text_are_numbers() -> None:
    options, warnings = parse_options(MINIMAL)
    assert options.train.optim_g.lr == 2e-4
    assert warnings == []


def test_dead_keys_warn() -> None:
    _, warnings = parse_options(changed("dist_params", {"backend": "nccl", "port": 29500}), "file.yml")
    assert len(warnings) == 1
    assert warnings[0].startswith("file.yml: 'dist_params' has no effect")


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        ("train", {"ema_decay": 0.9, "net_d_iters": 2}, "train.net_d_iters"),
        ("train", {"ema_decay": 0.9, "scheduler": {"type": "MultiStepLR", "eta_min": 0.5}}, "train.scheduler.eta_min"),
        ("train", {"ema_decay": 0.9, "scheduler": {"type": "CosineAnnealingLR", "milestones": [1]}}, "train.scheduler.milestones"),
        ("datasets.train", {"dataroot_gt": "gt", "crop_size": 300}, "datasets.train.crop_size"),
    ],
)
def test_options_that_have_no_effect_here_warn(path: str, value: Any, key: str) -> None:
    _, warnings = parse_options(changed(path, value), "file.yml")
    assert len(warnings) == 1
    assert warnings[0].startswith(f"file.yml: '{key}' has no effect (")


def test_dead_options_of_a_network_warn() -> None:
    _, warnings = parse_options(changed("network_g", {"type": "DRCT", "overlap_ratio": 0.5, "gc": 32}), "file.yml")
    assert warnings == ["file.yml: 'network_g.overlap_ratio' has no effect (the network never read it)"]
    assert parse_options(changed("network_g", {"type": "HAT", "overlap_ratio": 0.5}))[1] == []


def test_keys_without_effect_warn_where_they_ask_for_something() -> None:
    assert parse_options(changed("val", {"save_img": False, "suffix": None}))[1] == []
    _, warnings = parse_options(changed("val", {"save_img": True, "suffix": "x"}))
    assert [re.search("'.*?'", line)[0] for line in warnings] == ["'val.save_img'", "'val.suffix'"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("train.totl_iter", 10, "train.totl_iter.*did you mean 'total_iter'"),
        ("datasets.train.gt_sise", 256, "gt_sise.*did you mean 'gt_size'"),
        ("train.lr", 1e-4, r"'train\.lr' stands in the wrong place \(did you mean train\.optim_g\.lr or train\.optim_d\.lr\?\)"),
        ("train.use_hflip", False, r"wrong place \(did you mean datasets\.train\.use_hflip\?\)"),
        ("train.type", "L1Loss", r"key 'train\.type' stands in the wrong place$"),
        ("datasets.train.gt_size", 255, "gt_size 255 is not a multiple of scale 4"),
        ("train.optim_g", {"type": "Adan"}, "type is 'Adan': .*'Adam'"),
        ("scale", 0, "scale.*greater than 0"),
        ("datasets.train.dataroot_gt", None, "dataroot_gt"),
        ("val.metrics", {"psnr": {"type": "calculate_niqe"}}, "calculate_psnr"),
        ("train.optim_g.betas", [0.9, 1.5], r"betas\.1 is 1\.5: .*less than 1"),
        ("network_g.in_chans", 1, "network_g.in_chans is 1, .*must be 3"),
        ("manual_seed", 10_000_000_000_000, "manual_seed is 10000000000000: .*less than 4294967296"),
        ("path.resample_upsampler_g", True, "resample_upsampler_g needs pretrain_network_g"),
        ("datasets.train.filename_tmpl", "{}x{scale}", r"filename_tmpl is '\{\}x\{scale\}': must hold \{\} once"),
        ("datasets.train.filename_tmpl", "lq", "must hold {} once"),
        ("datasets.train.tone_share", 1.5, "tone_share is 1.5: .*less than or equal to 1"),
        ("datasets.train", {"dataroot_gt": "gt", "dataroot_lq": "lq", "tone_share": 0.1}, "tone_share and dataroot_lq exclude"),
        ("datasets.train.gt_sise", 256, r"key 'datasets\.train\.gt_sise' is unknown"),
        ("datasets.train", None, "datasets.train is empty"),
        ("datasets.val_1", {"dataroot_gt": "gt", "max_images": 0}, r"datasets\.val_1\.max_images is 0"),
        ("train.scheduler", {"gamma": -1}, "gamma is -1"),
        (
            "datasets",
            {"train": {"dataroot_gt": "gt"}, "val_1": {"dataroot_gt": "a"}, "val_2": {"dataroot_gt": "b"}},
            "val_1 and val_2",
        ),
        ("datasets.train", {"dataroot_gt": "gt", "clean_share": 0.1}, "clean_share is for a RealESRGANDataset"),
        ("name", "", "name is '': must be the name of a folder"),
        ("name", ".", "must be the name of a folder"),
        ("name", "../evil", "must be the name of a folder"),
        ("train.optim_g.lr", ".inf", "lr is '.inf'"),
        ("train.optim_g.lr", float("inf"), "lr is inf: .*finite"),
        ("train.optim_g.lr", True, "lr is True: must be a number"),
        ("train.pixel_opt", None, "pixel_opt is empty, and there is no other loss"),
        ("gt_size", 128, "'gt_size' at the top needs datasets.train.type RealESRGANDataset"),
        ("network_d", {"num_in_ch": 1}, r"network_d\.num_in_ch is 1"),
    ],
)
def test_mistakes_are_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message) as caught:
        parse_options(changed(path, value), "file.yml")
    assert str(caught.value).startswith("file.yml: ")
    assert "\n" not in str(caught.value)


def test_a_loss_on_pixels_beside_others_may_be_left_out_as_in_basicsr() -> None:
    train = MINIMAL["train"] | {"perceptual_opt": {}}
    options, warnings = parse_options(changed("train", train | {"pixel_opt": None}))
    assert options.train.pixel_opt is None
    assert not any("pixel_opt" in line for line in warnings)
    _, warnings = parse_options(changed("train", train))
    assert any("'train.pixel_opt' is not given: it is an L1Loss of weight 1, where BasicSR takes none" in line for line in warnings)
    with pytest.raises(OptionError, match="teacher_opt needs pixel_opt"):
        parse_options(changed("train", train | {"pixel_opt": None, "teacher_opt": {"network": "drct-light-x4"}}))


def test_the_eps_of_charbonnier_is_an_option_of_it_alone() -> None:
    gt = torch.zeros(1, 3, 8, 8)
    options, _ = parse_options(changed("train.pixel_opt", {"type": "CharbonnierLoss", "eps": 1e-6}))
    assert options.train.pixel_opt is not None
    assert build_loss(options.train.pixel_opt)(gt, gt).item() == pytest.approx(1e-3)
    _, warnings = parse_options(changed("train.pixel_opt", {"eps": 1e-6}))
    assert any("'train.pixel_opt.eps' has no effect" in line for line in warnings)


@pytest.mark.parametrize("key", ["meta_info", "meta_info_file"])
def test_the_list_of_images_may_be_called_as_in_the_files_of_real_esrgan(key: str) -> None:
    train_set = {"type": "RealESRGANDataset", "dataroot_gt": "gt", key: "list.txt"}
    options, warnings = parse_options(changed("datasets.train", train_set))
    assert options.train_set.meta_info_file == "list.txt"
    assert not any("meta_info" in warning for warning in warnings)


def test_options_that_came_later_leave_earlier_checkpoints_valid() -> None:
    earlier = "3896a078eaf2cb2566088464c435c456c3e3b404dcc51999ff2d5af86d2153f4"
    assert fingerprint(parse_options(MINIMAL)[0], 4) == earlier
    train_set = {"dataroot_gt": "gt"}
    made = [{}, {"tone_share": 0.1}, {"fault_share": 0.1}, {"leaves_share": 0.1}]
    prints = {fingerprint(parse_options(changed("datasets.train", train_set | more))[0]) for more in made}
    assert len(prints) == len(made)


@pytest.mark.parametrize("model_type", ["HATModel", "SwinIRModel", "SRModel"])
def test_published_files_of_other_networks_call_training_on_clean_pairs_by_other_names(model_type: str) -> None:
    assert parse_options(changed("model_type", model_type))[0].model_type == model_type
    with pytest.raises(OptionError, match=r"model_type RealHATMSEModel does not go with .*PairedImageDataset"):
        parse_options(changed("model_type", "RealHATMSEModel"))


def test_files_that_are_no_yaml(tmp_path: Path) -> None:
    for content in ("a: [1", "name: 2024-13-45", "[" * 5000):
        (tmp_path / "bad.yml").write_text(content)
        with pytest.raises(OptionError, match=r"bad\.yml is not valid YAML"):
            read_options(tmp_path / "bad.yml")
    with pytest.raises(OptionError, match="cannot be read"):
        read_options(tmp_path / "none.yml")


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "twice.yml"
    file.write_text("name: x\nscale: 4\nlogger: {print_freq: 5}\nscale: 2\n")
    with pytest.raises(OptionError, match=r"twice\.yml: 'scale' stands in line 4 and in line 2"):
        read_options(file)
    file.write_text("base: &base {a: 1}\nmore: &more {b: 1}\nx: {<<: *base, <<: *more, a: 2}\ny: {a: 3}\n")
    assert read_option_file(file)["x"] == {"a": 2, "b": 1}
    # merged where it is not yet built, since that stands less deep
    file.write_text("a: &a {x: 1, y: 1}\nt:\n  d:\n    e: &b {<<: *a, x: 2}\nc: {<<: *b}\n")
    assert read_option_file(file) == {"a": {"x": 1, "y": 1}, "t": {"d": {"e": {"x": 2, "y": 1}}}, "c": {"x": 2, "y": 1}}
    file.write_text("a: &a {x: 1, x: 2}\nc: {<<: *a}\n")
    with pytest.raises(OptionError, match="'x' stands in line 1 and in line 1"):
        read_option_file(file)


def test_option_files_are_utf8_wherever_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "o.yml").write_text("name: Обучение\n", encoding="utf-8")
    program = "import sys; from drct.checking import *; print(ascii(read_option_file(Path(sys.argv[1]))['name']))"
    plain = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    call = [sys.executable, "-c", program, str(tmp_path / "o.yml")]
    out = subprocess.run(call, env=plain, capture_output=True, text=True, check=True, timeout=300).stdout
    assert out.strip() == ascii("Обучение")


def test_schedules() -> None:
    steps = Schedule("MultiStepLR", 100, 0, (50, 80), 0.5)
    assert [steps(i) for i in (0, 49, 50, 79, 80)] == [1, 1, 0.5, 0.5, 0.25]
    cosine = Schedule("CosineAnnealingLR", 110, 10, eta_min=0.1)
    assert cosine(0) == pytest.approx(0.1)
    assert cosine(10) == pytest.approx(1.0)
    assert cosine(60) == pytest.approx(0.55)
    assert cosine(110) == pytest.approx(0.1)


def test_losses_by_hand() -> None:
    sr, gt = torch.tensor([[[[0.0, 1.0], [0.5, 0.5]]]]), torch.tensor([[[[0.5, 1.0], [0.5, 0.0]]]])
    assert LOSSES["L1Loss"](2.0)(sr, gt).item() == pytest.approx(0.5)
    assert LOSSES["MSELoss"](1.0)(sr, gt).item() == pytest.approx(0.125)
    assert LOSSES["CharbonnierLoss"](1.0)(sr, gt).item() == pytest.approx(0.25, abs=1e-5)
    assert LOSSES["CharbonnierLoss"](1.0)(gt, gt).item() == pytest.approx(1e-6, rel=1e-4)  # the root of eps
    # the orthonormal spectrum of the difference [[-.5, 0], [0, .5]] is [[0, -.5], [-.5, 0]], real
    assert LOSSES["FrequencyLoss"](1.0)(sr, gt).item() == pytest.approx(0.125, abs=1e-6)


def test_ema_follows_and_swaps() -> None:
    layer = torch.nn.Linear(2, 2)
    ema = EMA(layer, 0.5, ramp=False)
    start = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.add_(1.0)
    ema.update(layer)
    assert torch.allclose(ema.shadow["weight"], start + 0.5)
    ema.swap(layer)
    assert torch.allclose(layer.weight, start + 0.5)
    ema.swap(layer)
    assert torch.allclose(layer.weight, start + 1.0)


def test_ema_forgets_the_start_in_its_first_updates() -> None:
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(layer.weight)
    ramped, capped = EMA(layer, 0.999), EMA(layer, 0.1)
    torch.nn.init.ones_(layer.weight)
    for decays in (2 / 11, 2 / 11 * 3 / 12):
        for ema in (ramped, capped):
            ema.update(layer)
        assert ramped.shadow["weight"].item() == pytest.approx(1 - decays)
    assert capped.shadow["weight"].item() == pytest.approx(1 - 0.1**2)


def test_a_large_gradient_is_clipped_and_a_small_one_kept() -> None:
    layer = torch.nn.Linear(3, 4)
    learner = Learner(layer, parse_options(MINIMAL)[0].train.optim_g, grad_clip=1.0)
    for value, expected in ((2.0, 0.25), (0.125, 0.125)):  # sixteen of them: norms 8 and 0.5
        for parameter in layer.parameters():
            parameter.grad = torch.full_like(parameter, value)
        assert learner.clip()
        for parameter in layer.parameters():
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, torch.tensor(expected))


def test_validation_counts_what_a_saved_image_would_show(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.random.default_rng(0).integers(1, 255, (12, 16, 3), np.uint8))
    same = ValidationSet(ValSet(dataroot_gt=str(tmp_path), dataroot_lq=str(tmp_path)), 1)
    metrics = {"psnr": Metric(type="calculate_psnr", crop_border=0)}

    class Shift(torch.nn.Module):
        def __init__(self, levels: float) -> None:
            super().__init__()
            self.levels = levels

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.levels / 255

    assert validate(Shift(0.3), same, metrics, torch.device("cpu")) == {"psnr": BEST_PSNR}
    # one level in all channels is 219 / 255 of one in luma
    expected = 20 * np.log10(255 * 255 / 219)
    assert validate(Shift(0.7), same, metrics, torch.device("cpu"))["psnr"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_linear_start_interpolates(scale: int) -> None:
    torch.manual_seed(0)
    network = create_network("drct_light", scale=scale, embed_dim=16, depths=[1], num_heads=[1], window_size=8).eval()
    linear_start(network)
    y, x = torch.meshgrid(torch.linspace(0, 1, 24), torch.linspace(0, 1, 24), indexing="ij")
    with torch.no_grad():
        out = network(torch.stack([x, y, x * y])[None])[0]
    t = ((torch.arange(24 * scale) + 0.5) / scale - 0.5) / 23  # where output pixels lie on the input's axes
    inner = slice(3 * scale, -3 * scale)
    expected = torch.stack([t.expand(24 * scale, -1), t[:, None].expand(-1, 24 * scale), t[:, None] * t])
    assert (out - expected)[:, inner, inner].abs().max() < 1e-5
    assert interpolation_kernels(scale).sum((-1, -2)).sub(1).abs().max() < 1e-6


def test_linear_start_knows_the_ways_out_of_the_groups() -> None:
    sizes: dict[str, Any] = {"scale": 2, "depths": [1], "num_heads": [2], "window_size": 8, "upsampler": "pixelshuffledirect"}
    network = create_network("swinir", embed_dim=24, resi_connection="3conv", **sizes)
    linear_start(network)
    image = torch.linspace(0, 1, 16).expand(1, 3, 16, 16)  # linear: any interpolation gives the same inside
    wanted = F.interpolate(image, scale_factor=2, mode="bilinear")
    with torch.no_grad():
        assert (network(image) - wanted)[..., 4:-4, 4:-4].abs().max() < 1e-5
    with pytest.raises(OptionError, match="resi_connection 'identity' has none"):
        linear_start(create_network("drct", embed_dim=24, gc=8, resi_connection="identity", **sizes))


def test_linear_start_needs_its_tail() -> None:
    with pytest.raises(OptionError, match="pixelshuffledirect"):
        linear_start(create_network("drct", scale=2, embed_dim=24, gc=8, depths=[1], num_heads=[2], window_size=8))


@pytest.mark.parametrize("scale", [2, 3])
def test_a_resampled_tail_gives_the_area_average(scale: int) -> None:
    torch.manual_seed(0)
    small: dict[str, Any] = {"embed_dim": 16, "depths": [1], "num_heads": [1], "window_size": 8}
    x4, other = (create_network("drct_light", scale=s, **small).eval() for s in (4, scale))
    state = x4.state_dict()
    other.load_state_dict({k: v for k, v in state.items() if not k.startswith("upsample")}, strict=False)
    resample_tail(other, state["upsample.0.weight"], state["upsample.0.bias"], 4)
    image = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        large, out = x4(image), other(image)
    weights = torch.block_diag(*[area_weights(4, scale)] * 16)
    assert (out - weights @ large @ weights.T).abs().max() < 1e-5


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_gradients_of_a_run_on_a_gpu_add_up_in_one_order(device: str) -> None:
    """Those of convolutions, and of torch's attention that saves memory."""
    saves_memory = torch.backends.cuda.mem_efficient_sdp_enabled
    before = saves_memory()
    with repeatable(torch.device(device)):
        assert torch.backends.cudnn.deterministic == (device == "cuda")
        assert saves_memory() == (before and device == "cpu")
    assert not torch.backends.cudnn.deterministic
    assert saves_memory() == before


def test_only_buffers_that_change_are_shared_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    shared: list[bool] = []

    def wrap(model: torch.nn.Module, devices: object, **options: bool) -> torch.nn.Module:
        shared.append(options.get(steps.SEND_BUFFERS, True))
        return model

    monkeypatch.setattr(steps, "DistributedDataParallel", wrap)
    options, _ = parse_options(MINIMAL)
    networks = [create_network("drct_light", scale=2), create_network("hat_s", scale=2), UNetDiscriminatorSN(num_feat=4)]
    for network in networks:
        assert dict(network.named_buffers())
        Learner(network, options.train.optim_g, world_size=2)
    assert shared == [False, False, True]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"train.linear_start": True, "path": {"pretrain_network_g": "drct-light-x2"}}, "'train.linear_start' has no effect"),
        ({"path": {"pretrain_network_d": "nowhere.pth"}}, "'path.pretrain_network_d' has no effect (there is no network_d)"),
        ({"datasets.train.filename_tmpl": "{}x2"}, "'datasets.train.filename_tmpl' has no effect (there is no dataroot_lq)"),
        ({"datasets.val_1.seed": 3}, "'datasets.val_1.seed' has no effect (nothing is degraded)"),
    ],
)
def test_keys_without_effect_are_told(option_dict: Make, changes: dict[str, Any], line: str) -> None:
    data = option_dict()
    assert parse_options(data)[1] == []
    for place, value in changes.items():
        *groups, key = place.split(".")
        group = data
        for name in groups:
            group = group[name]
        group[key] = value
    warnings = parse_options(data)[1]
    assert len(warnings) == 1
    assert line in warnings[0]


def test_lr_files_do_not_go_with_enlarged_images(option_dict: Make) -> None:
    data = option_dict()
    data["datasets"]["train"] |= {"type": "ImageNetPairedDataset", "dataroot_lq": "lq"}
    with pytest.raises(OptionError, match="ImageNetPairedDataset makes its LR images"):
        parse_options(data)


def test_names_of_degradation_options_are_words(option_dict: Make) -> None:
    data = option_dict()
    data["datasets"]["val_1"]["degradation"] = {1: 2}
    with pytest.raises(OptionError, match="names of degradation options are words"):
        parse_options(data)


@pytest.mark.parametrize("group", ["path", "val", "logger", "train", "datasets"])
def test_groups_left_empty_are_told(option_dict: Make, group: str) -> None:
    with pytest.raises(OptionError, match=f"^options: {group} is empty: leave it out, or fill it$"):
        parse_options({**option_dict(), group: None})


def test_defaults_other_than_basicsr_has_them_are_told(option_dict: Make, gan_dict: Make) -> None:
    def told(data: dict[str, Any]) -> list[str]:
        return [line for line in parse_options(data)[1] if "is not given" in line]

    data = option_dict(scheduler={"type": "MultiStepLR", "milestones": [5]})
    data["val"]["metrics"] = {name: {"type": f"calculate_{name}"} for name in ("psnr", "ssim")}
    assert told(data) == [
        "options: 'train.scheduler.gamma' is not given: it is 0.5, where BasicSR takes 0.1",
        "options: 'val.metrics.psnr.test_y_channel' is not given: it is measured on Y, where BasicSR takes RGB",
        "options: 'val.metrics.ssim.test_y_channel' is not given: it is measured on Y, where BasicSR takes RGB",
    ]
    data["train"]["scheduler"]["gamma"] = 0.5
    data["val"]["metrics"] = {"psnr": {"type": "calculate_psnr", "test_y_channel": True}, "lpips": {"type": "calculate_lpips"}}
    assert told(data) == []
    data = gan_dict(optim_g={"type": "AdamW"}, optim_d={"type": "Adam"})
    del data["train"]["ema_decay"]
    assert told(data) == [
        "options: 'train.ema_decay' is not given: it is 0.999, where BasicSR takes 0",
        "options: 'train.optim_g.betas' is not given: it is [0.9, 0.99], where BasicSR takes [0.9, 0.999]",
        "options: 'train.optim_g.weight_decay' is not given: it is 0, where BasicSR takes 0.01",
        "options: 'train.optim_d.betas' is not given: it is [0.9, 0.99], where BasicSR takes [0.9, 0.999]",
    ]
    assert told(option_dict(optim_g={"type": "Muon"}, optim_d={"type": "AdamW"})) == []  # there is no network_d
    data = gan_dict(gan_opt={"gan_type": "vanilla"})
    data["val"]["metrics"] = {}
    assert told(data) == ["options: 'train.gan_opt.loss_weight' is not given: it is 0.1, where BasicSR takes 1"]

"""Discriminator, adversarial and perceptual losses: their values, and what they are told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from drct.errors import CheckpointError, OptionError
from drct.training.adversarial import GAN_TYPES, GANLoss
from drct.training.discriminator import UNetDiscriminatorSN, doubled_along, settle
from drct.training.losses import GridLoss
from drct.training.perceptual import PUBLISHED_WEIGHTS, PerceptualLoss, gram, layer_positions, load_features


def test_the_discriminator_is_the_published_one() -> None:
    network: nn.Module = UNetDiscriminatorSN()
    assert sum(p.numel() for p in network.parameters()) == 4_376_897
    names = {f"conv{i}.{part}" for i in range(1, 9) for part in ("weight_orig", "weight_u", "weight_v")}
    assert set(network.state_dict()) == names | {"conv0.weight", "conv0.bias", "conv9.weight", "conv9.bias"}
    small = UNetDiscriminatorSN(3, 8)
    logits = small(torch.rand(2, 3, 24, 40))
    assert logits.shape == (2, 1, 24, 40)


def test_doubling_of_its_own_equals_that_of_torch() -> None:
    for size in ((5, 3), (1, 2)):
        x = torch.randn(2, 3, *size)
        expected = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        assert (doubled_along(doubled_along(x, 2), 3) - expected).abs().max() < 1e-6


def test_skips_carry_the_finest_details() -> None:
    torch.manual_seed(0)
    network, x = UNetDiscriminatorSN(3, 8).eval(), torch.rand(1, 3, 16, 16)
    with_skips = network(x)
    network.skip_connection = False
    assert not torch.allclose(with_skips, network(x))
    network.conv1.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    assert torch.equal(network(x), network(x.flip(-1))), "without skips all must pass conv1"
    network.skip_connection = True
    assert not torch.allclose(network(x), network(x.flip(-1)))


def test_settled_spectral_norms_are_one() -> None:
    torch.manual_seed(0)
    network = UNetDiscriminatorSN(3, 8)
    settle(network, 60)
    network.eval()
    network(torch.zeros(1, 3, 8, 8))
    for name in ("conv1", "conv4", "conv8"):
        weight = network.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        assert torch.linalg.matrix_norm(weight.detach().flatten(1), 2).item() == pytest.approx(1.0, abs=0.05)
    assert network.training is False


def test_gan_losses_by_hand() -> None:
    real, fake = torch.tensor([[[[2.0, 0.0]]]]), torch.tensor([[[[-1.0, 1.0]]]])

    def softplus(*values: float) -> float:
        return sum(math.log1p(math.exp(v)) for v in values) / len(values)

    vanilla = GANLoss("vanilla", 0.1)
    assert vanilla.generator(fake).item() == pytest.approx(0.1 * softplus(1, -1), rel=1e-5)
    assert [x.item() for x in vanilla.discriminator(real, fake)] == pytest.approx([softplus(-2, 0), softplus(-1, 1)], rel=1e-5)
    lsgan = GANLoss("lsgan", 2.0, 1.0, 0.5)
    assert lsgan.generator(fake).item() == pytest.approx(2 * (4 + 0) / 2)
    assert [x.item() for x in lsgan.discriminator(real, fake)] == pytest.approx([1.0, (2.25 + 0.25) / 2])
    hinge = GANLoss("hinge")
    assert hinge.generator(fake + 1).item() == pytest.approx(-1.0)
    assert [x.item() for x in hinge.discriminator(real, fake)] == pytest.approx([0.5, 1.0])
    relativistic = GANLoss("relativistic")
    # the means are 1 and 0: real less fake is (2, 0), fake less real (-2, 0)
    assert [x.item() for x in relativistic.discriminator(real, fake)] == pytest.approx([softplus(-2, 0) / 2] * 2, rel=1e-5)
    assert relativistic.generator(fake, real).item() == pytest.approx(softplus(2, 0), rel=1e-5)


@pytest.mark.parametrize("gan_type", GAN_TYPES)
def test_losses_push_apart_and_together(gan_type: str) -> None:
    loss = GANLoss(gan_type)
    real, fake = (torch.zeros(1, 1, 4, 4, requires_grad=True) for _ in range(2))
    on_real, on_fake = loss.discriminator(real, fake)
    (on_real + on_fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert (real.grad < 0).all()
    assert (fake.grad >= 0).all()
    fake.grad = None
    loss.generator(fake, real.detach()).backward()
    assert fake.grad is not None
    assert (fake.grad < 0).all()
    with pytest.raises(ValueError, match="wgan"):
        GANLoss("wgan")


def test_the_grid_loss_sees_checkerboards_only() -> None:
    torch.manual_seed(0)
    loss, gt = GridLoss(2.0, scale=4), torch.rand(2, 3, 64, 96)
    pattern = torch.randn(1, 1, 4, 4)
    pattern = pattern - pattern.mean()
    board = pattern.repeat(1, 1, 16, 24)
    assert loss(gt + 0.01 * board, gt).item() == pytest.approx(0.02 * pattern.abs().mean().item(), rel=1e-4)
    assert loss(gt + 0.1, gt).item() < 1e-6
    texture = torch.randn(2, 3, 64, 96)
    assert loss(gt + 0.01 * texture, gt).item() < 0.2 * 0.02 * texture.abs().mean().item()
    assert loss(gt[..., :16, :16], gt[..., :16, :16] - 0.01 * board[..., :16, :16]).item() > 0


def features(vgg_type: str, last: int) -> dict[str, Tensor]:
    torch.manual_seed(1)
    found: dict[str, Tensor] = {}
    inputs = 3
    for layer, position in layer_positions(vgg_type).items():
        outputs = (64, 128, 256, 512, 512)[int(layer[4]) - 1]
        if position <= last:
            found[f"features.{position}.weight"] = torch.randn(outputs, inputs, 3, 3) / (3 * inputs**0.5)
            found[f"features.{position}.bias"] = torch.randn(outputs) / 10
        inputs = outputs
    return found


def test_layer_names_and_positions() -> None:
    assert layer_positions("vgg16")["conv5_3"] == 28
    assert layer_positions("vgg19") == {
        "conv1_1": 0,
        "conv1_2": 2,
        "conv2_1": 5,
        "conv2_2": 7,
        "conv3_1": 10,
        "conv3_2": 12,
        "conv3_3": 14,
        "conv3_4": 16,
        "conv4_1": 19,
        "conv4_2": 21,
        "conv4_3": 23,
        "conv4_4": 25,
        "conv5_1": 28,
        "conv5_2": 30,
        "conv5_3": 32,
        "conv5_4": 34,
    }
    assert all(set(weights) <= set(layer_positions(kind)) for kind, weights in PUBLISHED_WEIGHTS.items())


def test_perceptual_loss_walks_like_the_classifier() -> None:
    weights = features("vgg16", 5)
    plain = nn.Sequential(
        nn.Conv2d(3, 64, 3, 1, 1), nn.ReLU(), nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2, 2), nn.Conv2d(64, 128, 3, 1, 1)
    )
    plain.load_state_dict({name.removeprefix("features."): tensor for name, tensor in weights.items()})
    sr, gt = torch.rand(2, 3, 16, 16, requires_grad=True), torch.rand(2, 3, 16, 16)
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)

    def taps(x: Tensor) -> tuple[Tensor, Tensor]:
        x = (x - mean) / std
        return plain[:3](x), plain[:6](x)

    (a1, a2), (b1, b2) = taps(sr), taps(gt)
    loss = PerceptualLoss(weights, {"conv1_2": 0.1, "conv2_1": 1.0}, "vgg16", perceptual_weight=2.0, style_weight=3.0)
    terms = loss(sr, gt)
    expected = 2 * (0.1 * F.l1_loss(a1, b1) + F.l1_loss(a2, b2))
    assert terms["percep"].item() == pytest.approx(expected.item(), rel=1e-5)
    style = 3 * (0.1 * F.l1_loss(gram(a1), gram(b1)) + F.l1_loss(gram(a2), gram(b2)))
    assert terms["style"].item() == pytest.approx(style.item(), rel=1e-5)
    terms["percep"].backward()
    assert sr.grad is not None
    assert not any(p.requires_grad for p in loss.parameters())
    after = PerceptualLoss(weights, {"relu1_2": 1.0}, "vgg16", criterion="l2", use_input_norm=False, range_norm=True)
    one, two = (plain[:4]((x + 1) / 2) for x in (sr, gt))
    assert after(sr, gt)["percep"].item() == pytest.approx(F.mse_loss(one, two).item(), rel=1e-5)


def test_a_shifted_loss_compares_the_same_part_of_both() -> None:
    weights = features("vgg16", 0)
    plain, shifted = (PerceptualLoss(weights, {"conv1_1": 1.0}, "vgg16", shift=shift) for shift in (0, 2))
    sr, gt = torch.rand(1, 3, 12, 12), torch.rand(1, 3, 12, 12)
    parts = [
        plain(sr[..., y : y + 10, x : x + 10], gt[..., y : y + 10, x : x + 10])["percep"].item() for y in range(3) for x in range(3)
    ]
    found = [shifted(sr, gt)["percep"].item() for _ in range(60)]
    assert {round(value, 5) for value in found} == {round(value, 5) for value in parts}
    torch.manual_seed(3)
    again = [shifted(sr, gt)["percep"].item() for _ in range(5)]
    torch.manual_seed(3)
    assert again == [shifted(sr, gt)["percep"].item() for _ in range(5)]


def test_perceptual_weights_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRCT_WEIGHTS", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"vgg19-dcbb9e9d\.pth, then set perceptual_opt\.path"):
        load_features("vgg19", ["conv1_2"])
    with pytest.raises(CheckpointError, match=r"nowhere\.pth do not exist"):
        load_features("vgg16", ["conv1_2"], tmp_path / "nowhere.pth")
    save_file(features("vgg19", 2), tmp_path / "vgg19_features.safetensors")
    assert load_features("vgg19", ["conv1_2"])["features.2.weight"].shape == (64, 64, 3, 3)
    with pytest.raises(CheckpointError, match=r"lack 'features\.5\.weight' of shape .*: they are not those of vgg19"):
        load_features("vgg19", ["conv2_1"])


@pytest.mark.parametrize("layers", [{}, {"conv3_4": 1.0}, {"fc6": 1.0}])
def test_layers_that_are_not_there(layers: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="layer"):
        PerceptualLoss({}, layers, "vgg16")

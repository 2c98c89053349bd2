"""Every name of the registry: forward, backward, checkpointing, stochastic depth and state dicts, at a small size."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from drct.errors import OptionError
from drct.networks import SuperResolutionNetwork, create_network, list_networks
from drct.networks.body import BodyOptions, drop_path_rates
from drct.networks.registry import find_family
from drct.networks.window_attention import DropPath

SMALL: dict[str, Any] = {"embed_dim": 16, "depths": [2, 3]}
WINDOWS: dict[str, Any] = {"num_heads": [2, 4], "window_size": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "drct": SMALL | WINDOWS | {"gc": 8, "head_dim": 8},
    "swinir": SMALL | WINDOWS,
    "hat": SMALL | WINDOWS | {"compress_ratio": 2, "squeeze_factor": 4},
    "mamba_drct": SMALL | {"gc": 8, "d_state": 4},
}


def small(name: str, **options: Any) -> SuperResolutionNetwork:
    """The smallest network that still has everything the named size has."""
    torch.manual_seed(0)
    return create_network(name, **(FAMILIES[next(iter(find_family(name).configurations))] | options))


@pytest.mark.parametrize("name", list_networks())
def test_norms_learn_alike_in_bfloat16(name: str) -> None:
    """Over thousands of rows torch's own sums of bfloat16 on a CPU lose nearly all of these gradients."""
    network = small(name, scale=2, drop_path_rate=0.0)
    for module in network.modules():
        assert not (isinstance(module, nn.LayerNorm) and type(module) is nn.LayerNorm)
    norm = next(m for m in network.modules() if isinstance(m, nn.LayerNorm))
    x = torch.rand(4096, norm.normalized_shape[0]) + 0.5
    gradients = []
    for half in (False, True):
        norm.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            y = norm(x.bfloat16() if half else x)
        assert y.dtype == (torch.bfloat16 if half else torch.float32)
        y.float().square().mean(1).sum().backward()
        gradients.append(torch.cat([p.grad for p in norm.parameters()]))
    assert (gradients[1] - gradients[0]).norm() < 0.02 * gradients[0].norm()


@pytest.mark.parametrize(("name", "upsampler"), [(name, u) for name in FAMILIES for u in find_family(name).options.upsamplers])
def test_the_convolutions_beside_the_image_are_exact_under_autocast(name: str, upsampler: str) -> None:
    network = small(name, scale=2, upsampler=upsampler)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    errors: list[float] = []

    def compare(layer: nn.Module, inputs: tuple[torch.Tensor], y: torch.Tensor) -> None:
        with torch.autocast("cpu", enabled=False):
            exact = nn.functional.conv2d(inputs[0].float(), layer.weight, layer.bias, 1, 1)
            errors.append((y - exact).abs().max().item())

    for layer in (convolutions[0], convolutions[-1]):
        layer.register_forward_hook(compare)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(torch.rand(1, 3, 16, 16))
    assert y.dtype == torch.float32
    assert errors == [0, 0]


@pytest.mark.parametrize("name", list_networks())
def test_forward_backward_and_state(name: str) -> None:
    network = small(name, scale=2, drop_path_rate=0.0)
    x = torch.rand(2, 3, 9, 6, requires_grad=True)
    y = network(x)
    assert y.shape == (2, 3, 18, 12)
    y.square().mean().backward()
    assert x.grad is not None
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    other = small(name, scale=2)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(network.state_dict())
    rebuilt = create_network(network.architecture, **network.option_dict)
    rebuilt.load_state_dict(network.state_dict())
    with torch.inference_mode():
        assert torch.equal(other.eval()(x), y)
        assert torch.equal(rebuilt.eval()(x), y)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [(1, 1), (1, 17), (8, 8), (5, 2)])
def test_any_size(name: str, size: tuple[int, int]) -> None:
    network = small(name, scale=3).eval()
    with torch.inference_mode():
        y = network(torch.rand(1, 3, *size))
    assert y.shape[-2:] == (3 * size[0], 3 * size[1])
    assert torch.isfinite(y).all()


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_changes_no_gradient(name: str) -> None:
    plain = small(name, scale=2, drop_path_rate=0.0)
    saving = small(name, scale=2, drop_path_rate=0.0, use_checkpoint=True)
    x = torch.rand(1, 3, 8, 8)
    for network in (plain, saving):
        network(x).square().mean().backward()
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        assert torch.allclose(a.grad, b.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", FAMILIES)
def test_stochastic_depth_acts_in_training_only(name: str) -> None:
    network = small(name, scale=2, drop_path_rate=0.9)
    for parameter in network.parameters():  # biases beginning at zero would hide a dropped branch
        torch.nn.init.normal_(parameter, std=0.3)
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        drawn = [network.train()(x) for _ in range(4)]
        fixed = [network.eval()(x) for _ in range(2)]
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])
    assert torch.equal(*fixed)


def test_a_branch_is_dropped_for_a_whole_sample_and_keeps_its_mean() -> None:
    torch.manual_seed(0)
    dropped = DropPath(0.5)(torch.ones(64, 2, 3))
    assert (dropped == dropped[:, :1, :1]).all()
    assert dropped.unique().tolist() == [0, 2]


def test_later_blocks_are_dropped_more_often() -> None:
    rates = drop_path_rates(BodyOptions(depths=(1, 2), drop_path_rate=0.25))
    assert rates == [[0], [0.125, 0.25]]


@pytest.mark.parametrize("name", ["swinir", "hat"])
def test_grey_images_and_absolute_positions(name: str) -> None:
    network = small(name, scale=2, in_chans=1, ape=True, img_size=8).eval()
    assert network(torch.rand(1, 1, 8, 8)).shape == (1, 1, 16, 16)
    with pytest.raises(OptionError, match=r"with ape the input must be 8 x 8, as it comes or padded: padded .* this one is 12 x 8"):
        network(torch.rand(1, 1, 9, 8))
    with pytest.raises(OptionError, match="img_size is 10, but with ape must be a multiple of the window, 4"):
        small(name, ape=True, img_size=10)


@pytest.mark.parametrize("scale", [2, 4])
def test_nearest_tail(scale: int) -> None:
    network = small("swinir_real_large", scale=scale)
    assert network(torch.rand(1, 3, 4, 5)).shape[-2:] == (4 * scale, 5 * scale)
    assert ("conv_up2.weight" in network.state_dict()) == (scale == 4)
    assert network.state_dict()["layers.0.conv.0.weight"].shape == (4, 16, 3, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swinir", {"upsampler": "nearest+conv", "upscale": 3}, "scale 3 is not possible with 'nearest"),
        ("swinir", {"upsampler": "nearest"}, "upsampler 'nearest' is unknown: use 'pixelshuffle' or"),
        ("swinir", {"resi_connection": "2conv"}, "resi_connection '2conv' is unknown: use '1conv' or '3conv'"),
        ("swinir", {"num_heads": [7] * 6}, "7 heads do not divide 180 channels"),
        ("swinir", {"depths": [6] * 4}, "depths has 4 entries and num_heads 6"),
        ("swinir", {"depths": [0] * 6}, "at least one group, and one block in each"),
        ("swinir", {"window_size": 0}, "window_size is 0, but must be at least 1"),
        ("swinir", {"compress_ratio": 3}, "option 'compress_ratio' is unknown to network 'swinir'"),
        ("hat", {"compress_ratio": 500}, "compress_ratio is 500, but must be between 1 and embed_dim, 180"),
        ("hat", {"window_size": 1}, "window_size is 1, but must be 2 or more"),
        ("hat", {"overlap_ratio": 0.1}, "overlap_ratio 0.1 of a window of 16 gives no two equal borders"),
        ("hat", {"upsampler": "pixelshuffledirect"}, "upsampler 'pixelshuffledirect' is unknown: use 'pixelshuffle'"),
        ("hatt", {}, "network 'hatt' is unknown (did you mean 'hat'?)"),
        (["hat"], {}, "network is ['hat'], but must be one of these names: drct, "),
    ],
)
def test_options_that_do_not_go_together(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        create_network(name, **options)
    assert message in str(caught.value)


def test_published_size_of_the_large_real_model() -> None:
    """28.01 M parameters, as its release says."""
    with torch.device("meta"):
        network = create_network("swinir_real_large")
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 28.01


@pytest.mark.parametrize("name", ["drct", "swinir", "hat"])
@torch.no_grad()
def test_weights_changed_behind_the_back_of_autograd_count(name: str) -> None:
    network, x = small(name).eval(), torch.rand(1, 3, 8, 8)
    network(x)
    for parameter in network.parameters():
        parameter.data.copy_(torch.randn_like(parameter) * 0.3)
    other = small(name).eval()
    other.load_state_dict(network.state_dict())
    assert torch.equal(network(x), other(x))


def test_heads_that_are_given_take_the_place_of_their_width() -> None:
    def heads(**options: Any) -> tuple[int, ...]:
        found: tuple[int, ...] = create_network("drct_light", depths=[1], embed_dim=32, gc=16, **options).options.heads_of_group(0)
        return found

    assert heads(num_heads=[4]) == (4, 4, 4, 4, 4)
    assert heads(num_heads=[4], head_dim=8) == (4, 6, 8, 10, 12)
    assert heads(num_heads=[2]) == (2, 3, 4, 5, 6)  # of 16 channels, as the named size has them


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("drct", {"num_heads": [0] * 6}, r"num_heads is \[0, 0, 0, 0, 0, 0\], but each must be at least 1"),
        ("drct", {"num_heads": [-6] * 6}, "num_heads"),
        ("drct", {"head_dim": 0}, "head_dim is 0, but must be at least 1"),
        ("drct_light", {"embed_dim": 24, "gc": 8}, "block 1 has 24 channels, which heads of head_dim 16 do not divide"),
        ("drct", {"attn_drop_rate": 2.0}, r"attn_drop_rate is 2\.0, but must be at least 0 and below 1"),
        ("drct", {"qk_scale": 0.0}, r"qk_scale is 0\.0, but must be above 0"),
        ("drct", {"mlp_ratio": float("nan")}, "mlp_ratio is nan, but must be a finite number"),
        ("swinir", {"mlp_ratio": float("inf")}, "mlp_ratio is inf"),
        ("swinir", {"drop_rate": 2.0}, "drop_rate is 2"),
        ("swinir", {"drop_path_rate": 1.0}, "drop_path_rate is 1"),
        ("hat", {"overlap_ratio": float("nan")}, "overlap_ratio is nan"),
        ("hat", {"img_range": 0}, "img_range is 0"),
        ("mamba_drct", {"expand": float("nan")}, "expand is nan"),
        ("mamba_drct", {"drop_path_rate": -0.1}, "drop_path_rate is -0"),
    ],
)
def test_values_out_of_range(name: str, options: dict, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        create_network(name, **options)


def test_numbers_of_numpy_are_numbers() -> None:
    sizes = {"embed_dim": np.int32(16), "gc": np.uint8(16), "depths": (np.int64(1),), "num_heads": [np.int64(1)]}
    network = create_network("drct_light", scale=np.int64(2), window_size=8.0, drop_path_rate=np.float32(0.5), **sizes)
    assert json.loads(json.dumps(dataclasses.asdict(network.options)))["upscale"] == 2
    for wrong in ({"scale": np.float64(2.5)}, {"scale": float("nan")}, {"depths": (np.float64(1),)}, {"scale": np.bool_(True)}):
        with pytest.raises(OptionError, match="but must be a"):
            create_network("drct_light", **wrong)

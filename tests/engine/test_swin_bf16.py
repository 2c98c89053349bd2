"""The kernel of whole Swin blocks in bfloat16 against the network in float32: no further from it than torch's own autocast, where
that rounds the residual stream between blocks, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from drct.engine import native
from drct.engine.accelerate import accelerate
from drct.engine.bias_table import expand_table, gradient_of_expanded
from drct.networks import create_network
from drct.networks.window_attention import gather_bias, relative_position_index

SIZES: dict[str, dict[str, Any]] = {
    "light": {"depths": [1], "num_heads": [3]},
    "window 8, two groups": {"depths": [1, 1], "num_heads": [2, 2], "window_size": 8, "embed_dim": 32, "head_dim": 16},
    "channels and heads that do not fill vectors": {
        "depths": [1],
        "num_heads": [2],
        "window_size": 8,
        "embed_dim": 36,
        "gc": 6,
        "head_dim": 6,
    },
    "heads wider than a vector": {"depths": [1], "num_heads": [1], "window_size": 8, "embed_dim": 40, "gc": 20, "head_dim": 20},
}
# Blocks without a convolution behind them.
PLAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "SwinIR": ("swinir", {"depths": [2], "num_heads": [2], "embed_dim": 32}),
    "SwinIR, channels and heads that do not fill vectors": ("swinir", {"depths": [3], "num_heads": [2], "embed_dim": 36}),
    "SwinIR without biases": ("swinir", {"depths": [2], "num_heads": [2], "embed_dim": 32, "qkv_bias": False}),
    "HAT": ("hat", {"depths": [2], "num_heads": [2], "embed_dim": 32, "squeeze_factor": 1, "conv_scale": 0.5}),
    "HAT, channels that do not fill vectors": (
        "hat",
        {"depths": [2], "num_heads": [2], "embed_dim": 36, "squeeze_factor": 1, "window_size": 8, "conv_scale": 0.5},
    ),
}


pytestmark = pytest.mark.usefixtures("bf16_products")


def network(options: dict[str, Any], name: str = "drct_light") -> torch.nn.Module:
    """Untrained, but with norms, biases and scores that matter, and its residual stream in bfloat16 under autocast."""
    torch.manual_seed(0)
    net = create_network(name, scale=2, **options)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p)) if p.dim() == 1 else p.mul_(3 if p.dim() == 2 else 1)
    net.conv_first.register_forward_hook(lambda m, inputs, y: y.bfloat16() if torch.is_autocast_enabled("cpu") else y)
    return net


def values_and_gradients(net: torch.nn.Module, x: torch.Tensor, bf16: bool) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        y = net(x)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    return [y.detach().float(), *torch.autograd.grad((y.float() * dy).mean(), [x, *net.parameters()])]


def test_a_default_device_is_no_matter() -> None:
    net = network(SIZES["light"])
    accelerate(net)
    x = torch.rand(1, 3, 16, 16)
    expected = values_and_gradients(net, x, True)
    try:
        torch.set_default_device("meta")  # stands for a GPU
        with torch.autocast("cpu", torch.bfloat16):
            y = net(x)
            y.sum().backward()
    finally:
        torch.set_default_device("cpu")
    assert torch.equal(y.float(), expected[0])


@pytest.mark.parametrize("name", SIZES)
def test_as_close_to_float32_as_autocast(name: str) -> None:
    check(network(SIZES[name]))


@pytest.mark.parametrize("name", PLAIN)
def test_blocks_alone_as_close_to_float32_as_autocast(name: str) -> None:
    architecture, options = PLAIN[name]
    check(network({"drop_path_rate": 0.0, **options}, architecture))


def check(net: torch.nn.Module) -> None:
    """Values and gradients of the accelerated network against those of the same one before, in float32 and under autocast."""
    inputs = [torch.rand(2, 3, 32, 48) for _ in range(4)]  # the errors of one are a matter of chance
    exact, autocast = ([values_and_gradients(net, x, half) for x in inputs] for half in (False, True))
    lines = accelerate(net)
    assert any("native blocks" in line for line in lines), lines
    ours = [values_and_gradients(net, x, True) for x in inputs]
    errors = [
        [
            sum(float((a - e).norm() / e.norm()) for a, e in zip(*of_all_inputs, strict=True)) / len(inputs)
            for of_all_inputs in zip(zip(*found, strict=True), zip(*exact, strict=True), strict=True)
        ]
        for found in (ours, autocast)
    ]
    assert sum(errors[0]) <= 1.1 * sum(errors[1])
    for mine, theirs in zip(*errors, strict=True):
        assert mine <= 2 * theirs + 0.01


@pytest.mark.parametrize("name", ["drct_light", "swinir", "hat"])
def test_inference_gives_the_values_of_training(name: str) -> None:
    net = network(SIZES["light"] if name == "drct_light" else PLAIN[{"swinir": "SwinIR", "hat": "HAT"}[name]][1], name).eval()
    accelerate(net)
    x = torch.rand(1, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
        with torch.no_grad():
            assert torch.equal(net(x), y.detach())


def test_float32_takes_the_exact_path() -> None:
    net, x = network(SIZES["light"]), torch.rand(1, 3, 16, 16)
    expected = net(x)
    accelerate(net)
    assert (net(x) - expected).abs().max() < 1e-5


def test_two_threads_give_the_same_gradients() -> None:
    net = network(SIZES["light"])
    accelerate(net)
    group, x, threads = net.get_submodule("layers.0"), torch.randn(2, 32, 32, 48).bfloat16(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = values_and_gradients(group, x, True)
        torch.set_num_threads(2)
        two, again = values_and_gradients(group, x, True), values_and_gradients(group, x, True)
    finally:
        torch.set_num_threads(threads)
    for a, b, c in zip(one, two, again, strict=True):
        assert torch.equal(b, c)
        assert (a - b).abs().max() <= 1e-4 * a.abs().max()


@pytest.mark.parametrize("name", ["drct_light", "swinir"])
def test_stochastic_depth_draws_as_the_network_does(name: str) -> None:
    """A sample whose branches are all dropped passes the blocks unchanged: same drops, so same distance to float32."""
    options = SIZES["light"] | {"depths": [1, 1], "num_heads": [3, 3]} if name == "drct_light" else PLAIN["SwinIR"][1]
    net = network({**options, "drop_path_rate": 0.5}, name)
    x = torch.rand(8, 3, 16, 16)
    torch.manual_seed(5)
    exact = values_and_gradients(net, x, False)
    accelerate(net)
    torch.manual_seed(5)
    same = values_and_gradients(net, x, True)
    torch.manual_seed(6)
    other = values_and_gradients(net, x, True)
    assert (same[0] - exact[0]).norm() < 0.1 * (other[0] - exact[0]).norm()


def test_table_rows_and_their_adjoint() -> None:
    window, heads = 8, 2
    table = torch.randn((2 * window - 1) ** 2, heads)
    rows = expand_table(table, window)
    full = gather_bias(table, relative_position_index(window)).view(heads, window, window, -1)  # heads, query y, query x, keys
    for y, x in ((0, 0), (3, 5), (7, 7)):
        start = (window - 1 - y) * window
        assert torch.equal(rows[:, x].flatten(1)[:, start : start + window**2], full[:, y, x])
    gradient = torch.randn_like(rows)
    assert torch.allclose((rows * gradient).sum(), (table * gradient_of_expanded(gradient)).sum(), rtol=1e-4)


def test_what_the_kernel_cannot_do_is_refused() -> None:
    shape = native.BlockShape(8, 0, 1, 16, 32, 16, 0.25, 0.2)
    with pytest.raises(ValueError, match="bfloat16 on the CPU"):
        native.dense_group(torch.zeros(1, 8, 8, 16), torch.ones(1, 1, 2), [shape], 1e-5, [])
    with pytest.raises(ValueError, match="does not go with"):
        native.dense_group(torch.zeros(1, 8, 12, 16).bfloat16(), torch.ones(1, 1, 2), [shape], 1e-5, [])
    shape = native.BlockShape(8, 0, 1, 16, 32, 0, 0.25, None)
    x = torch.zeros(1, 8, 8, 16).bfloat16()
    with pytest.raises(ValueError, match="does not go with a map"):
        native.swin_block(x, torch.ones(1, 2), shape, 1e-5, [], torch.zeros(1, 8, 8, 8).bfloat16())

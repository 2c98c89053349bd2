"""The first half of a Swin block in one kernel against the network's own block, also where training prefers operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from drct.engine import native
from drct.engine.native.build import library_or_reason
from drct.networks.window_attention import SwinBlock

SHAPES = [  # dim, heads, window, shift, bias of the queries, keys and values
    (48, 3, 16, 0, True),
    (180, 6, 16, 8, True),
    (212, 4, 16, 8, False),
    (20, 4, 8, 4, True),
    (61, 1, 8, 3, True),
    (64, 4, 16, 8, True),
    (3, 3, 8, 0, True),
]


@pytest.fixture(autouse=True, scope="module")
def kernel() -> None:
    if isinstance(reason := library_or_reason("swin_attention.c"), str):
        pytest.skip(reason)


def make(dim: int, heads: int, window: int, shift: int, bias: bool, size: float = 1.0) -> tuple[SwinBlock, Tensor]:
    torch.manual_seed(dim)
    block = SwinBlock(dim, heads, window, shift, 2.0, qkv_bias=bias)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5 if parameter.dim() == 1 else size * parameter.shape[-1] ** -0.5)
    return block, torch.randn(2, 2 * window, 3 * window, dim, requires_grad=True)


def layer_of(block: SwinBlock, norm: bool = False) -> native.AttentionLayer:
    attn = block.attn
    layer = native.AttentionLayer(
        *(attn.qkv.weight, attn.qkv.bias, attn.proj.weight, attn.proj.bias, attn.relative_position_bias_table),
        *(attn.window, attn.shift, attn.scale),
    )
    own = {"gain": block.norm1.weight, "offset": block.norm1.bias, "eps": block.norm1.eps} if norm else {}
    return dataclasses.replace(layer, **own)


def attend(block: SwinBlock, x: Tensor) -> Tensor:
    return native.swin_attention(x, layer_of(block))


@pytest.mark.parametrize("size", [1.0, 5.0], ids=["scores near zero", "scores far from zero"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape: tuple[int, int, int, int, bool], size: float) -> None:
    block, x = make(*shape, size)
    leaves = [x, *block.attn.parameters()]
    results = []
    functions: tuple[Callable[[Tensor], Tensor], ...] = (block.attention, lambda x: attend(block, x))
    for function in functions:
        torch.manual_seed(0)
        y = function(x)
        results.append([y, *torch.autograd.grad(y, leaves, torch.randn_like(y))])
    for theirs, ours in zip(*results, strict=True):
        assert (theirs - ours).abs().max() < 1e-5 * size**2 * theirs.abs().max()
        assert ours.stride() == torch.empty_like(ours, memory_format=torch.contiguous_format).stride()  # parallel training wants it


@pytest.mark.parametrize("factors", [None, (0.0, 1.25)], ids=["", "stochastic depth"])
@pytest.mark.parametrize("shape", SHAPES[:5], ids=str)
def test_first_halves(shape: tuple[int, int, int, int, bool], factors: tuple[float, ...] | None) -> None:
    """With the norm in front and what goes around both."""
    block, x = make(*shape)
    drawn = torch.ones(2) if factors is None else torch.tensor(factors)
    leaves = [x, *block.attn.parameters(), *block.norm1.parameters()]
    results = []
    for y in (
        x + drawn.view(-1, 1, 1, 1) * block.attention(block.norm1(x)),
        native.swin_attention(x, layer_of(block, norm=True), None if factors is None else drawn),
    ):
        torch.manual_seed(0)
        results.append([y, *torch.autograd.grad(y, leaves, torch.randn_like(y))])
    for theirs, ours in zip(*results, strict=True):
        assert (theirs - ours).abs().max() < 1e-5 * theirs.abs().max()


def test_threads_share_the_windows() -> None:
    """Whatever their number, also where there are more of them than windows."""
    block, x = make(48, 3, 8, 4, True)
    x = x[:1, :8].detach().requires_grad_()  # three windows
    dy, threads, results = torch.randn_like(x), torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            y = attend(block, x)
            results.append([y, *torch.autograd.grad(y, [x, *block.attn.parameters()], dy)])
    finally:
        torch.set_num_threads(threads)
    for one, *others in zip(*results, strict=True):
        assert all((one - other).abs().max() <= 1e-5 * one.abs().max() for other in others)


def test_what_is_no_number_stays_in_its_window() -> None:
    block, x = make(20, 4, 8, 0, True)
    x = x.detach()
    x[0, 3, 5] = torch.nan
    y = attend(block, x)
    assert y[0, :8, :8].isnan().any()
    y[0, :8, :8] = 0
    assert y.isfinite().all()


def test_only_what_is_asked_for() -> None:
    """Frozen weights, and a map that comes turned as from a convolution."""
    block, x = make(20, 4, 8, 4, True)
    expected = torch.autograd.grad(block.attention(x).sum(), x)[0]
    for parameter in block.parameters():
        parameter.requires_grad_(False)
    turned = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    (dx,) = torch.autograd.grad(attend(block, turned).sum(), x)
    assert (dx - expected).abs().max() < 1e-5 * expected.abs().max()
    assert all(p.grad is None for p in block.parameters())


def test_refuses_what_it_would_misread() -> None:
    block, x = make(20, 4, 8, 0, True)
    with pytest.raises(ValueError, match="window 8"):
        attend(block, x[:, 1:])
    with pytest.raises(ValueError, match="float32"):
        attend(block.double(), x.double())
    layer = layer_of(block.float())
    with pytest.raises(ValueError, match="20 channels"):
        native.swin_attention(x, dataclasses.replace(layer, qkv=layer.proj))
    for wrong, drawn in ((layer, torch.ones(2)), (layer_of(block, norm=True), torch.ones(3))):
        with pytest.raises(ValueError, match="factors go with a norm"):
            native.swin_attention(x, wrong, drawn)

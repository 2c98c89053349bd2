"""Whole Swin blocks in one kernel against the network's own block, also on processors where the engine prefers operators."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drct.engine.cpu.blocks import Maps, PackedSwinLayer
from drct.engine.cpu.layout import to_tokens, window_order
from drct.engine.folding import fold_swin
from drct.engine.native import SwinLayerKernel
from drct.engine.native.build import library_or_reason
from drct.networks.window_attention import SwinBlock

SHAPES = [  # dim, heads, window, shift, hidden widths per channel, out
    (48, 3, 16, 0, 2.0, 16),
    (180, 6, 16, 8, 2.0, 32),
    (20, 4, 8, 4, 1.0, 20),
    (61, 1, 8, 3, 0.7, 13),
    (30, 2, 16, 8, 2.0, None),
    (3, 3, 8, 0, 1.5, None),
]


@pytest.fixture(autouse=True, scope="module")
def kernel() -> None:
    if isinstance(reason := library_or_reason("swin_layer.c"), str):
        pytest.skip(reason)


@pytest.fixture(params=["float32", "bfloat16, matrix unit", "bfloat16, vectors"])
def dtype(request: pytest.FixtureRequest, leave_products_to: Callable[[str], None]) -> torch.dtype:
    """Of the products, by either unit of the processor."""
    if request.param == "float32":
        return torch.float32
    leave_products_to(request.param.removeprefix("bfloat16, "))
    return torch.bfloat16


def make(
    dim: int, heads: int, window: int, shift: int, ratio: float, out: int | None, spread: float = 2
) -> tuple[SwinBlock, nn.Conv2d | None]:
    """``spread`` is that of the weights' products: with 2, scores lie far from zero, with 0.5 near it."""
    torch.manual_seed(dim)
    block = SwinBlock(dim, heads, window, shift, ratio).eval()
    after = None if out is None else nn.Conv2d(dim, out, 1)
    for name, parameter in block.named_parameters():
        nn.init.normal_(parameter, std=0.5 if "norm" in name or parameter.dim() == 1 else spread * parameter.shape[-1] ** -0.5)
    return block, after


def expect(block: SwinBlock, after: nn.Conv2d | None, x: Tensor, slope: float | None) -> Tensor:
    """``(B, H, W, C)`` to rows in home order."""
    y = block(x).permute(0, 3, 1, 2)
    y = y if after is None else after(y)
    return to_tokens(y if slope is None else F.leaky_relu(y, slope), block.window)


def kinds_of(ends: tuple[int, ...]) -> Tensor:
    return torch.tensor([next(kind for kind, end in enumerate(ends) if i < end) for i in range(ends[-1])], dtype=torch.int32)


@pytest.mark.parametrize("slope", [None, 0.2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_values(shape: tuple[int, int, int, int, float, int | None], slope: float | None) -> None:
    block, after = make(*shape)
    window, size = block.window, (2, 3 * block.window, 2 * block.window)
    x = torch.randn(*size, shape[0])
    expected = expect(block, after, x, slope)
    kernel = SwinLayerKernel(fold_swin(block, after), slope)
    order = window_order(*size, window, block.shift)
    assert torch.equal(order.kinds, kinds_of(order.ends))
    wide = torch.full((len(expected), shape[0] + 5), 7.0)  # rows of a wider buffer
    wide[:, : shape[0]] = to_tokens(x.permute(0, 3, 1, 2), window)
    y = torch.full_like(expected, torch.nan)
    for part in ((0, 5), (5, 6), (6, 12)):
        kernel(wide[:, : shape[0]], y, part, order.tokens, order.kinds)
    assert (y - expected).abs().max() < 2e-5 * expected.abs().max()
    assert (wide[:, shape[0] :] == 7).all()


def error(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).pow(2).mean().sqrt())


@pytest.mark.usefixtures("bf16_products")
@pytest.mark.parametrize("spread", [0.5, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.no_grad()
def test_bf16_is_no_further_off_than_operators(shape: tuple[int, int, int, int, float, int | None], spread: float) -> None:
    block, after = make(*shape, spread)
    window, size = block.window, (2, 3 * block.window, 2 * block.window)
    x = torch.randn(*size, shape[0])
    expected = expect(block, after, x, 0.2)
    order = window_order(*size, window, block.shift)
    folded = fold_swin(block, after)
    wide = torch.full((len(expected), shape[0] + 5), 7.0)
    wide[:, : shape[0]] = to_tokens(x.permute(0, 3, 1, 2), window)
    maps = Maps(wide[:, : shape[0]], torch.full_like(expected, torch.nan), order)
    PackedSwinLayer(folded, torch.bfloat16, 0.2).run(maps, 0, 12)
    y = torch.full_like(expected, torch.nan)
    kernel = SwinLayerKernel(folded, 0.2, torch.bfloat16)
    for part in ((0, 5), (5, 6), (6, 12)):
        kernel(maps.source, y, part, order.tokens, order.kinds)
    assert error(y, expected) < 1.2 * error(maps.target, expected)  # 0.4 to 0.9 times, but for heads of one channel
    assert error(y, expected) < 0.002 * expected.abs().max()
    again = y.clone()
    kernel(maps.source, again, (0, 12), order.tokens, order.kinds, add=True)
    assert torch.equal(again, y + y)
    assert (wide[:, shape[0] :] == 7).all()


@torch.no_grad()
def test_biases_far_below_the_others(dtype: torch.dtype) -> None:
    """Scores near zero, but for pairs of positions that all but exclude each other."""
    block, after = make(48, 3, 16, 0, 2.0, 16, 1.0)
    block.attn.relative_position_bias_table[::7] = -300
    x = torch.randn(1, 16, 32, 48)
    expected = expect(block, after, x, None)
    y = torch.empty_like(expected)
    SwinLayerKernel(fold_swin(block, after), dtype=dtype)(to_tokens(x.permute(0, 3, 1, 2), 16), y, (0, 2), None, None)
    assert error(y, expected) < (1e-6 if dtype == torch.float32 else 0.002) * expected.abs().max()


@pytest.mark.parametrize("shift", [0, 8])
@torch.no_grad()
def test_in_place_and_added(shift: int) -> None:
    block, _ = make(24, 3, 16, shift, 2.0, None)
    size = (1, 32, 48)
    x = torch.randn(*size, 24)
    expected, order = expect(block, None, x, None), window_order(*size, 16, shift)
    kernel = SwinLayerKernel(fold_swin(block))
    rows = to_tokens(x.permute(0, 3, 1, 2), 16).contiguous()
    before = rows.clone()
    kernel(rows, rows, (0, 6), order.tokens, order.kinds, add=True)
    assert (rows - before - expected).abs().max() < 2e-5 * expected.abs().max()
    kernel(before, before, (0, 6), order.tokens, order.kinds)
    assert (before - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("dim", [36, 35])
@torch.no_grad()
def test_a_norm_that_is_there_already(dim: int, dtype: torch.dtype) -> None:
    block, after = make(dim, 1, 8, 0, 2.0, 12, 0.5)
    x, z = torch.randn(2, 16, 24, dim), torch.randn(2, 16, 24, dim)
    block.norm1, norm = nn.Identity(), block.norm1
    swapped = x + block.attention(z)
    swapped = after(to_bchw(swapped + block.mlp(block.norm2(swapped)))) if after else swapped
    block.norm1 = norm
    order = window_order(2, 16, 24, 8, 0, raster=True)
    y = torch.empty(768, 12)
    kernel = SwinLayerKernel(fold_swin(block, after), dtype=dtype)
    kernel(x.view(-1, dim), y, (0, 12), order.tokens, None, normed=z.view(-1, dim).to(dtype))
    bound = 2e-5 if dtype == torch.float32 else 2e-2
    assert (y - swapped.permute(0, 2, 3, 1).reshape(-1, 12)).abs().max() < bound * swapped.abs().max()


def to_bchw(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


@torch.no_grad()
def test_what_is_no_number_stays_in_its_window(dtype: torch.dtype) -> None:
    block, after = make(48, 3, 16, 0, 2.0, 16)
    x = torch.randn(1, 16, 32, 48)
    x[0, 3, 20, 7] = torch.nan
    y = torch.zeros(512, 16)
    SwinLayerKernel(fold_swin(block, after), dtype=dtype)(to_tokens(x.permute(0, 3, 1, 2), 16), y, (0, 2), None, None)
    assert y[:256].isfinite().all()
    assert y[256:].isnan().any(1).all()


def test_refuses_what_it_would_misread() -> None:
    block, after = make(20, 4, 8, 4, 1.0, 20)
    kernel = SwinLayerKernel(fold_swin(block, after))
    x = torch.zeros(64, 20)
    with pytest.raises(ValueError, match="float32"):
        kernel(x.double(), x, (0, 1), None, None)
    with pytest.raises(ValueError, match="side by side"):
        kernel(x, torch.zeros(20, 64).t(), (0, 1), None, None)
    with pytest.raises(ValueError, match="windows of 7"):
        SwinLayerKernel(fold_swin(make(20, 4, 7, 0, 1.0, None)[0]))

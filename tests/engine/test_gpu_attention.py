"""The Triton kernels of window attention for training, against the formula, through Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from drct.networks import create_network
from drct.networks.window_attention import (
    SwinBlock,
    WindowAttention,
    gather_bias,
    relative_position_index,
    window_partition,
    window_reverse,
)

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def attention() -> ModuleType:
    pytest.importorskip("triton")
    from drct.engine.gpu import window_attention

    return window_attention


def formula(qkv: torch.Tensor, table: torch.Tensor, index: torch.Tensor, window: int, shift: int, scale: float) -> torch.Tensor:
    """Attention written out, with the masks of the networks."""
    bias = gather_bias(table, index)
    heads = len(bias)
    masks = WindowAttention(heads, window, heads, shift).masks.to(qkv.device)
    x = window_partition(qkv.roll((-shift, -shift), (1, 2)), window)
    b, rows, columns, n, _ = x.shape
    q, k, v = x.view(b, rows, columns, n, 3, heads, -1).permute(4, 0, 1, 2, 5, 3, 6)
    scores = q @ k.transpose(-1, -2) * scale + bias
    kind = torch.zeros(rows, columns, dtype=torch.long)
    kind[:, -1] += 1
    kind[-1] += 2
    if shift:
        scores = scores + masks[kind][None, :, :, None]
    out = (scores.softmax(-1) @ v).transpose(3, 4).reshape(b, rows, columns, n, -1)
    return window_reverse(out, window).roll((shift, shift), (1, 2))


@pytest.mark.parametrize(
    ("window", "heads", "head_dim", "shift", "maps"),
    [(4, 2, 5, 0, (1, 2, 1)), (8, 1, 20, 4, (1, 2, 2)), (8, 2, 16, 4, (2, 1, 1)), (4, 1, 80, 2, (3, 1, 2))],
    ids=["small", "shifted", "one window of two images", "wide head"],
)
def test_values_and_gradients(
    window: int, heads: int, head_dim: int, shift: int, maps: tuple[int, int, int], attention: ModuleType
) -> None:
    torch.manual_seed(0)
    b, down, across = maps
    qkv = torch.randn(b, down * window, across * window, 3 * heads * head_dim, device=DEVICE, requires_grad=True)
    table = torch.randn((2 * window - 1) ** 2, heads, device=DEVICE, requires_grad=True)
    given = (qkv, table, relative_position_index(window).to(DEVICE), window, shift, 0.3)
    ours, expected = attention.window_attention(*given), formula(*given)
    assert (ours - expected).abs().max() < 1e-4
    dy = torch.randn_like(ours)
    for g, wanted in zip(torch.autograd.grad(ours, (qkv, table), dy), torch.autograd.grad(expected, (qkv, table), dy), strict=True):
        assert (g - wanted).abs().max() < 1e-4 * wanted.abs().max().clamp(min=1)


def test_a_table_that_needs_no_gradient_costs_none(attention: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(1, 4, 4, 3 * 8, device=DEVICE, requires_grad=True)
    table = torch.randn(49, 1, device=DEVICE)
    given = (qkv, table, relative_position_index(4).to(DEVICE), 4, 2, 0.5)
    monkeypatch.setattr(attention, "table_gradient", None)  # would be called
    (ours,) = torch.autograd.grad(attention.window_attention(*given).sin().sum(), qkv)
    (expected,) = torch.autograd.grad(formula(*given).sin().sum(), qkv)
    assert (ours - expected).abs().max() < 1e-4


def test_an_accelerated_network_has_the_same_values_and_gradients(attention: ModuleType) -> None:
    """Through the replacement that training on a GPU makes, with gradients down to the bias tables."""
    from drct.engine.accelerate import _FastAttention

    torch.manual_seed(0)
    options = {"embed_dim": 12, "depths": [1], "num_heads": [2], "window_size": 4, "gc": 4, "upsampler": "pixelshuffledirect"}
    network = create_network("drct", scale=2, **options).to(DEVICE)
    for module in network.modules():
        if isinstance(module, WindowAttention):
            torch.nn.init.normal_(module.relative_position_bias_table)
    x = torch.rand(1, 3, 8, 4, device=DEVICE)
    expected = network(x)
    wanted = torch.autograd.grad(expected.square().sum(), list(network.parameters()))
    for module in network.modules():
        if isinstance(module, SwinBlock):
            module.attention = _FastAttention(module, {DEVICE.type: attention.window_attention})
    ours = network(x)
    assert (ours - expected).abs().max() < 1e-5
    for g, other in zip(torch.autograd.grad(ours.square().sum(), list(network.parameters())), wanted, strict=True):
        assert (g - other).abs().max() <= 2e-4 * other.abs().max().clamp(min=1)


def test_the_gradient_of_the_table_is_the_same_every_time(attention: ModuleType) -> None:
    torch.manual_seed(0)
    qkv, table = torch.randn(5, 4, 4, 3 * 8, device=DEVICE), torch.randn(49, 1, device=DEVICE, requires_grad=True)
    index = relative_position_index(4).to(DEVICE)
    runs = [torch.autograd.grad(attention.window_attention(qkv, table, index, 4, 2, 0.5).sin().sum(), table)[0] for _ in range(3)]
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_wrong_shapes_are_refused(attention: ModuleType) -> None:
    with pytest.raises(ValueError, match="does not go with 2 heads"):
        attention.window_attention(torch.zeros(1, 4, 6, 12), torch.zeros(49, 2), relative_position_index(4), 4, 0, 1.0)
    with pytest.raises(ValueError, match="window 4 has 16 positions"):
        attention.window_attention(torch.zeros(1, 4, 4, 12), torch.zeros(49, 2), relative_position_index(8), 4, 0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("capability", [86, 90])
@pytest.mark.parametrize("kind", ["bf16", "fp32"])
def test_kernels_compile_without_a_gpu(capability: int, kind: str, attention: ModuleType) -> None:
    """The interpreter takes more than the compiler does; and consumer cards have 99 KiB of shared memory."""
    code = COMPILE.format(capability=capability, kind=kind)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    names = ["_attention_kernel", "_query_gradients_kernel", "_key_gradients_kernel", "_bias_gradients_kernel"]
    assert result.stdout.split() == names * 3


COMPILE = """
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from drct.engine.gpu import kernels, window_attention as training

dtype = dict(bf16=torch.bfloat16, fp32=torch.float32)["{kind}"]
for heads, d, block_d in ((3, 16, 16), (4, 53, 64), (2, 122, 128)):
    tile = kernels.tile_size(64, 256, block_d, dtype)
    block = kernels.tile_size(training.BLOCK, 256, block_d, dtype, training.TILE_BYTES)
    shape = dict(HEADS=heads, D=d, BLOCK_D=block_d, WINDOW=16, SHIFT=8, MASK=-144.0)
    for kernel, constants in (
        (kernels._attention_kernel, shape | dict(BORDER=0, BLOCK_M=tile, BLOCK_N=tile, KEEP=True)),
        (training._query_gradients_kernel, shape | dict(BLOCK=block)),
        (training._key_gradients_kernel, shape | dict(BLOCK=block)),
        (training._bias_gradients_kernel, shape | dict(BLOCK=block, SHARES=8)),
    ):
        numbers = ("height", "width", "windows_down", "windows_across", "windows")
        kinds = dict.fromkeys(numbers, "i32") | dict.fromkeys(("scale", "factor"), "fp32")
        kinds |= dict.fromkeys(("qkv", "dout", "out", "dqkv"), "*{kind}") | dict.fromkeys(("bias", "lse", "mean", "dbias"), "*fp32")
        signature = {{name: "constexpr" if name in constants else kinds[name] for name in kernel.arg_names}}
        values = {{(kernel.arg_names.index(name),): value for name, value in constants.items()}}
        source = ASTSource(fn=kernel, signature=signature, constexprs=values)
        compiled = triton.compile(source, target=GPUTarget("cuda", {capability}, 32), options=dict(num_warps=4, num_stages=2))
        assert compiled.metadata.shared <= 99 * 1024, (kernel.__name__, d, compiled.metadata.shared)
        assert len(compiled.asm["cubin"]) > 1000
        print(compiled.metadata.name)
"""

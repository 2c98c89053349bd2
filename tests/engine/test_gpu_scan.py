"""The Triton kernels of the selective scan against the formula, through Triton's interpreter where there is no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from drct.networks.mamba_drct import SS2D, from_sequences, to_sequences
from drct.networks.scan import sequential_scan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


SMALL = {"CHUNK": 8, "SEGMENT": 4, "PIECE": 2, "BLOCK_D": 8, "BLOCK_D_GRADIENTS": 4}  # the interpreter takes its time


@pytest.fixture(autouse=True)
def scan(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module; chunks are short, so that few pixels make many."""
    pytest.importorskip("triton")
    from drct.engine.gpu import selective_scan

    for name, value in SMALL.items():
        monkeypatch.setattr(selective_scan, name, value)
    return selective_scan


def arguments(batch: int, height: int, width: int, dim: int, n: int) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    u = torch.randn(batch, height, width, dim)
    delta = F.softplus(torch.randn(batch, height, width, 4, dim) - 1)
    a = -torch.exp(torch.randn(4, dim, n))
    b, c = (torch.randn(batch, height, width, 4, n) for _ in range(2))
    return tuple(t.to(DEVICE).requires_grad_() for t in (u, delta, a, b, c))


def formula(u: torch.Tensor, delta: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    ordered = [to_sequences(t) for t in (u.unsqueeze(3).expand_as(delta), delta, b, c)]
    return from_sequences(sequential_scan(ordered[0], ordered[1], a, ordered[2], ordered[3]), *u.shape[1:3])


@pytest.mark.parametrize(
    ("batch", "height", "width", "dim", "n"),
    [(1, 1, 1, 1, 1), (2, 1, 3, 3, 3), (1, 2, 2, 9, 16), (1, 3, 6, 2, 4)],
    ids=["one value", "odd state", "blocks of channels", "three chunks"],
)
def test_values_and_gradients(batch: int, height: int, width: int, dim: int, n: int, scan: ModuleType) -> None:
    compare(scan, arguments(batch, height, width, dim, n))


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width", "dim"), [(9, 17, 40), (13, 10, 7)])
def test_values_and_gradients_with_chunks_of_their_real_size(
    height: int, width: int, dim: int, scan: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    assert SMALL["CHUNK"] < scan.CHUNK
    compare(scan, arguments(1, height, width, dim, 16))


def compare(scan: ModuleType, given: tuple[torch.Tensor, ...]) -> None:
    ours, expected = scan.selective_scan(*given), formula(*given)
    assert (ours - expected).abs().max() < 1e-4
    dy = torch.randn_like(ours)
    for g, wanted in zip(torch.autograd.grad(ours, given, dy), torch.autograd.grad(expected, given, dy), strict=True):
        assert (g - wanted).abs().max() < 1e-4 * wanted.abs().max().clamp(min=1)


def test_without_gradients_nothing_is_kept_and_strong_decay_stays_finite(scan: ModuleType) -> None:
    u, _, _, b, c = arguments(1, 2, 3, 6, 2)
    delta, a = torch.full((1, 2, 3, 4, 6), 80.0, device=DEVICE), torch.full((4, 6, 2), -16.0, device=DEVICE)
    with torch.no_grad():
        y = scan.selective_scan(u, delta, a, b, c)
    # nothing of the past survives: each direction gives (B . C) delta u
    assert torch.allclose(y, 80 * u * (b * c).sum((3, 4))[..., None], rtol=1e-4, atol=1e-3)
    assert not y.requires_grad


def test_a_block_on_a_gpu_scans_with_it(scan: ModuleType) -> None:
    from drct.engine.accelerate import _FastScan

    torch.manual_seed(0)
    block = SS2D(6, d_state=3).to(DEVICE)
    x = torch.randn(1, 2, 3, 6, device=DEVICE, requires_grad=True)
    expected = block(x)
    block.scan = _FastScan(block, {DEVICE.type: scan.selective_scan})
    ours = block(x)
    assert (ours - expected).abs().max() < 1e-5
    wanted, got = (torch.autograd.grad(y.sum(), [x, *block.parameters()]) for y in (expected, ours))
    assert all((p - q).abs().max() <= 1e-4 * p.abs().max().clamp(min=1) for p, q in zip(wanted, got, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_without_a_gpu(capability: int, scan: ModuleType) -> None:
    """The interpreter takes more than the compiler does."""
    code = COMPILE.format(capability=capability)
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["_summary_kernel", "_summary_kernel", "_carry_kernel", "_output_kernel", "_gradient_kernel"]


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from drct.engine.gpu import selective_scan as scan

tile = dict(N=16, BLOCK_N=16, BLOCK_D=16)
walk = tile | dict(CHUNK=64)
for kernel, constants in (
    (scan._summary_kernel, walk | dict(REVERSE=False)),
    (scan._summary_kernel, walk | dict(REVERSE=True)),
    (scan._carry_kernel, tile | dict(REVERSE=True)),
    (scan._output_kernel, walk | dict(SEGMENT=16, KEEP=True)),
    (scan._gradient_kernel, walk | dict(SEGMENT=16, PIECE=4)),
):
    numbers = ("batch", "height", "width", "dim", "chunks", "segments")
    signature = {{name: "constexpr" if name in constants else "i32" if name in numbers else "*fp32" for name in kernel.arg_names}}
    values = {{(kernel.arg_names.index(name),): value for name, value in constants.items()}}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values)
    compiled = triton.compile(source, target=GPUTarget("cuda", {capability}, 32), options=dict(num_warps=1))
    assert len(compiled.asm["cubin"]) > 1000
    print(compiled.metadata.name)
"""


def test_wrong_arguments_are_refused(scan: ModuleType) -> None:
    u, delta, a, b, c = arguments(1, 2, 3, 4, 2)
    with pytest.raises(ValueError, match="do not go with u"):
        scan.selective_scan(u, delta, a[:, :2], b, c)
    with pytest.raises(ValueError, match="float32 only"):
        scan.selective_scan(u.double(), delta, a, b, c)

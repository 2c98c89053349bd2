"""MambaDRCT's program on the CPU against the network, and its kernel against the formula."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from drct.engine import compile, native
from drct.engine.cpu.mamba import MambaDRCTProgram
from drct.engine.memory import LiveBytes
from drct.engine.program import PlainProgram
from drct.networks import SuperResolutionNetwork, create_network
from drct.networks.mamba_drct import SS2D, from_sequences, to_sequences
from drct.networks.scan import sequential_scan

SMALL = {"embed_dim": 20, "gc": 7, "depths": [1, 1]}


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    if reason := native.scan_available():
        pytest.skip(reason)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (2, 3, 9, 14)),
        ({"expand": 1.5, "upsampler": "pixelshuffledirect", "scale": 3}, (1, 3, 1, 37)),
        ({"resi_connection": "identity", "patch_norm": False, "in_chans": 1, "scale": 2}, (1, 1, 33, 40)),
    ],
)
def test_program_equals_the_network(
    options: dict, size: tuple[int, ...], build: Callable[..., SuperResolutionNetwork], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drct.engine.cpu.mamba.CHUNK_TOKENS", 50)  # several chunks of a small map
    network = build("mamba_drct", **SMALL, **options)
    program = compile(network, "cpu", "fp32")
    assert isinstance(program, MambaDRCTProgram)
    x = torch.rand(size)
    with torch.inference_mode():
        expected = network(x)
    assert (program(x) - expected).abs().max() <= 1e-4
    assert torch.equal(program(x), program(x))
    half = compile(network, "cpu", "bf16")(x)
    assert -10 * (half - expected).square().mean().log10() >= 40


@pytest.mark.parametrize(("rank", "dim", "threads"), [(1, 1, 1), (2, 16, 1), (5, 37, 3)])
def test_kernel_makes_steps_scans_and_sums(rank: int, dim: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    b, h, w = 2, 5, 7
    u, low = torch.randn(b, h, w, dim), torch.randn(b, h, w, 4, rank + 32)
    weight, bias, skip = torch.randn(4, rank, dim), 6 * torch.randn(4, dim), torch.randn(dim)  # steps from 1e-6 to 20
    a = -torch.exp(torch.randn(4, 16, dim))
    steps = F.softplus(torch.einsum("bhwkr,krd->bhwkd", low[..., :rank], weight) + bias)
    given = (u.unsqueeze(3).expand_as(steps), steps, low[..., rank : rank + 16], low[..., rank + 16 :])
    ordered = [to_sequences(t) for t in given]
    scanned = sequential_scan(ordered[0], ordered[1], a.transpose(1, 2), ordered[2], ordered[3])
    expected = from_sequences(scanned, h, w) + skip * u
    ours = native.ss2d_scan(u, low, weight, bias, a, skip)
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


def test_wrong_arguments_are_refused() -> None:
    u, low = torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 4, 34)
    weight, bias, a, skip = torch.zeros(4, 2, 8), torch.zeros(4, 8), torch.zeros(4, 16, 8), torch.zeros(8)
    with pytest.raises(ValueError, match="do not go with u"):
        native.ss2d_scan(u, low, weight, bias, a[:, :4], skip)
    with pytest.raises(ValueError, match="contiguous float32"):
        native.ss2d_scan(u.transpose(1, 2).contiguous().transpose(1, 2), low, weight, bias, a, skip)


def test_other_states_run_plain() -> None:
    program = compile(create_network("mamba_drct", **SMALL, d_state=4).eval())
    assert isinstance(program, PlainProgram)
    assert "states of 16 numbers, not 4" in program.describe()[0]


def test_steps_of_inference_are_those_of_training() -> None:
    """One block, fused and plain, with the usual initialization."""
    torch.manual_seed(0)
    block = SS2D(24).eval()
    x = torch.randn(1, 6, 5, 24)
    with torch.inference_mode():
        low = F.linear(x, block.x_proj_weight.flatten(0, 1)).unflatten(-1, (4, -1))
        a = -torch.exp(block.A_logs).view(4, 24, 16).transpose(1, 2).contiguous()
        weight, skip = block.dt_projs_weight.transpose(1, 2).contiguous(), block.Ds.view(4, -1).sum(0)
        ours = native.ss2d_scan(x, low.contiguous(), weight, block.dt_projs_bias, a, skip)
        assert (ours - block.scan(x)).abs().max() < 1e-5


def test_memory_and_description() -> None:
    program = compile(create_network("mamba_drct", **SMALL).eval())
    x = torch.rand(1, 3, 80, 96)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # only this thread's tensors are seen
    try:
        with LiveBytes() as live:
            program(x)
        assert live.peak <= program.memory_estimate(80, 96) < 3 * live.peak
    finally:
        torch.set_num_threads(threads)
    assert any("native selective scan in 10 blocks" in line for line in program.describe())
    assert program.folded_multiply_adds > 0


def test_weights_are_copied_where_torch_cannot_pack_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("linear", "mamba"):
        monkeypatch.setattr(f"drct.engine.cpu.{name}.packing_available", lambda: "no oneDNN")
    torch.manual_seed(0)
    network = create_network("mamba_drct", **SMALL)
    program, x = compile(network), torch.rand(1, 3, 9, 9)
    before = program(x)
    for module in network.modules():
        if isinstance(module, SS2D):
            module.x_proj_weight.data.mul_(100)
    assert torch.equal(program(x), before)

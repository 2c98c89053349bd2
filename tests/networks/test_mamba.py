"""The selective scan against its formula, SS2D against the published one, and MambaDRCT's start."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from drct.networks import create_network
from drct.networks.mamba_drct import SS2D
from drct.networks.scan import STATES_CPU, STEPS, selective_scan, sequential_scan

GROUPS, CHANNELS, N = 2, 40, 16
SEGMENTS = STATES_CPU // (GROUPS * CHANNELS * N)  # that one block of one sequence has
BLOCK = SEGMENTS * STEPS


def scan_arguments(batch: int, length: int, groups: int, channels: int, n: int) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(batch, length, groups, channels)] * 2 + [(groups, channels, n)] + [(batch, length, groups, n)] * 2
    u, delta, a, b, c = (torch.randn(shape) for shape in shapes)
    return [t.requires_grad_() for t in (u, F.softplus(delta - 2), -torch.exp(a), b, c)]


@pytest.mark.parametrize(
    ("batch", "length"), [(1, 1), (2, STEPS - 1), (1, STEPS + 1), (2, BLOCK // 2 + 5), (1, BLOCK + 7), (SEGMENTS + 1, 40)]
)
def test_values_and_gradients_of_the_scan(batch: int, length: int) -> None:
    arguments = scan_arguments(batch, length, GROUPS, CHANNELS, N)
    ours, expected = selective_scan(*arguments), sequential_scan(*arguments)
    assert (ours - expected).abs().max() < 1e-4
    dy = torch.randn_like(ours)
    for a, b in zip(torch.autograd.grad(ours, arguments, dy), torch.autograd.grad(expected, arguments, dy), strict=True):
        assert (a - b).abs().max() < 1e-4 * b.abs().max().clamp(min=1)


def test_the_scan_stays_in_float32_under_autocast() -> None:
    arguments = scan_arguments(1, 2 * STEPS, GROUPS, CHANNELS, N)
    expected = selective_scan(*arguments)
    dy = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, arguments, dy)
    with torch.autocast("cpu", torch.bfloat16):
        ours = selective_scan(*arguments)
        gradients = torch.autograd.grad(ours, arguments, dy)
    assert torch.equal(ours, expected)
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted, strict=True))


def test_strong_decay_stays_finite() -> None:
    """Steps at which exp underflows: a division by accumulated decays would overflow here."""
    u, _, a, b, c = scan_arguments(1, 3 * STEPS, 1, 3, 4)
    delta = torch.full_like(u, 50.0, requires_grad=True)
    arguments = (u, delta, a, b, c)
    ours = selective_scan(*arguments)
    assert torch.allclose(ours, sequential_scan(*arguments), rtol=1e-5, atol=1e-4)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(ours.sum(), arguments))


def test_kept_memory_is_far_below_one_state_per_position() -> None:
    arguments = scan_arguments(1, 4 * BLOCK, GROUPS, CHANNELS, N)
    kept = 0

    def pack(t: Tensor) -> Tensor:
        nonlocal kept
        kept += t.numel()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        selective_scan(*arguments)
    inputs = sum(t.numel() for t in arguments)
    assert inputs <= kept < inputs + 0.01 * 4 * BLOCK * GROUPS * CHANNELS * N


@pytest.mark.parametrize("case", ["ss2d_expand1", "ss2d_expand2"])
def test_ss2d_equals_the_published_one(case: str, shared: Path, seeded: ModuleType) -> None:
    facts = json.loads((shared / "reference" / "ss2d.json").read_text())[case]
    block = SS2D(facts["d_model"], facts["d_state"], facts["expand"])
    assert {name: list(t.shape) for name, t in block.state_dict().items()} == facts["parameters"]
    seeded.fill(block)
    reference = np.load(shared / "reference" / "ss2d.npz")
    x, y = (torch.from_numpy(reference[f"{case}/{part}"]) for part in "xy")
    with torch.inference_mode():
        assert (block(x) - y).abs().max() < 1e-4


def test_parameter_count() -> None:
    network = create_network("mamba_drct")
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == 14.66


def test_initialization_survives() -> None:
    network = create_network("mamba_drct", embed_dim=16, depths=[1], gc=8)
    scans = [module for module in network.modules() if isinstance(module, SS2D)]
    assert len(scans) == 5
    for scan in scans:
        assert torch.allclose(scan.A_logs.exp(), torch.arange(1.0, 17.0).expand_as(scan.A_logs))
        assert (scan.Ds == 1).all()
        steps = F.softplus(scan.dt_projs_bias)
        assert steps.min() > 0.99e-3
        assert steps.max() < 1.01e-1
        assert steps.log().std() > 0.5  # a uniform logarithm has log(100) / sqrt(12) = 1.3
        assert scan.x_proj_weight.abs().max() <= 1 / math.sqrt(scan.d_inner)


def test_it_learns() -> None:
    """A few steps on one pair: the loss falls far below its start, through scans and initialization alike."""
    torch.manual_seed(0)
    network = create_network("mamba_drct", embed_dim=16, depths=[1], gc=8, scale=2, drop_path_rate=0.0)
    lq = torch.rand(1, 3, 4, 4)
    gt = F.interpolate(lq, scale_factor=2, mode="bicubic")
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.l1_loss(network(lq), gt)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_bfloat16_network_scans_in_float32() -> None:
    network = create_network("mamba_drct", embed_dim=16, depths=[1], gc=8, scale=2).eval()
    x = torch.rand(1, 3, 12, 8)
    with torch.inference_mode():
        exact = network(x)
        rounded = network.to(torch.bfloat16)(x.bfloat16())
    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).abs().max() < 0.05

"""The C kernel of the selective scan against the formula, and the networks that use C kernels in training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from drct.engine import native
from drct.engine.accelerate import accelerate
from drct.networks import create_network
from drct.networks.mamba_drct import from_sequences, to_sequences
from drct.networks.scan import sequential_scan


@pytest.fixture(autouse=True, scope="module")
def kernels() -> None:
    if reason := native.scan_available():
        pytest.skip(reason)


@pytest.mark.parametrize(("batch", "height", "width", "dim"), [(1, 1, 1, 1), (2, 5, 9, 16), (1, 7, 11, 37), (2, 8, 4, 33)])
@pytest.mark.parametrize("threads", [1, 5])
def test_values_and_gradients(batch: int, height: int, width: int, dim: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(0)
    u = torch.randn(batch, height, width, dim, requires_grad=True)
    delta = F.softplus(torch.randn(batch, height, width, 4, dim) - 1).requires_grad_()
    a = (-torch.exp(torch.randn(4, dim, 16))).requires_grad_()
    b, c = (torch.randn(batch, height, width, 4, 16, requires_grad=True) for _ in range(2))
    ordered = [to_sequences(t) for t in (u.unsqueeze(3).expand_as(delta), delta, b, c)]
    expected = from_sequences(sequential_scan(ordered[0], ordered[1], a, ordered[2], ordered[3]), height, width)
    ours = native.selective_scan(u, delta, a, b, c)
    assert (ours - expected).abs().max() < 1e-4
    dy = torch.randn_like(ours)
    arguments = (u, delta, a, b, c)
    for g, wanted in zip(torch.autograd.grad(ours, arguments, dy), torch.autograd.grad(expected, arguments, dy), strict=True):
        assert (g - wanted).abs().max() < 1e-4 * wanted.abs().max().clamp(min=1)


def test_strong_decay_stays_finite() -> None:
    u = torch.randn(1, 4, 8, 16, requires_grad=True)
    delta, a = torch.full((1, 4, 8, 4, 16), 80.0), torch.full((4, 16, 16), -16.0)
    b = c = torch.ones(1, 4, 8, 4, 16)
    y = native.selective_scan(u, delta, a, b, c)
    # nothing of the past survives: each direction gives N * delta * u
    assert torch.allclose(y, 4 * 16 * 80 * u, rtol=1e-5)
    assert torch.isfinite(torch.autograd.grad(y.sum(), u)[0]).all()


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="do not go with u"):
        native.selective_scan(*(torch.zeros(1, 4, 4, 8) for _ in range(2)), *(torch.zeros(4, 8, 16) for _ in range(3)))


WINDOWS: dict[str, Any] = {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 2], "window_size": 8}


@pytest.mark.parametrize(
    ("name", "options", "done"),
    [
        ("mamba_drct", {"embed_dim": 20, "gc": 7, "depths": [1, 1]}, "native selective scan in 10 blocks"),
        ("swinir", WINDOWS, "native window attention in 4 blocks"),
        ("hat", WINDOWS | {"compress_ratio": 4, "squeeze_factor": 4}, "native window attention in 4 blocks"),
    ],
)
def test_accelerated_networks_have_the_same_values_and_gradients(name: str, options: dict[str, Any], done: str) -> None:
    torch.manual_seed(0)
    plain, fast = (create_network(name, scale=2, drop_path_rate=0.0, **options) for _ in range(2))
    fast.load_state_dict(plain.state_dict())
    assert accelerate(fast)[-1] == done  # before it, what whole blocks do where the processor multiplies bfloat16
    x = torch.rand(2, 3, 16, 13)
    expected, ours = plain(x), fast(x)
    assert (expected - ours).abs().max() < 1e-5
    expected.square().mean().backward()
    ours.square().mean().backward()
    for (key, p), q in zip(plain.named_parameters(), fast.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert (p.grad - q.grad).abs().max() <= 1e-3 * p.grad.abs().max() + 1e-7, key


def test_other_state_sizes_keep_the_plain_scan() -> None:
    network = create_network("mamba_drct", embed_dim=8, gc=4, depths=[1], d_state=4)
    assert accelerate(network) == ["plain torch scan in 5 blocks: the native one has states of 16 numbers"]

"""Memory of activations and the table of costs."""

from __future__ import annotations

import gc
import time

import pytest
import torch

from drct.engine.memory import LiveBytes
from drct.explain.cost import activation_memory, cost_table, network_cost
from drct.networks import create_network
from drct.networks.base import SuperResolutionNetwork


class Plain(SuperResolutionNetwork):
    """Two pointwise layers whose memory can be counted by hand."""

    def __init__(self) -> None:
        super().__init__(None, scale=1, in_chans=3, pad_multiple=1, img_range=1.0)
        self.wide = torch.nn.Conv2d(3, 10, 1)
        self.narrow = torch.nn.Conv2d(10, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.narrow(torch.relu(self.wide(x)))


def test_memory_by_hand() -> None:
    pixels = 4 * 8 * 16  # bytes of one channel
    memory = activation_memory(Plain(), 8, 16)
    assert memory.inference == 20 * pixels  # before and after relu; the input belongs to the caller
    assert memory.gradients == memory.training == 13 * pixels  # relu keeps its result, the first convolution its input


def test_memory_grows_with_the_image_and_weights_want_more() -> None:
    network = create_network("drct", scale=2, embed_dim=8, gc=4, depths=[1], num_heads=[2], window_size=4).eval()
    small, large = activation_memory(network, 8, 8), activation_memory(network, 16, 16)
    assert 3 * small.training < large.training
    assert 0 < large.gradients < large.training
    assert 0 < large.inference < large.training


@pytest.mark.parametrize(("name", "giga"), [("drct", 74.3), ("drct_l", 143.9)])
def test_table_shows_what_was_measured(name: str, giga: float) -> None:
    cost = network_cost(name, create_network(name, scale=4).eval())
    head, row = cost_table([cost])
    assert head.split()[:5] == ["model", "scale", "size", "parameters", "multiply-adds"]
    assert head.endswith("  memory to run  memory to train")
    assert f" {giga} G " in row
    assert row.endswith(f"{cost.memory.training / 2**20:,.1f} MiB")
    assert row.startswith(name)
    values = cost.as_dict()
    kinds = [values[f"multiply_adds_{kind}"] for kind in ("convolution", "linear", "attention")]
    assert sum(kinds) == values["multiply_adds"] == pytest.approx(giga * 1e9, rel=1e-3)


def test_live_bytes_by_hand() -> None:
    """What died before or is still there counts, views do not, whatever the number of tensors."""
    with LiveBytes() as live:
        first = torch.zeros(100)
        view = first[10:]
        del first
        torch.ones(50)
        assert live.peak == 4 * 150
        many = [torch.zeros(10) for _ in range(2000)]
        assert live.peak == 4 * (100 + 20_000)
        del many, view
        torch.zeros(1000)
        assert live.peak == 4 * (100 + 20_000)
        assert torch.zeros(30_000).numel() == live.peak / 4


def test_counting_many_tensors_takes_time_by_their_number() -> None:
    def seconds(count: int) -> float:
        start = time.process_time()
        with LiveBytes():
            held = [torch.empty(1, device="meta") for _ in range(count)]
        assert len(held) == count
        return time.process_time() - start

    gc.disable()  # a collection would look through all that the tests before have left
    try:
        few, many = (min(seconds(count) for _ in range(3)) for count in (500, 4000))
    finally:
        gc.enable()
    assert many < 12 * few


def test_memory_of_scans() -> None:
    """What a network of scans keeps is counted without running them."""
    network = create_network("mamba_drct", scale=2, embed_dim=8, gc=4, depths=[1]).eval()
    x = torch.rand(1, 3, 24, 40, requires_grad=True)
    kept: dict[int, int] = {}
    weights = {p.untyped_storage()._cdata for p in network.parameters()}
    held = []

    def pack(t: torch.Tensor) -> torch.Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage.nbytes()
            held.append(storage)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        network(x)
    memory = activation_memory(network, 24, 40)
    assert memory.training == pytest.approx(sum(kept.values()), rel=0.1)
    with torch.no_grad(), LiveBytes() as live:
        network(x)
    assert memory.inference == pytest.approx(live.peak, rel=0.03)
    head, scans, none = cost_table([network_cost("mamba", network, 24, 40), network_cost("p", Plain())])
    column = head.index("scan") + len("scan")
    assert scans[:column].endswith(" M")
    assert none[:column].endswith("  0")
    assert "scan" not in cost_table([network_cost("p", Plain())])[0]

"""Muon: what it orthogonalises, that it learns, and that its state survives."""

import copy

import pytest
import torch

from drct.networks import create_network
from drct.training.optimizers import Muon, create_optimizer, orthogonalise
from drct.training.options import Optimizer


@pytest.mark.parametrize("shape", [(16, 48), (16, 80), (96, 20)])
def test_orthogonalise_brings_singular_values_to_about_one(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_orthogonalise_keeps_the_directions():
    matrix = torch.randn(1, 16, 40, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix[0], full_matrices=False)
    inside = u.T @ orthogonalise(matrix)[0] @ v.T
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-4


def test_layers_are_sorted_by_kind():
    network = create_network("drct_light", scale=4)
    muon = Muon(network, 1e-3)
    names = {id(p): name for name, p in network.named_parameters()}
    matrices = {names[id(p)] for p in muon.param_groups[0]["params"]}
    others = {names[id(p)] for p in muon.param_groups[1]["params"]}
    assert {"layers.0.swin1.attn.qkv.weight", "layers.0.adjust1.weight", "conv_after_body.weight"} <= matrices
    assert {"conv_first.weight", "norm.weight", "layers.0.swin1.attn.relative_position_bias_table"} <= others
    assert len(matrices) + len(others) == len(names)


@pytest.mark.parametrize(("kind", "lr"), [("Adam", 3e-3), ("AdamW", 3e-3), ("Muon", 1e-2)])
def test_every_kind_lowers_a_loss(kind, lr):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.GELU(), torch.nn.Linear(32, 8))
    x, y = torch.randn(64, 32), torch.randn(64, 8)
    optimizer = create_optimizer(model, Optimizer(type=kind, lr=lr))
    losses = []
    for _ in range(60):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_a_loaded_state_continues_to_the_bit():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 8))
    x = torch.randn(16, 32)

    def steps(model, optimizer, number):
        for _ in range(number):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    optimizer = Muon(model, 1e-2)
    steps(model, optimizer, 3)
    twin = copy.deepcopy(model)
    other = Muon(twin, 1e-2)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(model, optimizer, 3)
    steps(twin, other, 3)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)

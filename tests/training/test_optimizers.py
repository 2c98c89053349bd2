"""Muon: what it orthogonalises, that it learns, and that its state survives."""

import copy
import math

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


def test_steps_of_muon_by_hand():
    layer = torch.nn.Linear(64, 16, bias=False)
    torch.nn.init.ones_(layer.weight)
    muon = Muon(layer, 0.01, weight_decay=0.5)
    left, right = torch.eye(16, 64), torch.eye(16, 64).roll(16, 1)
    # all 16 singular values of these gradients, and of their sums, are equal: a quarter each of a matrix of norm 1
    value = 0.25
    for _ in range(5):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    size = 0.01 * 0.2 * 8 * value  # 8 is the root of the longer side

    layer.weight.grad = 3 * left
    muon.step()
    expected = 0.995 - size * left
    assert torch.allclose(layer.weight, expected, atol=1e-6)

    # the momentum is 0.0475 left + 0.05 right now, and the step looks ahead: 5% of the gradient, 95% of the momentum
    layer.weight.grad = 3 * right
    muon.step()
    ahead = 0.95 * 0.0475 * left + (0.05 + 0.95 * 0.05) * right
    expected = 0.995 * expected - size * ahead / math.hypot(0.95 * 0.0475, 0.05 + 0.95 * 0.05)
    assert torch.allclose(layer.weight, expected, atol=1e-6)


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

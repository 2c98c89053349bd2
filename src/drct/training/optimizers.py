"""Optimizers: Adam and AdamW as torch has them, and Muon for short runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from drct.training.options import Optimizer

# Quintic x -> a x + b x^3 + c x^5 whose repetition pulls singular values in (0, 1] to about 1 (Jordan et al. 2024, "Muon").
QUINTIC = (3.4445, -4.7750, 2.0315)
REPETITIONS = 5
MOMENTUM = 0.95
ADAM_LIKE = 0.2  # root mean square of a usual Adam step at learning rate 1, so both kinds of parameters share one rate
NARROW = 16  # matrices with a side below this stay with Adam: there is little to orthogonalise


def create_optimizer(network: nn.Module, options: Optimizer) -> torch.optim.Optimizer:
    """The optimizer of an option file for all parameters of ``network``."""
    if options.type == "Muon":
        return Muon(network, options.lr, options.betas, options.weight_decay)
    kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[options.type]
    return kind(network.parameters(), lr=options.lr, betas=options.betas, weight_decay=options.weight_decay, fused=True)


class Muon(torch.optim.Optimizer):
    """Momentum whose steps are orthogonalised for the weights of linear and convolution layers; AdamW for all others.

    A step has the size of an Adam step at the same learning rate (Liu et al. 2025, arXiv 2502.16982), but moves all directions
    of a weight matrix alike. At the same number of iterations short runs come further than with Adam.

    Args:
        network: its parameters are sorted by the kind of their layer.
        lr: learning rate of both kinds.
        betas: AdamW's, for biases, norms, position biases and matrices with a side below 16.
        weight_decay: decoupled, relative to the learning rate.
    """

    def __init__(self, network: nn.Module, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0) -> None:
        matrices = list(_matrices(network))
        chosen = {id(p) for p in matrices}
        others = [p for p in network.parameters() if id(p) not in chosen]
        groups = [{"params": matrices, "orthogonal": True}, {"params": others, "orthogonal": False}]
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
        super().__init__([group for group in groups if group["params"]], defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step along the gradients at hand; ``closure`` is not used."""
        for group in self.param_groups:
            ready = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in ready if p.grad is not None]
            if not ready:
                continue
            if group["weight_decay"]:
                torch._foreach_mul_(ready, 1 - group["lr"] * group["weight_decay"])
            (self._orthogonal if group["orthogonal"] else self._adam)(ready, gradients, group)

    # Many small tensors at a time: one by one, a GPU would spend more time on launches than on forward and backward.

    def _orthogonal(self, parameters: list[nn.Parameter], gradients: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        ahead = torch._foreach_lerp(gradients, momenta, MOMENTUM)
        # matrices of one shape share their products
        by_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)
        for p, direction in zip(parameters, ahead, strict=True):
            matrix = direction.flatten(1)
            by_shape[(matrix.shape[0], matrix.shape[1])].append((p, matrix))
        for shape, members in by_shape.items():
            steps = orthogonalise(torch.stack([matrix for _, matrix in members]))
            size = group["lr"] * ADAM_LIKE * math.sqrt(max(shape))
            alike = [step.view_as(p) for (p, _), step in zip(members, steps, strict=True)]
            torch._foreach_add_([p for p, _ in members], alike, alpha=-size)

    def _adam(self, parameters: list[nn.Parameter], gradients: list[Tensor], group: dict[str, Any]) -> None:
        first, second = group["betas"]
        for p in parameters:
            if not self.state[p]:
                self.state[p].update(step=0, mean=torch.zeros_like(p), square=torch.zeros_like(p))
            self.state[p]["step"] += 1
        states = [self.state[p] for p in parameters]
        means, squares = [state["mean"] for state in states], [state["square"] for state in states]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - second)
        scales = torch._foreach_div(squares, [1 - second ** state["step"] for state in states])
        torch._foreach_sqrt_(scales)
        torch._foreach_add_(scales, 1e-8)
        torch._foreach_addcdiv_([*parameters], means, scales, [-group["lr"] / (1 - first ** state["step"]) for state in states])


def orthogonalise(matrices: Tensor) -> Tensor:
    """Nearly the closest semi-orthogonal matrix of each of ``(N, R, C)``: singular values end between about 0.7 and 1.2."""
    wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
    x = wide / wide.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None]
    a, b, c = QUINTIC
    for _ in range(REPETITIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if matrices.shape[1] > matrices.shape[2] else x


def _matrices(network: nn.Module) -> Iterable[nn.Parameter]:
    for module in network.modules():
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            weight = module.weight
            if isinstance(weight, nn.Parameter) and min(weight.shape[:2]) >= NARROW:
                yield weight

"""Hand-written backward passes, which have no derivatives of their own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from drct.errors import OptionError

Backward = Callable[..., tuple[Tensor | None, ...]]


def first_derivative_only(backward: Backward) -> Backward:
    """For ``backward`` of an operation: an error where its result is to be differentiated again (``create_graph=True``).

    ``torch.autograd.function.once_differentiable`` refuses only what flows through the incoming gradients, so that second
    derivatives by the inputs would lack a part in silence.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise OptionError(
                "create_graph=True: kernels and scans have no second derivatives; take a network without accelerate() or scans"
            )
        return backward(ctx, *gradients)

    return checked

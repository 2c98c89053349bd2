"""Networks with weights that leave no term of the formulas unused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from drct.networks import SuperResolutionNetwork, create_network


@pytest.fixture(scope="session")
def build() -> Callable[..., SuperResolutionNetwork]:
    """``create_network`` in eval mode with random weights, biases and bias tables large enough to matter."""

    def build(name: str, **options: object) -> SuperResolutionNetwork:
        network = create_network(name, **options).eval()
        generator = torch.Generator().manual_seed(0)
        for key, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if key.endswith("relative_position_bias_table"):
                parameter.data = noise
            elif parameter.dim() == 1:
                parameter.data = 0.1 * noise + ("norm" in key and key.endswith("weight"))
            else:
                parameter.data = 0.8 * noise / parameter[0].numel() ** 0.5
        return network

    return build

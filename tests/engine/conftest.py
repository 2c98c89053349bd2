"""Networks with weights that leave no term of the formulas unused."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from drct.engine.gpu.tf32 import without_tf32
from drct.networks import SuperResolutionNetwork, create_network


@pytest.fixture(autouse=True)
def exact_references(request: pytest.FixtureRequest) -> Iterator[None]:
    """What results are held against is computed in full float32 on a GPU too; tests that show who takes care of that say so."""
    if not torch.cuda.is_available() or request.node.get_closest_marker("with_tf32"):
        yield
        return
    with without_tf32():
        yield


@pytest.fixture(autouse=True, scope="module")
def two_threads() -> Iterator[None]:
    """How kernels share their work shows with more than one thread only; with ``make test`` each test would have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


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

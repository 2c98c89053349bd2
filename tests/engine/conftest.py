"""Networks with weights that leave no term of the formulas unused."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from drct.engine.digits import in_all_digits
from drct.engine.native.build import library_or_reason
from drct.networks import SuperResolutionNetwork, create_network


@pytest.fixture(autouse=True)
def exact_references(request: pytest.FixtureRequest) -> Iterator[None]:
    """What results are held against is computed in full float32 on a GPU too; tests that show who takes care of that say so."""
    if not torch.cuda.is_available() or request.node.get_closest_marker("with_tf32"):
        yield
        return
    with in_all_digits("cuda"):
        yield


@pytest.fixture(autouse=True, scope="module")
def two_threads() -> Iterator[None]:
    """How kernels share their work shows with more than one thread only; with ``make test`` each test would have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def leave_products_to() -> Iterator[Callable[[str], None]]:
    """Has kernels form their products of bfloat16 in the "matrix unit" or in "vectors"; skips where there is none."""
    libraries = [library_or_reason(source) for source in ("swin_bf16.c", "swin_layer_bf16.c")]

    def choose(unit: str) -> None:
        for library in libraries:
            if isinstance(library, str):
                pytest.skip(library)
            if not library.drct_bf16_products():
                pytest.skip("the processor has no bfloat16 products (AVX512_BF16)")
            if unit == "matrix unit" and not library.drct_matrix_unit():
                pytest.skip("the processor has no matrix unit (AMX)")
            library.drct_use_matrix_unit(unit == "matrix unit")

    yield choose
    for library in libraries:
        if not isinstance(library, str):
            library.drct_use_matrix_unit(1)


@pytest.fixture(params=["matrix unit", "vectors"])
def bf16_products(request: pytest.FixtureRequest, leave_products_to: Callable[[str], None]) -> None:
    """Either way of forming products of bfloat16."""
    leave_products_to(request.param)


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

"""GPU kernels and the GPU program, through Triton's interpreter where there is no GPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from drct.networks import SuperResolutionNetwork
from drct.networks.window_attention import WindowAttention, window_partition, window_reverse

HALF = "bf16" if torch.cuda.is_available() else "fp16"  # the interpreter cannot multiply bf16 matrices
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

TINY = {"embed_dim": 24, "depths": [1], "num_heads": [2], "window_size": 8, "gc": 8}


@pytest.fixture(scope="module")
def kernels() -> object:
    pytest.importorskip("triton")
    from drct.engine.gpu import kernels

    return kernels


@pytest.mark.parametrize(("window", "heads", "head_dim", "shift"), [(8, 2, 16, 0), (8, 1, 30, 4), (16, 1, 24, 8), (4, 2, 12, 2)])
def test_window_attention(window: int, heads: int, head_dim: int, shift: int, kernels: object) -> None:
    torch.manual_seed(0)
    b, h, w = 2, 2 * window, 3 * window
    qkv = torch.randn(b, h, w, 3 * heads * head_dim)
    attn = WindowAttention(heads * head_dim, window, heads, shift, qk_scale=1.0)
    bias = torch.randn(heads, window**2, window**2)
    x = window_partition(qkv.roll((-shift, -shift), (1, 2)), window)
    q, k, v = x.view(*x.shape[:4], 3, heads, head_dim).permute(4, 0, 1, 2, 5, 3, 6)
    scores = q @ k.transpose(-1, -2) + bias
    if shift:
        kind = torch.zeros(h // window, w // window, dtype=torch.long)
        kind[:, -1] += 1
        kind[-1] += 2
        scores = scores + attn.masks[kind][None, :, :, None]
    expected = window_reverse((scores.softmax(-1) @ v).transpose(3, 4).flatten(4), window).roll((shift, shift), (1, 2))
    rows = qkv.clone()
    rows[..., : heads * head_dim] *= kernels.LOG2E
    out = kernels.window_attention(rows.view(b * h * w, -1).to(DEVICE), (bias * kernels.LOG2E).to(DEVICE), (b, h, w), window, shift)
    assert (out.cpu().view(expected.shape) - expected).abs().max() < 1e-4


def test_norms_read_and_write_columns_of_wider_buffers(kernels: object) -> None:
    torch.manual_seed(0)
    buffer, branch = 3 + 2 * torch.randn(37, 40, device=DEVICE), torch.randn(37, 24, device=DEVICE)
    weight, bias = torch.randn(24, device=DEVICE), torch.randn(24, device=DEVICE)
    x = buffer[:, :24]
    y = kernels.layer_norm(x, weight, bias, 1e-5, torch.float32)
    assert (y - F.layer_norm(x, (24,), weight, bias)).abs().max() < 1e-5
    total = torch.zeros(37, 50, device=DEVICE)
    z = kernels.add_layer_norm(x, branch, total[:, :24], weight, bias, 1e-5, torch.float32)
    assert torch.equal(total[:, :24], x + branch)
    assert not total[:, 24:].any()
    assert (z - F.layer_norm(x + branch, (24,), weight, bias)).abs().max() < 1e-5
    half = kernels.layer_norm(x, weight, bias, 1e-5, torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert (half - y).abs().max() < 0.05


def test_elementwise_kernels(kernels: object) -> None:
    torch.manual_seed(0)
    x = torch.randn(33, 20, device=DEVICE)
    buffer = torch.ones(33, 30, device=DEVICE)
    kernels.gelu_into(x, buffer[:, 4:24])
    assert (buffer[:, 4:24] - F.gelu(x)).abs().max() < 1e-6
    kernels.leaky_relu_into(x, buffer[:, 4:24], 0.2)
    assert (buffer[:, 4:24] - F.leaky_relu(x, 0.2)).abs().max() < 1e-6
    kernels.add_into(x, buffer[:, 4:24])
    assert (buffer[:, 4:24] - F.leaky_relu(x, 0.2) - x).abs().max() < 1e-6
    assert (buffer[:, :4] == 1).all()
    assert (buffer[:, 24:] == 1).all()


@pytest.mark.parametrize(("options", "upscale"), [({}, 2), ({"resi_connection": "identity", "patch_norm": False}, 3)])
def test_program(options: dict, upscale: int, build: Callable[..., SuperResolutionNetwork], kernels: object) -> None:
    from drct.engine.gpu.drct import GPUDRCTProgram

    network = build("drct", **TINY, **options, scale=upscale)
    program = GPUDRCTProgram(network, DEVICE, HALF, graphs=DEVICE.type == "cuda")
    x = torch.rand(2, 3, 9, 16)
    y = program(x).cpu()
    with torch.inference_mode():
        error = (y - network(x)).square().mean()
    assert y.shape == (2, 3, 9 * upscale, 16 * upscale)
    assert -10 * error.log10() >= 50
    assert program.memory_estimate(64, 64) > 4 * 64 * 64 * 56
    assert any("Triton" in line for line in program.describe())


def test_program_in_float32_has_the_values_of_the_network(build: Callable[..., SuperResolutionNetwork], kernels: object) -> None:
    from drct.engine.gpu.drct import GPUDRCTProgram

    network = build("drct", **TINY, upsampler="pixelshuffledirect")
    program = GPUDRCTProgram(network, DEVICE, "fp32", graphs=False)
    x = torch.rand(1, 3, 17, 9)
    with torch.inference_mode():
        assert (program(x).cpu() - network(x)).abs().max() <= 1e-4

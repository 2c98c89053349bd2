"""Programs against their networks, and what a program promises besides its values."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from drct import engine
from drct.engine import compiler
from drct.engine.bias_table import _expanded_index as expand_index
from drct.engine.cpu import attention, blocks, linear
from drct.engine.cpu.body import BodyProgram
from drct.engine.memory import LiveBytes
from drct.engine.native.build import library_or_reason
from drct.engine.program import PlainProgram
from drct.errors import DeviceError, OptionError, OutOfMemoryError
from drct.networks import SuperResolutionNetwork

Build = Callable[..., SuperResolutionNetwork]

SMALL = {"embed_dim": 60, "depths": [6], "num_heads": [6], "window_size": 8, "gc": 16}
TINY = {"embed_dim": 24, "depths": [1], "num_heads": [2], "window_size": 8, "gc": 8}
CASES = {
    "drct_light": ("drct_light", {"depths": [6] * 2, "num_heads": [3] * 2}),
    "small": ("drct", SMALL),
    "one group of drct, x3": ("drct", {"scale": 3, "depths": [6], "num_heads": [6]}),
    "x2": ("drct", {**TINY, "scale": 2}),
    "x8": ("drct", {**TINY, "scale": 8}),
    "without biases and convolution, other range": (
        "drct",
        {**TINY, "qkv_bias": False, "resi_connection": "identity", "img_range": 255.0, "patch_norm": False},
    ),
    "grey": ("drct", {**TINY, "in_chans": 1}),
    "window 4, plain attention": ("drct", {**TINY, "window_size": 4}),
    "own scale of scores": ("drct", {**TINY, "qk_scale": 0.3}),
    "swinir_light": ("swinir_light", {"depths": [2, 2], "num_heads": [6, 6], "scale": 2}),
    "swinir": ("swinir", {"embed_dim": 48, "depths": [2], "num_heads": [6], "scale": 3}),
    "swinir_real": ("swinir_real", {"embed_dim": 48, "depths": [3], "num_heads": [6]}),
    "swinir_real_large": ("swinir_real_large", {"embed_dim": 48, "depths": [2], "num_heads": [8], "scale": 2}),
    "swinir without first norm": ("swinir", {"embed_dim": 24, "depths": [1], "num_heads": [2], "patch_norm": False}),
    "one group of hat": ("hat", {"depths": [2], "num_heads": [6]}),
    "hat, other window, no convolution": (
        "hat",
        {"embed_dim": 48, "depths": [2, 1], "num_heads": [2, 3], "squeeze_factor": 6, "window_size": 8}
        | {"scale": 2, "resi_connection": "identity", "patch_norm": False, "overlap_ratio": 0.25, "qkv_bias": False},
    ),
    "hat without overlap": ("hat", {"embed_dim": 24, "depths": [1], "num_heads": [2], "squeeze_factor": 6, "overlap_ratio": 0.0}),
}
SIZES = [(1, 1, 1), (1, 16, 16), (2, 33, 50), (1, 20, 90)]


def difference(program: engine.Program, network: SuperResolutionNetwork, *size: int) -> float:
    """Largest difference between program and network on a random image, after checking shape and type."""
    n, h, w = size
    x = torch.rand(n, network.in_chans, h, w, generator=torch.Generator().manual_seed(1))
    y = program(x)
    assert y.shape == (n, network.in_chans, network.scale * h, network.scale * w)
    assert y.dtype == torch.float32
    with torch.inference_mode():
        return (y - network(x)).abs().max().item()


@pytest.mark.parametrize("case", CASES)
def test_float32_equals_the_network(case: str, build: Build) -> None:
    name, options = CASES[case]
    network = build(name, **options)
    program = engine.compile(network)
    assert isinstance(program, BodyProgram)
    for size in SIZES:
        assert difference(program, network, *size) <= 1e-4 / 4 * network.scale


@pytest.mark.parametrize("name", ["drct", "drct_l", "drct_light", "hat"])
def test_full_networks(name: str, build: Build) -> None:
    network = build(name)
    program = engine.compile(network)
    assert difference(program, network, 1, 24, 9) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "name",
    [
        "drct",
        "drct_l",
        "drct_xl",
        "drct_light",
        "hat",
        "hat_s",
        "hat_l",
        "swinir",
        "swinir_real",
        "swinir_real_large",
        "mamba_drct",
    ],
)
def test_full_networks_in_all_precisions(name: str, precision: str, build: Build) -> None:
    network = build(name)
    program = engine.compile(network, precision=precision)
    for size in ((1, 3, 48, 64), (2, 3, 17, 33)):
        x = torch.rand(size)
        with torch.inference_mode():
            error = program(x) - network(x)
        if precision == "fp32":
            assert error.abs().max() <= 1e-4
        assert -10 * error.square().mean().log10() >= 50


@pytest.mark.parametrize("case", ["small", "drct_light", "x2", "own scale of scores", "swinir", "one group of hat"])
def test_operator_by_operator(case: str, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs where whole blocks in one kernel are not the faster way."""
    monkeypatch.setattr(blocks.native, "swin_layer_available", lambda dtype: "switched off")
    name, options = CASES[case]
    network = build(name, **options)
    program = engine.compile(network)
    assert not any("Swin blocks" in line for line in program.describe())
    for size in SIZES:
        assert difference(program, network, *size) <= 1e-4 / 4 * network.scale


def test_small_maps_keep_all_threads_busy(build: Build) -> None:
    layer = engine.compile(build("drct", **SMALL)).layers[0]  # type: ignore[attr-defined]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert len(layer.parts(4)) >= 3 or not isinstance(layer, blocks.NativeSwinLayer)
        assert len(layer.parts(1)) == 1
        assert layer.parts(1000)[-1][1] == 1000
    finally:
        torch.set_num_threads(threads)


def test_without_native_kernel(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention.native, "available", lambda: "switched off")
    monkeypatch.setattr(blocks.native, "swin_layer_available", lambda dtype: "switched off")
    for name, options in (CASES["small"], CASES["drct_light"]):
        network = build(name, **options)
        program = engine.compile(network)
        assert any("torch in" in line for line in program.describe())
        assert difference(program, network, 2, 33, 50) <= 1e-4


def test_without_packed_layers(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "packing_available", lambda: "switched off")
    monkeypatch.setattr(blocks.native, "swin_layer_available", lambda dtype: "switched off")
    network = build("drct", **SMALL)
    assert difference(engine.compile(network), network, 1, 33, 50) <= 1e-4


@pytest.mark.parametrize("native", ["whole blocks", "attention", "nothing"])
@pytest.mark.parametrize("case", ["drct_light", "small", "one group of drct, x3", "swinir_light", "one group of hat"])
def test_bf16_is_close(case: str, native: str, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    if native != "whole blocks":
        monkeypatch.setattr(blocks.native, "swin_layer_available", lambda dtype: "switched off")
    if native == "nothing":
        monkeypatch.setattr(attention.native, "available", lambda: "switched off")
    name, options = CASES[case]
    network = build(name, **options)
    program = engine.compile(network, precision="bf16")
    x = torch.rand(1, 3, 40, 49)
    with torch.inference_mode():
        error = (program(x) - network(x)).square().mean()
    assert -10 * error.log10() >= 50


def test_threads_do_not_change_values(build: Build) -> None:
    network = build("drct", **SMALL)
    program = engine.compile(network)
    x = torch.rand(3, 3, 40, 72)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(program(x))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert (results[0] - other).abs().max() <= 1e-5
    single = torch.cat([program(image[None]) for image in x])
    assert (results[0] - single).abs().max() <= 1e-5


def test_program_keeps_its_own_weights(build: Build) -> None:
    network = build("drct", **TINY)
    program = engine.compile(network)
    x = torch.rand(1, 3, 9, 9)
    before = program(x)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert torch.equal(program(x), before)


def test_network_is_left_alone(build: Build) -> None:
    network = build("drct", **TINY).train().double()
    program = engine.compile(network)
    assert network.training
    assert next(network.parameters()).dtype == torch.float64
    assert difference(program, network.float().eval(), 1, 9, 9) <= 1e-4


def test_input_is_left_alone_and_may_have_any_type_and_strides(build: Build) -> None:
    network = build("drct", **TINY)
    program = engine.compile(network)
    x = torch.rand(1, 3, 16, 24)
    copy = x.clone()
    y = program(x)
    assert torch.equal(x, copy)
    assert torch.equal(program(x.transpose(2, 3).contiguous().transpose(2, 3)), y)
    assert torch.equal(program(x.contiguous(memory_format=torch.channels_last).requires_grad_()), y)
    assert torch.allclose(program(x.double()), y, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...], build: Build) -> None:
    program = engine.compile(build("drct", **TINY))
    with pytest.raises(OptionError, match="N, 3, H, W"):
        program(torch.zeros(shape))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", ["drct_light", "drct", "hat"])
def test_memory_estimate(name: str, precision: str, build: Build) -> None:
    """Close to the largest sum of tensors alive, counted on one thread, and never below half of it."""
    options = {"depths": [2 if name == "hat" else 6], "num_heads": [3 if name == "drct_light" else 6]}
    program = engine.compile(build(name, **options), precision=precision)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for size in ((64, 64, 1), (48, 80, 2)):
            x = torch.zeros(size[2], 3, *size[:2])
            with LiveBytes() as live:
                program(x)
            assert 0.9 * live.peak <= program.memory_estimate(*size) <= 2 * live.peak
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_networks_without_a_fast_program(precision: str, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "CPU_PROGRAMS", {})
    network = build("hat", embed_dim=24, depths=[2], num_heads=[2], squeeze_factor=6)
    program = engine.compile(network, precision=precision)
    assert isinstance(program, PlainProgram)
    assert "no faster program for hat on cpu" in program.describe()[0]
    assert difference(program, network, 1, 20, 17) <= (1e-4 if precision == "fp32" else 0.05)
    assert program.memory_estimate(64, 64) > 4 * 64 * 64 * 24


def test_absolute_positions_run_plain(build: Build) -> None:
    network = build("drct", **TINY, ape=True, img_size=16)
    program = engine.compile(network)
    assert isinstance(program, PlainProgram)
    assert "fix the input size" in program.describe()[0]
    assert engine.compile(network, precision="auto").precision == "fp32"
    assert difference(program, network, 1, 16, 16) <= 1e-4


def test_warm_up_and_attributes(build: Build) -> None:
    program = engine.compile(build("drct", **TINY, scale=2))
    assert program.warm_up(8, 8) > 0
    assert (program.scale, program.pad_multiple, program.device.type, program.precision, program.architecture) == (
        2,
        8,
        "cpu",
        "fp32",
        "drct",
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device": "gpu"}, "device 'gpu' is unknown"),
        ({"device": "cuda:99"}, "'cuda:99'"),
        ({"precision": "fp23"}, "did you mean 'fp32'"),
        ({"precision": "fp16"}, "for GPUs"),
    ],
)
def test_errors(arguments: dict[str, str], words: str, build: Build) -> None:
    with pytest.raises(DeviceError, match=words):
        engine.compile(build("drct", **TINY), **arguments)


class Failing(engine.Program):
    """Fails the way torch does."""

    error: Exception = torch.OutOfMemoryError("CUDA out of memory")

    def run(self, x: torch.Tensor) -> torch.Tensor:
        raise self.error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "cpu has not enough memory for 2 image"),
        (RuntimeError("CUDA error: out of memory\nCompile with ..."), "cpu has not enough memory for 2 image"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."), "cpu has not enough memory for 2 image"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
            "the computer has not enough memory",
        ),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: not enough memory: you tried to allocate 9"),
            "the computer has not enough memory",
        ),
    ],
)
def test_running_out_of_memory_is_one_clear_line(error: Exception, words: str, build: Build) -> None:
    program = Failing(build("drct", **TINY), torch.device("cpu"), "fp32")
    program.error = error
    with pytest.raises(OutOfMemoryError, match=words) as caught:
        program(torch.zeros(2, 3, 8, 9))
    assert "of 9 x 8: use a smaller tile" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_errors_are_not_taken_for_missing_memory(build: Build) -> None:
    program = Failing(build("drct", **TINY), torch.device("cpu"), "fp32")
    program.error = RuntimeError("something else")
    with pytest.raises(RuntimeError, match="something else"):
        program(torch.zeros(1, 3, 8, 8))


def test_without_a_compiler_the_slower_path_says_why(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    library_or_reason.cache_clear()
    try:
        assert "C compiler" in (attention.native.available() or "")
        network = build("drct", **TINY)
        program = engine.compile(network)
        assert any("torch in 5 blocks" in line and "C compiler" in line for line in program.describe())
        assert difference(program, network, 1, 9, 9) <= 1e-4
    finally:
        library_or_reason.cache_clear()


@pytest.mark.parametrize("name", ["drct", "swinir", "hat", "mamba_drct"])
def test_changing_the_network_afterwards_does_not_change_the_program(name: str, build: Build) -> None:
    options = {"drct": TINY, "mamba_drct": {"embed_dim": 12, "depths": [1] * 2, "gc": 4}}
    blocks = {"embed_dim": 24, "depths": [1], "num_heads": [2], "scale": 2}
    network = build(name, **options.get(name, blocks | ({"squeeze_factor": 6} if name == "hat" else {})))
    program, x = engine.compile(network), torch.rand(1, 3, 16, 16)
    before = program(x)
    for parameter in network.parameters():
        parameter.data.mul_(0.3)
    assert torch.equal(program(x), before)


@pytest.mark.parametrize(("error", "said"), [(NotImplementedError(), "NotImplementedError"), (RuntimeError("a\nb"), "a")])
def test_why_layers_cannot_be_packed_is_told(error: Exception, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise error

    linear.packing_available.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(_reorder_linear_weight=refuse))
    try:
        assert linear.packing_available() in (
            f"this build of torch cannot pack linear layers ({said})",
            "this build of torch has no oneDNN",
        )
    finally:
        linear.packing_available.cache_clear()


@pytest.mark.parametrize("setting", ["device", "double", "autocast"])
@pytest.mark.parametrize("name", ["drct", "hat", "mamba_drct"])
def test_what_a_caller_has_set_changes_nothing(setting: str, name: str, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"drct": TINY, "mamba_drct": {"embed_dim": 12, "depths": [1] * 2, "gc": 4}}
    blocks = {"embed_dim": 24, "depths": [1], "num_heads": [2], "squeeze_factor": 6, "patch_norm": False, "in_chans": 1}
    network = build(name, **options.get(name, blocks))
    x = torch.rand(1, network.in_chans, 20, 16)
    with torch.inference_mode():
        expected = network(x)
    expand_index.cache_clear()
    linear.packing_available.cache_clear()
    seen = torch.random.get_rng_state()
    try:
        if setting == "device":
            torch.set_default_device("meta")  # stands for a GPU
        elif setting == "double":
            torch.set_default_dtype(torch.float64)
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "autocast"):
            y = engine.compile(network)(x)
    finally:
        torch.set_default_device("cpu")
        torch.set_default_dtype(torch.float32)
    assert (y - expected).abs().max() <= 1e-4
    assert torch.equal(torch.random.get_rng_state(), seen)

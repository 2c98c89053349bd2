"""What a program's calls do not inherit from their caller, and what it measures; GPUs are pretended."""

from __future__ import annotations

import contextlib
import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from drct import engine
from drct.engine import digits
from drct.engine.digits import in_all_digits
from drct.engine.program import PlainProgram, Program
from drct.errors import DeviceError, OptionError
from drct.networks import SuperResolutionNetwork, create_network

Build = Callable[..., SuperResolutionNetwork]

TINY = {"embed_dim": 24, "depths": [1], "num_heads": [2], "window_size": 8, "gc": 8}
GPU = torch.device("cuda", 1)


def convolves_exactly() -> bool:
    return all(getattr(owner, name) == exact for owner, name, exact in digits._SWITCHES["cuda"])


class Looking(Program):
    """Remembers what it was run in."""

    def run(self, x: torch.Tensor) -> torch.Tensor:
        product = torch.ones(8, 8) @ torch.ones(8, 8)
        self.seen = (product.dtype, torch.is_inference_mode_enabled(), convolves_exactly())
        return x


@pytest.fixture
def exact_references() -> None:
    """Not here: the setting is what is looked at."""


@pytest.fixture
def current(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """The current GPU, last in the list, on a machine without one."""
    devices = [torch.device("cuda", 0)]

    @contextlib.contextmanager
    def device(device: torch.device) -> Iterator[None]:
        devices.append(device)
        yield
        devices.pop()

    monkeypatch.setattr(torch.cuda, "device", device)
    return devices


def test_autocast_of_the_caller_does_not_reach_a_program(build: Build) -> None:
    network = build("drct", **TINY)
    looking, program = Looking(network, torch.device("cpu"), "fp32"), engine.compile(network)
    plain = PlainProgram(network, torch.device("cpu"), "fp32", "for this test")
    x = torch.rand(1, 3, 9, 8)
    expected = [p(x) for p in (program, plain)]
    with torch.autocast("cpu", torch.bfloat16):
        looking(x)
        assert looking.seen[:2] == (torch.float32, True)
        assert all(torch.equal(p(x), y) for p, y in zip((program, plain), expected, strict=True))
        assert torch.mm(torch.ones(8, 8), torch.ones(8, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize(("precision", "exact"), [("fp32", True), ("bf16", False)])
def test_programs_on_a_gpu_make_it_the_current_one_and_those_in_float32_do_without_tf32(
    precision: str, exact: bool, build: Build, current: list[torch.device]
) -> None:
    program = Looking(build("drct", **TINY), GPU, precision)
    with program._alone():
        program.run(torch.zeros(1))
        assert current[-1] == GPU
    assert program.seen == (torch.float32, True, exact)
    assert len(current) == 1
    assert not convolves_exactly()


def test_on_a_cpu_the_settings_of_gpus_stay(build: Build, current: list[torch.device]) -> None:
    program = Looking(build("drct", **TINY), torch.device("cpu"), "fp32")
    with program._alone():
        program.run(torch.zeros(1))
        assert len(current) == 1
    assert not program.seen[2]


OLD_NAMES = ((torch.backends.cudnn, "allow_tf32", False), (torch.backends.cuda.matmul, "allow_tf32", False))


@pytest.mark.parametrize("switches", [digits._SWITCHES["cuda"], OLD_NAMES], ids=["this torch", "torch 2.8"])
def test_tf32_comes_back_when_the_last_thread_is_done(switches: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(digits._SWITCHES, "cuda", switches)
    assert not convolves_exactly()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with in_all_digits("cuda"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with in_all_digits("cuda"):
        thread.start()
        assert inside.wait(10)
        assert convolves_exactly()
    assert convolves_exactly()  # the other is at work still
    leave.set()
    thread.join()
    assert not convolves_exactly()


def test_tf32_comes_back_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="for this test"), in_all_digits("cuda"):
        raise RuntimeError("for this test")
    assert not convolves_exactly()


@pytest.mark.parametrize("switches", [digits._SWITCHES["cpu"], ((digits._Products(), "precision", "highest"),)], ids=["new", "old"])
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_the_precision_of_products_that_a_caller_set_does_not_reach_a_program_on_a_cpu(
    switches: Any, precision: str, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(digits._SWITCHES, "cpu", switches)
    program = PlainProgram(build("drct", **TINY), torch.device("cpu"), "fp32", "for this test", kernels=False)
    x = torch.rand(1, 3, 40, 40)
    expected = program(x)
    torch.set_float32_matmul_precision(precision)
    try:
        assert torch.equal(program(x), expected)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="this torch has no settings for single operators")
def test_what_the_library_is_told_later_reaches_its_operators() -> None:
    library: Any = torch.backends.mkldnn
    before = library.fp32_precision
    try:
        library.fp32_precision = "bf16"
        with in_all_digits("cpu"):
            assert (library.matmul.fp32_precision, library.conv.fp32_precision) == ("ieee", "ieee")
        library.fp32_precision = "ieee"
        assert (library.matmul.fp32_precision, library.conv.fp32_precision) == ("ieee", "ieee")
    finally:
        library.fp32_precision = before


def test_what_libraries_take_once_is_not_counted_per_pixel(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    program = PlainProgram(build("drct", **TINY), torch.device("cpu"), "fp32", "for this test")
    program.device = GPU
    allocated = peak = 1000

    def warm_up(height: int, width: int) -> None:
        nonlocal allocated, peak
        if allocated == 1000:
            allocated += 2**23  # a workspace, which stays
        peak = max(peak, allocated + 10 * height * width)

    def reset(device: torch.device) -> None:
        nonlocal peak
        peak = allocated

    monkeypatch.setattr(program, "warm_up", warm_up)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    assert program._measure_bytes_per_pixel() == pytest.approx(12)


def test_results_can_be_changed_and_take_part_in_a_loss(build: Build) -> None:
    program = engine.compile(build("drct", **TINY), "cpu", "fp32")
    y = program(torch.rand(1, 3, 8, 8))
    weight = torch.nn.Parameter(torch.ones(1))
    (weight * y).sum().backward()
    assert weight.grad is not None
    y.clamp_(0, 1)
    assert not y.requires_grad
    with pytest.raises(OptionError, match=r"input has shape \(0, 3, 8, 8\)"):
        program(torch.zeros(0, 3, 8, 8))


def test_what_is_no_network_and_no_image_is_refused() -> None:
    with pytest.raises(OptionError, match=r"network is Linear\(.*must be a network of drct"):
        engine.compile(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    program = Looking(create_network("drct_light", scale=2), torch.device("cpu"), "fp32")
    for image, kind in (
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "a tensor of torch.uint8"),
        (np.zeros((1, 3, 8, 8)), "numpy.ndarray"),
    ):
        with pytest.raises(OptionError, match=f"input is {kind}, but a tensor of floats within 0..1"):
            program(image)  # type: ignore[arg-type]


@pytest.mark.parametrize("to_copy", [copy.deepcopy, pickle.dumps])
def test_a_program_is_neither_copied_nor_pickled(to_copy: Callable[[Any], Any]) -> None:
    with pytest.raises(DeviceError, match="copy the network"):
        to_copy(engine.compile(create_network("drct", **TINY)))

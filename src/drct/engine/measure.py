"""How long programs take, how much memory they use, and how far that is from what the machine could do.

Contestants take turns, so that whatever else the machine does meets all of them, and medians are compared. The ceiling is measured
in the same run: matrix products alone, of the shapes that the program multiplies, without anything between them.
"""

from __future__ import annotations

import ctypes
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from drct.engine.compiler import compile
from drct.engine.cpu.body import BodyProgram
from drct.engine.cpu.linear import Linear
from drct.engine.cpu.workers import for_each
from drct.engine.devices import DTYPES
from drct.engine.folding import Affine
from drct.engine.program import PlainProgram, Program
from drct.errors import OutOfMemoryError, is_out_of_memory
from drct.networks import SuperResolutionNetwork
from drct.networks.cost import count_cost

Run = Callable[[Tensor], Tensor]
PRODUCTS = "matrix products alone"
ROWS = 2048  # of the products on a CPU, about what programs use


@dataclasses.dataclass
class Measurement:
    """What one contestant did.

    Attributes:
        seconds: of each turn, in order; empty when it failed.
        peak_bytes: largest growth of memory during one call; None where the system does not tell.
        difference: largest difference of its output to the first contestant's.
        failure: why it could not run.
    """

    name: str
    seconds: list[float] = dataclasses.field(default_factory=list)
    warm_up: float = 0.0
    peak_bytes: int | None = None
    difference: float = 0.0
    failure: str | None = None

    @property
    def median(self) -> float:
        """Median of all turns in seconds."""
        return statistics.median(self.seconds)


def take_turns(contestants: Mapping[str, Run], x: Tensor, turns: int, device: torch.device) -> list[Measurement]:
    """Let contestants upscale ``x`` in turns after a first call each that is not counted.

    On a single CPU thread seconds of processor time are counted, which other processes do not disturb, else those of the clock.
    """
    results = {name: Measurement(name) for name in contestants}
    reference: Tensor | None = None
    with torch.inference_mode():
        for name, run in contestants.items():
            result = results[name]
            try:
                with PeakMemory(device) as memory:
                    result.warm_up, y = _timed(run, x, device)
                    if isinstance(run, Program) and device.type == "cuda":
                        y = run(x)  # the second call is not like those that follow either: it captures a graph
            except (OutOfMemoryError, RuntimeError) as error:
                result.failure = _failure(error)
                continue
            result.peak_bytes = memory.peak
            reference = y if reference is None else reference
            if y.shape == reference.shape:
                result.difference = (y.float().cpu() - reference.float().cpu()).abs().max().item()
        del reference
        for _ in range(turns):
            for name, run in contestants.items():
                result = results[name]
                if result.failure is not None:
                    continue
                try:
                    result.seconds.append(_timed(run, x, device)[0])
                except (OutOfMemoryError, RuntimeError) as error:  # as when another program takes the memory meanwhile
                    result.failure, result.seconds = _failure(error), []
    return list(results.values())


def _failure(error: Exception) -> str:
    """Why a contestant is out, if it ran out of memory in drct's, torch's or a library's words."""
    if not isinstance(error, OutOfMemoryError) and not is_out_of_memory(error):
        raise error
    return str(error).splitlines()[0]


def ratio(slower: Measurement, faster: Measurement) -> float:
    """Median of the ratios within one turn."""
    return statistics.median(a / b for a, b in zip(slower.seconds, faster.seconds, strict=True))


def _timed(run: Run, x: Tensor, device: torch.device) -> tuple[float, Tensor]:
    clock = time.thread_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    _synchronize(device)
    start = clock()
    y = run(x)
    _synchronize(device)
    return clock() - start, y


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """Context; afterwards ``peak`` is by how many bytes memory grew at most: the GPU's, or on Linux the process's own."""

    peak: int | None = None

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before: int | None = torch.cuda.memory_allocated(self.device)
        else:
            self._before = _reset_peak()
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is None:
            return
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device) - self._before
        else:
            self.peak = max(0, _status("VmHWM") - self._before)


def _reset_peak() -> int | None:
    """Return freed memory to the system and start counting anew; the memory in use now, None where that is not possible."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return None  # not the GNU C library
    trim(0)
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    except OSError:
        return None


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":"))


def multiply_adds(program: Program, network: SuperResolutionNetwork, height: int, width: int, batch: int = 1) -> int:
    """Multiply-adds of one call: those of the folded matrices where the program folds, else the network's own."""
    plain = count_cost(network, height, width)
    if program.folded_multiply_adds is None:
        return batch * plain.multiply_adds
    # 1x1 convolutions of DRCT are part of its folded layers
    in_layers = sum(m.weight.numel() for n, m in network.named_modules() if isinstance(m, torch.nn.Conv2d) and ".adjust" in n)
    pixels = program.padded_pixels(height, width, batch)
    folded = program.folded_multiply_adds - in_layers - program.saved_multiply_adds
    return batch * plain.by_kind["convolution"] + folded * pixels


class Products:
    """Matrix products alone, as a contestant: what the machine could do.

    For a program on the CPU its own packed layers on chunks of rows, on its threads, about ``operations`` in all; else one
    large product.
    """

    def __init__(self, program: Program, operations: int) -> None:
        dtype, self.program = DTYPES[program.precision], program
        if isinstance(program, BodyProgram):
            shapes = program.products()
            once = sum(2 * ROWS * k * n for k, n in shapes)
            self.repeats = max(torch.get_num_threads(), round(operations / once))
            self.operations = self.repeats * once
            self.layers = [Linear(Affine(torch.randn(n, k), torch.zeros(n)), dtype) for k, n in shapes]
            self.rows = {k: torch.randn(ROWS, k).to(dtype) for k, _ in shapes}
            self.shapes = shapes
        else:
            size = 8192 if program.device.type == "cuda" else 1024
            self.operations = 2 * size**3
            self.a, self.b = (torch.randn(size, size).to(program.device, dtype) for _ in range(2))

    def __call__(self, x: Tensor) -> Tensor:
        if not isinstance(self.program, BodyProgram):
            return self.a @ self.b

        def work(_: int) -> None:
            for layer, (k, _n) in zip(self.layers, self.shapes, strict=True):
                layer(self.rows[k])

        for_each(work, range(self.repeats))
        return x


@dataclasses.dataclass
class Benchmark:
    """One network at one size.

    Attributes:
        size: (batch, height, width) in LR pixels.
        measurements: ours first, then the plain network, then the others.
        operations: floating point operations of our program, two for each multiply-add.
        ceiling: operations per second of :class:`Products`, measured in the same turns.
        share: of the ceiling that our program reached, the median over the turns.
    """

    network: str
    size: tuple[int, int, int]
    device: str
    precision: str
    measurements: list[Measurement]
    operations: int
    ceiling: float
    share: float
    kernels: list[str]

    @property
    def rate(self) -> float:
        """Operations per second of our program."""
        return self.operations / self.measurements[0].median

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        result = dataclasses.asdict(self) | {"rate": self.rate}
        for entry, measurement in zip(result["measurements"], self.measurements, strict=True):
            if measurement.failure is None:
                entry |= {"median": measurement.median, "ours_is_faster_by": ratio(measurement, self.measurements[0])}
        return result


def benchmark(
    name: str,
    network: SuperResolutionNetwork,
    *,
    size: tuple[int, int, int] = (1, 128, 128),
    device: str | torch.device = "auto",
    precision: str = "auto",
    turns: int = 5,
    others: Mapping[str, Run] | None = None,
    plain: bool = True,
) -> Benchmark:
    """Measure our program against the plain network in float32 and ``others`` on a random image.

    Args:
        size: (batch, height, width) in LR pixels.
        turns: calls of each contestant that count.
        plain: let the plain network take part.
        others: more contestants by name; each maps ``(N, C, H, W)`` float32 on the device to the upscaled batch.

    Raises:
        DeviceError: as :func:`drct.engine.compile`.
        OutOfMemoryError: our own program does not fit, or not even the image.
    """
    program = compile(network, device, precision)
    batch, height, width = size
    try:
        x = torch.rand(batch, network.in_chans, height, width).to(program.device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"no memory for {batch} images of {width} x {height}: measure with smaller ones") from None
    operations = 2 * multiply_adds(program, network, height, width, batch)
    products = Products(program, operations // 4)
    contestants: dict[str, Run] = {"drct": program}
    if plain:
        contestants["plain network, fp32"] = PlainProgram(network, program.device, "fp32", "for comparison", kernels=False)
    contestants |= {**(others or {}), PRODUCTS: products}
    *measurements, alone = take_turns(contestants, x, turns, program.device)
    if measurements[0].failure is not None:
        raise OutOfMemoryError(measurements[0].failure)
    work = operations / products.operations
    return Benchmark(
        network=name,
        size=size,
        device=str(program.device),
        precision=program.precision,
        measurements=measurements,
        operations=operations,
        ceiling=products.operations / alone.median,
        share=work * ratio(alone, measurements[0]),
        kernels=program.describe(),
    )


def environment(device: torch.device) -> dict[str, Any]:
    """What a measurement depends on: machine and versions."""
    from drct import __version__

    result: dict[str, Any] = {
        "drct": __version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        result |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return result


def cpu_name() -> str:
    """The processor's own name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    import platform

    known = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(known, platform.processor() or platform.machine())

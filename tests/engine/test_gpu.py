"""GPU kernels and the GPU program, through Triton's interpreter where there is no GPU."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from drct import engine
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


@pytest.mark.parametrize(("window", "border", "head_dim"), [(8, 2, 12), (4, 1, 16), (8, 4, 30)])
def test_overlapping_attention(window: int, border: int, head_dim: int, kernels: object) -> None:
    torch.manual_seed(0)
    b, h, w, heads, side = 2, 2 * window, 3 * window, 2, window + 2 * border
    qkv = torch.randn(b, h, w, 3, heads * head_dim)
    bias = torch.randn(heads, window**2, side**2)
    q = window_partition(qkv[..., 0, :].contiguous(), window).view(-1, window**2, heads, head_dim).transpose(1, 2)
    padded = F.pad(qkv[..., 1:, :].flatten(3), (0, 0, border, border, border, border))
    patches = padded.unfold(1, side, window).unfold(2, side, window).reshape(-1, 2, heads, head_dim, side**2)
    k, v = patches.transpose(-1, -2).unbind(1)
    attended = ((q @ k.transpose(-1, -2) + bias).softmax(-1) @ v).transpose(1, 2)
    expected = window_reverse(attended.reshape(b, h // window, w // window, window**2, -1), window)
    rows = qkv.clone()
    rows[..., 0, :] *= kernels.LOG2E
    out = kernels.window_attention(
        rows.view(b * h * w, -1).to(DEVICE), (bias * kernels.LOG2E).to(DEVICE), (b, h, w), window, 0, border
    )
    assert (out.cpu().view(expected.shape) - expected).abs().max() < 1e-4


@pytest.mark.parametrize("launch", [(16, 32, 2, 1), (32, 16, 8, 3)])
def test_attention_does_not_depend_on_how_it_is_cut_up(launch: tuple[int, int, int, int], kernels: object) -> None:
    torch.manual_seed(0)
    qkv, bias = torch.randn(8 * 16, 3 * 20, device=DEVICE), torch.randn(2, 64, 64, device=DEVICE)
    expected = kernels.window_attention(qkv, bias, (1, 8, 16), 8, 4)
    assert (kernels.window_attention(qkv, bias, (1, 8, 16), 8, 4, launch=kernels.Launch(*launch)) - expected).abs().max() < 1e-5


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
    wide = torch.full((37, 32), 7.0, device=DEVICE)
    padded = kernels.add_layer_norm(x, branch, wide, weight, bias, 1e-5, torch.float32, 40)
    assert torch.equal(wide[:, :24], x + branch)
    assert not wide[:, 24:].any()
    assert (padded[:, :24] - F.layer_norm(x + branch, (24,), weight, bias)).abs().max() < 1e-5
    assert padded.shape == (37, 40)
    assert not padded[:, 24:].any()
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
    kernels.leaky_relu_into(x, buffer[:, 4:20], 0.2)  # columns of x beyond are left out
    kernels.add_into(x, buffer[:, 4:20])
    assert (buffer[:, 4:20] - F.leaky_relu(x, 0.2)[:, :16] - x[:, :16]).abs().max() < 1e-6
    assert (buffer[:, 20:24] - F.leaky_relu(x, 0.2)[:, 16:] - x[:, 16:]).abs().max() < 1e-6
    assert (buffer[:, :4] == 1).all()
    assert (buffer[:, 24:] == 1).all()


# widths that are no multiples of what matrix products are fastest with, as DRCT's own
ODD = {"embed_dim": 22, "gc": 6, "block_heads": [2] * 5}


@pytest.mark.parametrize(("options", "upscale"), [({}, 2), ({"resi_connection": "identity", "patch_norm": False}, 3), (ODD, 2)])
def test_program(options: dict, upscale: int, build: Callable[..., SuperResolutionNetwork], kernels: object) -> None:
    from drct.engine.gpu.drct import GPUDRCTProgram

    network = build("drct", **(TINY | options), scale=upscale)
    program = GPUDRCTProgram(network, DEVICE, HALF, graphs=DEVICE.type == "cuda")
    x = torch.rand(2, 3, 9, 16)
    y = program(x).cpu()
    with torch.inference_mode():
        error = (y - network(x)).square().mean()
    assert y.shape == (2, 3, 9 * upscale, 16 * upscale)
    assert -10 * error.log10() >= 50
    assert program.memory_estimate(64, 64) > 4 * 64 * 64 * 56
    assert any("Triton" in line for line in program.describe())


def programs() -> dict[str, tuple[Callable[..., object], dict[str, object]]]:
    """Of every family: its program, and options of a small network."""
    from drct.engine.gpu.drct import GPUDRCTProgram
    from drct.engine.gpu.hat import GPUHATProgram
    from drct.engine.gpu.swinir import GPUSwinIRProgram

    small = {"embed_dim": 24, "depths": [2], "num_heads": [2], "window_size": 8}
    return {
        "drct": (GPUDRCTProgram, TINY | {"upsampler": "pixelshuffledirect"}),
        "swinir": (GPUSwinIRProgram, small | {"patch_norm": False}),
        "swinir_real_large": (GPUSwinIRProgram, small | {"scale": 2}),
        "hat": (GPUHATProgram, small | {"squeeze_factor": 6, "overlap_ratio": 0.5}),
        "hat_s": (GPUHATProgram, small | {"resi_connection": "identity", "scale": 3}),
        "drct_l": (GPUDRCTProgram, TINY | ODD),
        "swinir_light": (GPUSwinIRProgram, small | {"embed_dim": 22}),
        "hat_l": (GPUHATProgram, small | {"embed_dim": 22, "squeeze_factor": 6}),
    }


@pytest.mark.with_tf32
@pytest.mark.parametrize("name", ["drct", "swinir", "swinir_real_large", "hat", "hat_s", "drct_l", "swinir_light", "hat_l"])
def test_programs_in_float32_have_the_values_of_the_network(
    name: str, build: Callable[..., SuperResolutionNetwork], kernels: object
) -> None:
    program, options = programs()[name]
    network = build(name, **options)
    x = torch.rand(1, 3, 17, 9)
    with torch.inference_mode():
        expected = network(x)
        assert (program(network, DEVICE, "fp32", graphs=False)(x).cpu() - expected).abs().max() <= 1e-4
        assert (engine.compile(network, DEVICE, "fp32")(x).cpu() - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["drct", "swinir", "hat"])
def test_the_type_that_a_caller_made_the_default_makes_no_difference(
    name: str, build: Callable[..., SuperResolutionNetwork], kernels: object
) -> None:
    program, options = programs()[name]
    network, x, results = build(name, **options), torch.rand(1, 3, 9, 9), []
    try:
        for default in (torch.float32, torch.bfloat16, torch.float64):
            torch.set_default_dtype(default)
            with torch.inference_mode():
                results.append(program(network, DEVICE, "fp32", graphs=False)(x).cpu())
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("name", ["drct", "swinir"])
def test_one_grey_image(name: str, build: Callable[..., SuperResolutionNetwork], kernels: object) -> None:
    """Of one channel torch makes no channels-last map."""
    program, options = programs()[name]
    network, x = build(name, **options, in_chans=1), torch.rand(1, 1, 16, 8)
    with torch.inference_mode():
        assert (program(network, DEVICE, "fp32", graphs=False)(x).cpu() - network(x)).abs().max() <= 1e-4


@pytest.mark.with_tf32
@pytest.mark.skipif(DEVICE.type == "cpu", reason="needs a GPU")
def test_graphs_have_the_values_of_kernels_launched_one_by_one(
    build: Callable[..., SuperResolutionNetwork], kernels: object
) -> None:
    from drct.engine.gpu.drct import GPUDRCTProgram

    network = build("drct", **TINY)
    program = GPUDRCTProgram(network, DEVICE, "fp32")
    for size in [(1, 3, 16, 24), (2, 3, 8, 8)] * 2:
        x = torch.rand(size)
        with torch.inference_mode():
            expected = network(x)
        for _ in range(3):
            assert (program(x).cpu() - expected).abs().max() <= 1e-4
    assert len(program._graphs) == 2
    program.release()
    assert (program(x).cpu() - expected).abs().max() <= 1e-4


class FakeCuda:
    """Stands in for what captures need, and writes down what happens; a replay does nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[object] = []
        self.pools = itertools.count()
        self.streams: list[object] = []
        self.recorded: list[object] = []  # events on the caller's stream
        self.waited_for: list[object] = []
        for name in ("CUDAGraph", "Stream", "current_stream", "stream", "graph", "graph_pool_handle"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))

    def CUDAGraph(self) -> object:
        return self.Graph(self)

    class Graph:
        def __init__(self, cuda: FakeCuda) -> None:
            self.cuda, self.held = cuda, None

        def pool(self) -> object:
            return self.held

        def replay(self) -> None:
            self.cuda.events.append("replay")

    def Stream(self, device: torch.device) -> object:
        self.streams.append(types.SimpleNamespace(device=device, wait_stream=lambda other: None))
        return self.streams[-1]

    def current_stream(self, device: torch.device) -> object:
        return types.SimpleNamespace(wait_stream=lambda other: None, wait_event=self.waited_for.append, record_event=self.record)

    def record(self) -> object:
        self.recorded.append(object())
        return self.recorded[-1]

    def stream(self, stream: object) -> contextlib.AbstractContextManager[None]:
        assert stream is self.streams[-1]
        return contextlib.nullcontext()

    def graph_pool_handle(self) -> int:
        return next(self.pools)

    @contextlib.contextmanager
    def graph(self, graph: Graph, pool: int, stream: object, capture_error_mode: str) -> Iterator[None]:
        from drct.engine.gpu import body

        assert body._capturing.locked()
        assert capture_error_mode == "thread_local"
        self.events.append((pool, stream))
        yield
        graph.held = pool


def test_graphs_are_captured_at_the_second_use_on_one_stream_and_given_up_together(
    build: Callable[..., SuperResolutionNetwork], kernels: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drct.engine.gpu import body
    from drct.engine.gpu.drct import GPUDRCTProgram

    cuda = FakeCuda(monkeypatch)
    program = GPUDRCTProgram(build("drct", **TINY), torch.device("cpu"), "fp32")
    monkeypatch.setattr(program, "forward", lambda x: x.repeat_interleave(4, -1).repeat_interleave(4, -2))

    def call(side: int, times: int) -> list[object]:
        cuda.events.clear()
        for _ in range(times):
            assert program(torch.rand(1, 3, side, side)).shape == (1, 3, 4 * side, 4 * side)
        return list(cuda.events)

    assert call(8, 1) == []
    first, *replays = call(8, 2)
    (stream,) = cuda.streams
    assert first == (0, stream)
    assert replays == ["replay"] * 2
    assert call(16, 3) == [(0, stream), "replay", "replay"]  # memory is shared
    for side in range(24, 64, 8):
        call(side, 2)
    assert len(program._graphs) == body.GRAPHS
    program.release()
    assert program._graphs == {}
    assert call(8, 1) == [(1, stream), "replay"]  # what the old pool held can be freed
    assert cuda.streams == [stream]
    assert cuda.waited_for == cuda.recorded[:-1]  # each replay waits until the last result is out, on whatever stream


def test_training_kernels_are_launched_where_their_tensors_are(kernels: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from drct.engine.gpu import selective_scan, window_attention
    from drct.networks.window_attention import relative_position_index

    inside: list[torch.Tensor] = []
    launched: list[torch.Tensor] = []

    @contextlib.contextmanager
    def device_of(tensor: torch.Tensor) -> Iterator[None]:
        inside.append(tensor)
        yield
        inside.clear()

    def attention(qkv: torch.Tensor, *arguments: object, **more: object) -> torch.Tensor:
        launched.extend(inside)
        return qkv.new_zeros(16, 4)

    class Kernel:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *arguments, **more: launched.extend(inside)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(window_attention, "attention_forward", attention)
    qkv, table = torch.zeros(1, 4, 4, 12), torch.zeros(49, 2)
    window_attention.window_attention(qkv, table, relative_position_index(4), 4, 0, 1.0)
    assert [t.data_ptr() for t in launched] == [qkv.data_ptr()]
    launched.clear()
    for name in ("_summary_kernel", "_carry_kernel", "_output_kernel"):
        monkeypatch.setattr(selective_scan, name, Kernel())
    u, delta, a, b = torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2, 4, 3), torch.zeros(4, 3, 2), torch.zeros(1, 2, 2, 4, 2)
    selective_scan.selective_scan(u, delta, a, b, b)
    assert [t.data_ptr() for t in launched] == [u.data_ptr()] * 3


def test_every_gpu_program_is_found(kernels: object) -> None:
    from drct.engine import compiler

    found = {getattr(importlib.import_module(module), name) for module, name in compiler.GPU_PROGRAMS.values()}
    assert found == {program for program, _ in programs().values()}
    assert set(compiler.GPU_PROGRAMS) <= set(compiler.CPU_PROGRAMS)


@pytest.mark.parametrize(
    ("triton", "compiler_path", "reason"),
    [(None, "gcc", "the package triton is not installed"), (object(), None, "C compiler"), (object(), "gcc", "no launcher")],
)
def test_what_is_missing_is_said_and_the_plain_network_runs(
    triton: object,
    compiler_path: str | None,
    reason: str,
    build: Callable[..., SuperResolutionNetwork],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from drct.engine import accelerate, compiler
    from drct.engine.gpu import availability

    reasons = []
    monkeypatch.setattr(compiler, "resolve_device", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(compiler, "resolve_precision", lambda name, device: "bf16")
    monkeypatch.setattr(availability, "find_compiler", lambda: compiler_path)
    monkeypatch.setattr(availability, "_launcher", lambda: "no launcher")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: triton)
    monkeypatch.setattr(compiler, "PlainProgram", lambda network, device, precision, reason: reasons.append((precision, reason)))
    compiler.compile(build("drct", **TINY), "cuda", "auto")
    assert [precision for precision, _ in reasons] == ["bf16"]
    assert reason in reasons[0][1]
    assert accelerate._accelerate_attention([], "cuda") == f"plain torch attention: {reasons[0][1]}"
    assert accelerate._accelerate_scans([], "cuda") == f"plain torch scan: {reasons[0][1]}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_launcher_that_cannot_be_built_is_a_reason(kernels: object) -> None:
    from drct.engine.gpu import availability

    reason = availability._launcher()
    assert reason is not None
    assert reason.startswith("Triton cannot build its launcher (")
    assert "\n" not in reason


@pytest.mark.parametrize("name", ["swinir", "hat"])
def test_relatives_in_half_precision(name: str, build: Callable[..., SuperResolutionNetwork], kernels: object) -> None:
    program, options = programs()[name]
    network = build(name, **options)
    compiled = program(network, DEVICE, HALF, graphs=DEVICE.type == "cuda")
    x = torch.rand(1, 3, 9, 16)
    y = compiled(x).cpu()
    with torch.inference_mode():
        error = (y - network(x)).square().mean()
    assert -10 * error.log10() >= 50
    assert compiled.architecture in compiled.describe()[0]
    assert compiled.memory_estimate(64, 64) > 4 * 64 * 64 * 4 * 24
    assert compiled.folded_multiply_adds > 0


def test_tuning_times_every_cut_beside_torch(
    build: Callable[..., SuperResolutionNetwork], kernels: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("inference", Path(__file__).parents[2] / "benchmarks" / "inference.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    narrow, wide = script.launches(16, 32, torch.bfloat16), script.launches(16, 128, torch.bfloat16)
    assert len(set(narrow)) == 16
    assert kernels.LAUNCH in narrow
    assert len(set(wide)) == 4  # no cut twice under two names
    network = build("drct", **TINY)
    cuts, blocks = [kernels.Launch(64, 64), kernels.Launch(32, 64)], script.swin_blocks(network)
    assert len(blocks) == 5
    monkeypatch.setattr(script, "launches", lambda *shape: cuts)
    monkeypatch.setattr(script, "swin_blocks", lambda network: blocks[:1])
    results = script.tune(network, DEVICE, 8, 9, 1)
    shape = "2 heads of 16" if DEVICE.type == "cuda" else "2 heads of 12"  # widened in bfloat16
    assert set(results) == {shape}
    times = results[shape]
    assert set(times) == {*map(str, cuts), "torch"}
    assert list(times.values()) == sorted(times.values())

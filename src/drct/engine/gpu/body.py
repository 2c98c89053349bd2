"""The outline that DRCT shares with its relatives, on a GPU, with the groups left open.

Folded matrices in bf16 or fp16, everything between them fused, the whole pass replayed as one CUDA graph. The features between the
blocks stay float32, so that no sum is ever rounded to half precision; matrix products read rows that the norm kernels write.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from drct.engine.cpu.tail import Step, Tail, convolution
from drct.engine.folding import Norm
from drct.engine.gpu import kernels
from drct.engine.program import Program
from drct.errors import DeviceError
from drct.networks.base import SuperResolutionNetwork, pad_to_multiple

GRAPHS = 4  # shapes whose graphs are kept; a plan of tiles has few
BAND_PIXELS = 65536  # LR pixels of a band of the tail

_capturing = threading.Lock()  # torch can capture one graph at a time in a process


class GPUBodyProgram(Program):
    """Everything but the groups.

    Args:
        graphs: replay CUDA graphs, from the second batch of a shape on; without, kernels are launched one by one.
    """

    def __init__(self, network: SuperResolutionNetwork, device: torch.device, precision: str, graphs: bool = True) -> None:
        super().__init__(network, device, precision)
        get = network.get_submodule
        self.dim = network.options.embed_dim
        self.mean, self.img_range = network.mean.detach().float().to(device), network.img_range
        conv_first = convolution(get("conv_first"), device)
        assert conv_first is not None
        self.conv_first = conv_first
        self.first_norm, self.last_norm = (
            None if norm is None else (norm.weight.to(device), norm.bias.to(device), norm.eps)
            for norm in (Norm.of(getattr(get("patch_embed"), "norm", None)), Norm.of(get("norm")))
        )
        self.conv_after_body = convolution(get("conv_after_body"), device)
        self.tail = Tail(network, device, BAND_PIXELS, _one_by_one)
        self.saved_multiply_adds = self.tail.saved_multiply_adds
        self.graphs = graphs
        self._graphs: collections.OrderedDict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = (
            collections.OrderedDict()
        )
        self._seen: set[tuple[int, ...]] = set()  # shapes that came before; a graph for a single call would not pay
        self._stream: torch.cuda.Stream | None = None  # of the captures
        self._copied: torch.cuda.Event | None = None  # when the last result was out of its graph
        self._lock = threading.Lock()

    def run(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        x = pad_to_multiple(x, self.pad_multiple)
        y = self._replay(x) if self.graphs else self.forward(x)
        if self.precision == "fp16" and not torch.isfinite(y).all():
            raise DeviceError(f"{self.architecture} overflowed in fp16: use bf16 or fp32")
        return y[..., : h * self.scale, : w * self.scale]

    def forward(self, x: Tensor) -> Tensor:
        """Upscale a batch whose sides are multiples of ``pad_multiple``, kernel by kernel."""
        b, _, h, w = x.shape
        x = ((x - self.mean) * self.img_range).contiguous(memory_format=torch.channels_last)
        shallow = self.conv_first(x)
        # of one grey image torch makes no channels-last map: rows would be columns
        rows = shallow.permute(0, 2, 3, 1).reshape(b * h * w, self.dim).contiguous()
        if self.first_norm is not None:
            rows = kernels.layer_norm(rows, *self.first_norm, torch.float32)
        deep = self.body(rows, (b, h, w))
        deep = deep.contiguous() if self.last_norm is None else kernels.layer_norm(deep, *self.last_norm, torch.float32)
        deep = deep.view(b, h, w, self.dim).permute(0, 3, 1, 2)
        deep = (deep if self.conv_after_body is None else self.conv_after_body(deep)).add_(shallow)
        return self.tail(deep)

    def body(self, rows: Tensor, size: tuple[int, int, int]) -> Tensor:
        """All groups, on rows ``(B * H * W, dim)`` in raster order, which must stay as they are. ``size`` is (B, H, W)."""
        raise TypeError(f"{type(self).__name__} does not define body")

    def _replay(self, x: Tensor) -> Tensor:
        with self._lock:  # a graph has one input and one output
            key = tuple(x.shape)
            if key not in self._seen:
                self._seen.add(key)
                return self.forward(x)
            if key not in self._graphs:
                while len(self._graphs) >= GRAPHS:
                    self._graphs.popitem(last=False)
                self._graphs[key] = self._capture(x)
            self._graphs.move_to_end(key)
            graph, source, result = self._graphs[key]
            current = torch.cuda.current_stream(self.device)
            if self._copied is not None:
                current.wait_event(self._copied)  # the lock holds threads apart, but not their streams
            source.copy_(x)
            graph.replay()
            y = result.clone()
            self._copied = current.record_event()
            return y

    def _capture(self, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        source = x.clone()
        if self._stream is None:  # one for all, or the graphs could not share memory
            self._stream = torch.cuda.Stream(self.device)
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            self.forward(source)  # compiles kernels and lets libraries choose theirs, which a capture must not do
        current.wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # graphs never run side by side: they share memory
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else torch.cuda.graph_pool_handle()
        # errors of this thread alone: others may be at work on other GPUs
        with _capturing, torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            result = self.forward(source)
        return graph, source, result

    def release(self) -> None:
        with self._lock:
            self._graphs.clear()

    def describe(self) -> list[str]:
        how = f"CUDA graphs for the last {GRAPHS} input sizes that came twice" if self.graphs else "kernels launched one by one"
        return [
            f"{self.architecture} on {self.device} in {self.precision}, sums between the blocks in float32",
            "Triton: window attention with shift, bias and mask inside; LayerNorm with addition; GELU and LeakyReLU in place",
            how,
        ]

    def memory_estimate(self, height: int, width: int, batch: int = 1) -> int:
        m, pixels = self.pad_multiple, self.padded_pixels(height, width, batch)
        tail = self.tail.memory(batch, -(-height // m) * m, -(-width // m) * m)
        return max(pixels * self.body_bytes(), 4 * pixels * (2 * self.dim + self.in_chans * self.scale**2) + tail)

    def body_bytes(self) -> int:
        """Bytes per pixel that are alive at the worst moment of :meth:`body`, shallow features included."""
        raise TypeError(f"{type(self).__name__} does not define body_bytes")


def as_map(rows: Tensor, size: tuple[int, int, int]) -> Tensor:
    """Rows in raster order as a channels-last map ``(B, C, H, W)``; shares their memory."""
    return rows.view(*size, -1).permute(0, 3, 1, 2)


def convolve(conv: Step | None, rows: Tensor, size: tuple[int, int, int]) -> Tensor:
    """A convolution of rows as a map, as rows again; None leaves them as they are."""
    return rows if conv is None else conv(as_map(rows, size)).permute(0, 2, 3, 1).reshape(len(rows), -1)


def _one_by_one(function: Callable[[tuple[int, int]], None], items: Iterable[tuple[int, int]]) -> None:
    for item in items:
        function(item)

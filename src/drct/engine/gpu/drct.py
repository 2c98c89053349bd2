"""DRCT on a GPU: folded matrices in bf16 or fp16, everything between them fused, the whole pass replayed as one CUDA graph.

The features of a group lie in one float32 buffer that grows by columns, so that no sum is ever rounded to half precision; matrix
products read half-precision rows that the norm kernels write. A block's residual and hidden rows stand side by side, so that the
folded ``adjust`` is a single product over both.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from drct.engine.cpu.tail import Tail, convolution
from drct.engine.devices import DTYPES
from drct.engine.folding import Affine, FoldedSwin, Norm, fold_group
from drct.engine.gpu import kernels
from drct.engine.program import Program
from drct.errors import DeviceError
from drct.networks.base import pad_to_multiple
from drct.networks.drct import BLOCKS, DRCT, RDG

GRAPHS = 4  # shapes whose graphs are kept; a plan of tiles has few
BAND_PIXELS = 65536  # LR pixels of a band of the tail


class GPUSwinLayer:
    """A folded Swin block and its folded layer."""

    def __init__(self, block: FoldedSwin, device: torch.device, dtype: torch.dtype) -> None:
        assert block.from_residual is not None
        self.dim, self.out_dim, self.window, self.shift = block.dim, block.out_dim, block.window, block.shift
        self.multiply_adds = block.multiply_adds()

        def placed(layer: Affine) -> tuple[Tensor, Tensor]:
            return layer.weight.to(device, dtype), layer.bias.to(device, dtype)

        qkv = Affine(block.qkv.weight.clone(), block.qkv.bias.clone())
        qkv.weight[: block.dim] *= kernels.LOG2E
        qkv.bias[: block.dim] *= kernels.LOG2E
        self.qkv, self.proj, self.fc1 = placed(qkv), placed(block.proj), placed(block.fc1)
        self.bias = (block.position_bias * kernels.LOG2E).to(device, dtype).contiguous()
        both = torch.cat([block.from_residual.weight, block.from_hidden.weight], 1)
        self.last = placed(Affine(both, block.from_hidden.bias))
        self.norms = [(n.weight.to(device), n.bias.to(device), n.eps) for n in (block.norm1, block.norm2)]

    def __call__(self, x: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Float32 rows ``(T, dim)`` in raster order, possibly columns of a wider buffer, to half-precision ``(T, out_dim)``."""
        dtype = self.bias.dtype
        y = kernels.layer_norm(x, *self.norms[0], dtype)
        y = kernels.window_attention(F.linear(y, *self.qkv), self.bias, size, self.window, self.shift)
        both = torch.empty(len(x), self.last[0].shape[1], dtype=dtype, device=x.device)
        y = kernels.add_layer_norm(x, F.linear(y, *self.proj), both[:, : self.dim], *self.norms[1], dtype)
        kernels.gelu_into(F.linear(y, *self.fc1), both[:, self.dim :])
        return F.linear(both, *self.last)


class GPUDRCTProgram(Program):
    """The program; see the head of this file.

    Args:
        graphs: replay CUDA graphs; without, kernels are launched one by one.
    """

    def __init__(self, network: DRCT, device: torch.device, precision: str, graphs: bool = True) -> None:
        super().__init__(network, device, precision)
        self.dim, self.width = network.options.embed_dim, network.options.block_dims()[-1]
        self.mean, self.img_range = network.mean.detach().float().to(device), network.img_range
        conv_first = convolution(network.conv_first, device)
        assert conv_first is not None
        self.conv_first = conv_first
        self.first_norm, self.last_norm = (
            None if norm is None else (norm.weight.to(device), norm.bias.to(device), norm.eps)
            for norm in (Norm.of(getattr(network.patch_embed, "norm", None)), Norm.of(network.norm))
        )
        self.groups: list[list[GPUSwinLayer]] = []
        for group in network.layers:
            assert isinstance(group, RDG)
            self.groups.append([GPUSwinLayer(block, device, DTYPES[precision]) for block in fold_group(group)])
        self.folded_multiply_adds = sum(layer.multiply_adds for group in self.groups for layer in group)
        self.conv_after_body = convolution(network.conv_after_body, device)
        self.tail = Tail(network, device, BAND_PIXELS, _one_by_one)
        self.graphs = graphs
        self._graphs: collections.OrderedDict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = (
            collections.OrderedDict()
        )
        self._pool = torch.cuda.graph_pool_handle() if graphs else None  # graphs never run side by side: they share memory
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
        rows = shallow.permute(0, 2, 3, 1).reshape(b * h * w, self.dim)
        dense = torch.empty(len(rows), self.width, device=x.device)
        dense[:, : self.dim] = rows if self.first_norm is None else kernels.layer_norm(rows, *self.first_norm, torch.float32)
        del rows
        for group in self.groups:
            for j, layer in enumerate(group):
                y = layer(dense[:, : layer.dim], (b, h, w))
                if j < BLOCKS - 1:
                    kernels.leaky_relu_into(y, dense[:, layer.dim : layer.dim + layer.out_dim], 0.2)
                else:
                    kernels.add_into(y, dense[:, : self.dim])
        deep = dense[:, : self.dim]
        deep = deep.contiguous() if self.last_norm is None else kernels.layer_norm(deep, *self.last_norm, torch.float32)
        del dense
        deep = deep.view(b, h, w, self.dim).permute(0, 3, 1, 2)
        deep = (deep if self.conv_after_body is None else self.conv_after_body(deep)).add_(shallow)
        return self.tail(deep)

    def _replay(self, x: Tensor) -> Tensor:
        with self._lock:  # a graph has one input and one output
            key = tuple(x.shape)
            if key not in self._graphs:
                while len(self._graphs) >= GRAPHS:
                    self._graphs.popitem(last=False)
                self._graphs[key] = self._capture(x)
            self._graphs.move_to_end(key)
            graph, source, result = self._graphs[key]
            source.copy_(x)
            graph.replay()
            return result.clone()

    def _capture(self, x: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        source = x.clone()
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            self.forward(source)  # compiles kernels and lets libraries choose theirs, which a capture must not do
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = self.forward(source)
        return graph, source, result

    def describe(self) -> list[str]:
        how = f"CUDA graphs for the last {GRAPHS} input sizes" if self.graphs else "kernels launched one by one"
        return [
            f"drct on {self.device} in {self.precision}, sums and 3x3 convolutions in float32",
            "Triton: window attention with shift, bias and mask inside; LayerNorm with addition; GELU and LeakyReLU in place",
            how,
        ]

    def memory_estimate(self, height: int, width: int, batch: int = 1) -> int:
        pixels = self.padded_pixels(height, width, batch)
        widest = self.width
        # dense and shallow features, then the larger of queries, keys, values and what attention reads and writes
        body = pixels * (4 * (self.width + 2 * self.dim) + 2 * (3 * widest + 3 * widest))
        m = self.pad_multiple
        tail = self.tail.memory(batch, -(-height // m) * m, -(-width // m) * m)
        return max(body, 4 * pixels * (2 * self.dim + self.in_chans * self.scale**2) + tail)


def _one_by_one(function: Callable[[tuple[int, int]], None], items: Iterable[tuple[int, int]]) -> None:
    for item in items:
        function(item)

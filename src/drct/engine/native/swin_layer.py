"""A whole Swin block by the C kernels of ``swin_layer.c`` and ``swin_layer_bf16.c``: float32 rows on the CPU, no gradient."""

from __future__ import annotations

import ctypes
import threading

import torch
import torch.nn.functional as F
from torch import Tensor

from drct.engine.bias_table import shorten
from drct.engine.folding import Affine, FoldedSwin, Norm, pad_heads
from drct.engine.native.build import load_library, reason_against, reason_unmeasured
from drct.engine.native.linear import Matrix, PackedLinear
from drct.engine.native.window_attention import LOG2E, supports
from drct.networks.window_attention import MASKED

SOURCE = "swin_layer.c"
SOURCE_BF16 = "swin_layer_bf16.c"
LANES_BF16 = 16  # of AVX512_BF16, whose products alone it takes


class NormStructure(ctypes.Structure):
    """See ``norm.h``."""

    _fields_ = (("gain", ctypes.c_void_p), ("offset", ctypes.c_void_p), ("eps", ctypes.c_float))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("window", "shift", "heads", "head_dim", "dim", "hidden", "out")),
        *((name, NormStructure) for name in ("norm1", "norm2")),
        *((name, Matrix) for name in ("qkv", "proj", "fc1", "residual", "last")),
        ("slope", ctypes.c_float),
        ("bias", ctypes.c_void_p),
        ("ranges", ctypes.c_void_p),
        ("masks", ctypes.c_void_p),
    )


class _Maps(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("source", "normed", "target")),
        *((name, ctypes.c_int64) for name in ("source_stride", "normed_stride", "target_stride")),
        *((name, ctypes.c_void_p) for name in ("order", "kinds")),
        ("add", ctypes.c_int32),
    )


def swin_layer_available(dtype: torch.dtype = torch.float32) -> str | None:
    """None when the kernel with products of this type can be used here and has been measured to be the faster way, else why not."""
    if dtype == torch.float32:
        return reason_against(SOURCE) or reason_unmeasured(load_library(SOURCE).drct_swin_layer_lanes())
    if (reason := reason_against(SOURCE_BF16)) is not None or load_library(SOURCE_BF16).drct_bf16_products():
        return reason
    return "the processor has no bfloat16 products (AVX512_BF16)"


def bf16_unit() -> str:
    """The instructions by which kernels multiply bfloat16, where :func:`swin_layer_available` says that they do."""
    return "AMX" if load_library(SOURCE_BF16).drct_matrix_unit() else "AVX512_BF16"


def read_inputs(inputs: int) -> int:
    """How many numbers of a row of so many a product in bfloat16 reads: whole pairs, for the matrix unit (AMX) whole tiles."""
    step = 32 if load_library(SOURCE_BF16).drct_matrix_unit() else 2
    return -(-inputs // step) * step


class PackedPairs:
    """Weights in bfloat16 with their bias, laid out as ``linear_bf16.h`` takes them.

    Args:
        weight: ``(out, in)``.
        bias: ``(out)``; None for none.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        outputs, inputs = weight.shape
        whole, read = -(-outputs // LANES_BF16) * LANES_BF16, read_inputs(inputs)
        rounded = F.pad(weight, (0, read - inputs, 0, whole - outputs)).bfloat16()
        panels = [panel.unflatten(1, (-1, 2)).transpose(0, 1).flatten() for panel in rounded.split(2 * LANES_BF16)]
        self.weight = torch.cat(panels)
        self.bias = None if bias is None else F.pad(bias.float(), (0, whole - outputs))
        self.matrix = Matrix(self.weight.data_ptr(), None if self.bias is None else self.bias.data_ptr(), read // 2, whole)


class SwinLayerKernel:
    """A folded block, laid out for the kernel.

    Args:
        block: with a window that :func:`supports`.
        slope: of a LeakyReLU on the result; None for none.
        dtype: of the matrix products, float32 or bfloat16; all else is float32.
    """

    def __init__(self, block: FoldedSwin, slope: float | None = None, dtype: torch.dtype = torch.float32) -> None:
        if not supports(block.window):
            raise ValueError(f"the kernel does not take windows of {block.window}")
        self.window, self.dim, self.out_dim, self.dtype = block.window, block.dim, block.out_dim, dtype
        if dtype == torch.float32:
            library = load_library(SOURCE)
            self.function, measure, lanes = library.drct_swin_layer, library.drct_swin_layer_room, library.drct_swin_layer_lanes()
        else:
            library, lanes = load_library(SOURCE_BF16), LANES_BF16
            self.function, measure = library.drct_swin_layer_bf16, library.drct_swin_layer_bf16_room
        self.kept: list[object] = []  # what the structure points to
        padded = -(-block.head_dim // lanes) * lanes
        qkv = pad_heads(block.qkv, block.heads, block.head_dim, padded)
        weight = qkv.weight.view(3, block.heads, padded, -1).transpose(0, 1).contiguous()
        bias = qkv.bias.view(3, block.heads, padded).transpose(0, 1).contiguous()
        weight[:, 0] *= LOG2E
        bias[:, 0] *= LOG2E
        residual = block.from_residual
        position_bias = block.position_bias * LOG2E
        # in bfloat16 powers are taken without a look at where they end, so no bias may be far from zero, not only a query's own
        own = position_bias.diagonal(dim1=1, dim2=2) if dtype == torch.float32 else position_bias.flatten(1)
        self.layer = _Layer(
            block.window,
            block.shift,
            block.heads,
            block.head_dim,
            block.dim,
            len(block.fc1.weight),
            block.out_dim,
            self._norm(block.norm1),
            self._norm(block.norm2),
            self._heads(weight, bias),
            self._matrix(block.proj),
            self._matrix(block.fc1),
            Matrix(None, None, 0, 0) if residual is None else self._matrix(self._twice(residual)),
            self._matrix(block.from_hidden),
            1.0 if slope is None else slope,
            self._keep(shorten(position_bias)),
            self._keep(torch.stack([position_bias.amax((1, 2)), own.amin(1)], 1)),
            self._keep(_masks(block.window, block.shift)),
        )
        measure.restype = ctypes.c_int64
        self.room: int = measure(ctypes.byref(self.layer))  # floats that a call works in

    def __call__(
        self,
        source: Tensor,
        target: Tensor,
        windows: tuple[int, int],
        order: Tensor | None,
        kinds: Tensor | None,
        add: bool = False,
        normed: Tensor | None = None,
    ) -> None:
        """Run some windows.

        Args:
            source: ``(rows, dim)``, columns side by side.
            target: ``(rows, out_dim)``, receives the result, or with ``add`` is added to; may share rows with ``source``.
            windows: first window and the one after the last.
            order: int64, row of each position of all windows; None when they lie one after the other.
            kinds: int32, mask of each window, see :func:`drct.networks.window_attention.shift_masks`; None for no masks.
            normed: the first norm of ``source`` where it is there already, in the type of the products.
        """
        start, end = windows
        first = start * self.window**2
        skipped = first if order is None else 0
        maps = _Maps(
            _row(source, skipped),
            None if normed is None else _row(normed, skipped, self.dtype),
            _row(target, skipped),
            source.stride(0),
            0 if normed is None else normed.stride(0),
            target.stride(0),
            None if order is None else order.data_ptr() + 8 * first,
            None if kinds is None else kinds.data_ptr() + 4 * start,
            add,
        )
        room = _rooms.get(self.room)
        self.function(ctypes.byref(self.layer), ctypes.byref(maps), ctypes.c_int64(end - start), ctypes.c_void_p(room.data_ptr()))

    def _keep(self, tensor: Tensor) -> int:
        tensor = tensor.float().contiguous()
        self.kept.append(tensor)
        return tensor.data_ptr()

    def _norm(self, norm: Norm) -> NormStructure:
        return NormStructure(self._keep(norm.weight), self._keep(norm.bias), norm.eps)

    def _matrix(self, layer: Affine) -> Matrix:
        packed = (PackedLinear if self.dtype == torch.float32 else PackedPairs)(layer.weight, layer.bias)
        self.kept.append(packed)
        return packed.matrix

    def _twice(self, layer: Affine) -> Affine:
        """In bfloat16 the residual comes as what it is rounded to and what the rounding lost: its channels may be hundreds."""
        if self.dtype == torch.float32:
            return layer
        inputs = layer.weight.shape[1]
        padded = F.pad(layer.weight, (0, read_inputs(inputs) - inputs))
        return Affine(torch.cat([padded, padded], 1), layer.bias)

    def _heads(self, weight: Tensor, bias: Tensor) -> Matrix:
        """Queries, keys and values of one head after another, ``(heads, 3, padded, dim)`` and ``(heads, 3, padded)``."""
        if self.dtype == torch.float32:  # one product for each of the three
            packed = torch.cat([PackedLinear(part).weight for part in weight.flatten(0, 1)])
            return Matrix(self._keep(packed), self._keep(bias.flatten()), weight.shape[-1], bias.numel())
        pairs = [PackedPairs(head).weight for head in weight.flatten(1, 2)]
        self.kept.append(packed := torch.cat(pairs))
        return Matrix(packed.data_ptr(), self._keep(bias.flatten()), read_inputs(weight.shape[-1]) // 2, bias.numel())


class _Rooms(threading.local):
    """Each thread's own work space, which stays from call to call."""

    room: Tensor | None = None

    def get(self, floats: int) -> Tensor:
        if self.room is None or self.room.numel() < floats:
            self.room = None  # let go of the old one first
            with torch.inference_mode(False):
                self.room = torch.empty(floats, dtype=torch.float32, device="cpu")
        return self.room


_rooms = _Rooms()


def _masks(window: int, shift: int) -> Tensor:
    """What is added to the scores of a query, ``(kind of window, class of the query, N)``.

    Bit 0 of a class says that the position's column came from the other side of the map, bit 1 that its row did.
    """
    wrapped = (torch.arange(window, device="cpu") >= window - shift if shift else torch.zeros(window, device="cpu")).int()
    classes = (2 * wrapped[:, None] + wrapped).flatten()
    kinds = torch.arange(4, dtype=torch.int32, device="cpu")
    other = (classes ^ kinds[:, None]) & kinds[:, None, None]  # (kind, class, N)
    return other.bool() * (MASKED * LOG2E)


def _row(rows: Tensor, index: int, dtype: torch.dtype = torch.float32) -> int:
    if rows.dtype != dtype or rows.stride(1) != 1:
        raise ValueError(f"the kernel takes {str(dtype).removeprefix('torch.')} rows whose columns lie side by side")
    return rows.data_ptr() + rows.element_size() * index * rows.stride(0)

"""A Swin block, alone or with the 1x1 convolution behind it, in bfloat16 by the kernel of ``swin_bf16.c``: values and gradients."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from drct.engine.bias_table import expand_table, gradient_of_expanded
from drct.engine.native.build import load_library, pointer
from drct.engine.native.window_attention import LOG2E
from drct.errors import DeviceError
from drct.networks.derivatives import first_derivative_only

SOURCE = "swin_bf16.c"
LANES = 16
NAMES = (
    *("norm1", "norm1_bias", "qkv", "qkv_bias", "proj", "proj_bias", "norm2", "norm2_bias"),
    *("fc1", "fc1_bias", "fc2", "fc2_bias", "adjust", "adjust_bias"),
)
PARAMETERS = len(NAMES) + 1  # and the table of relative position biases


@dataclasses.dataclass(frozen=True)
class BlockShape:
    """Sizes of a block and of what follows it.

    Attributes:
        window, shift: of the attention, in pixels.
        heads, head_dim: of the attention; ``heads * head_dim`` channels.
        hidden: channels within the MLP.
        out: channels behind the 1x1 convolution, at most those of the block; 0 where there is none.
        scale: factor of the scores.
        residual: None for ``leaky_relu(adjust(v), 0.2)``, else the factor a of ``x + a adjust(v)``.
    """

    window: int
    shift: int
    heads: int
    head_dim: int
    hidden: int
    out: int
    scale: float
    residual: float | None

    @property
    def dim(self) -> int:
        return self.heads * self.head_dim

    def kept_rows(self) -> tuple[int, ...]:
        """Width of the rows kept for backward: qkv, attention's output, u, hidden, v."""
        return padded(3 * self.dim), padded(self.dim), padded(self.dim), padded(self.hidden), padded(self.dim) if self.out else 0

    def gradient_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the gradients of :data:`NAMES`, without padding."""
        c, h, o = self.dim, self.hidden, self.out
        return [(c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,), (c,), (c,), (h, c), (h,), (c, h), (c,), (o, c), (o,)]


class _Block(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "window", "shift", "heads", "head_dim")),
        *((name, ctypes.c_int64) for name in ("dim", "hidden", "out", "x_stride", "y_stride", "keep", "parts", "residual")),
        *((name, ctypes.c_float) for name in ("scale", "slope", "alpha", "eps")),
        ("threads", ctypes.c_int32),
    )


class _Parameters(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in (*NAMES, "bias", "branches"))


class _Kept(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_void_p) for name in ("qkv", "attended", "u", "hidden", "v", "lse"))


def swin_bf16_available() -> str | None:
    """None when the kernel can be used here, else the reason why not."""
    try:
        if load_library(SOURCE).drct_bf16_products():
            return None
    except DeviceError as error:
        return str(error)
    return "the processor has no bfloat16 products (AVX512_BF16)"


def padded(n: int) -> int:
    """The next multiple of a vector's length."""
    return -(-n // LANES) * LANES


def _block(shape: BlockShape, x: Tensor, y: Tensor, eps: float, keep: bool, parts: int) -> _Block:
    batch, height, width = x.shape[:3]
    return _Block(
        batch,
        height,
        width,
        shape.window,
        shape.shift,
        shape.heads,
        shape.head_dim,
        shape.dim,
        shape.hidden,
        shape.out,
        x.stride(2),
        y.stride(2),
        keep,
        parts,
        shape.residual is not None,
        shape.scale,
        0.2,
        1.0 if shape.residual is None else shape.residual,
        eps,
        torch.get_num_threads(),
    )


def _pointers(kind: type[ctypes.Structure], tensors: Sequence[Tensor | None]) -> ctypes.Structure:
    return kind(*(None if t is None else t.data_ptr() for t in tensors))


def _check(code: int) -> None:
    if code == 1:
        raise MemoryError("the Swin kernel could not allocate its work space")
    if code:
        raise DeviceError("the Swin kernel was called on a processor without bfloat16 products")


def forward(
    shape: BlockShape,
    x: Tensor,
    y: Tensor,
    parameters: Sequence[Tensor | None],
    branches: Tensor,
    eps: float,
    keep: bool,
    beside: Tensor | None = None,
) -> list[Tensor]:
    """Compute one block into ``y``.

    Args:
        x, y: bfloat16 maps ``(B, H, W, >= channels)`` whose pixels are evenly spaced; they may be slices of one map.
        parameters: float32, contiguous, in the order of :data:`NAMES`, then the expanded bias times log2(e).
        branches: ``(B, 2)`` float32 factors of the two residual branches.
        keep: return what :func:`backward` needs instead of work space.
        beside: added to what attention adds to ``x``; contiguous.
    """
    batch, height, width = x.shape[:3]
    rows = batch * height * width if keep else torch.get_num_threads() * shape.window**2
    make = torch.zeros if shape.dim % LANES else torch.empty
    kept = [make(rows, n, dtype=torch.bfloat16, device="cpu") for n in shape.kept_rows()]
    kept.append(torch.empty(rows * shape.heads, dtype=torch.float32, device="cpu"))
    block = _block(shape, x, y, eps, keep, 1)
    _check(
        load_library(SOURCE).drct_swin_bf16_forward(
            ctypes.byref(block),
            ctypes.byref(_pointers(_Parameters, [*parameters, branches])),
            *(pointer(t) for t in (x, beside, y)),
            ctypes.byref(_pointers(_Kept, kept)),
        )
    )
    return kept


def backward(
    shape: BlockShape,
    x: Tensor,
    y: Tensor,
    dy: Tensor,
    dx: Tensor,
    parameters: Sequence[Tensor | None],
    branches: Tensor,
    eps: float,
    kept: Sequence[Tensor],
    dbeside: Tensor | None = None,
) -> list[Tensor]:
    """Gradients of the parameters and the table; that of ``x`` is added to ``dx`` (spaced like ``x``; ``dy`` like ``y``), that of
    ``beside`` written into ``dbeside``."""
    sizes = [tuple(padded(n) for n in size) for size in shape.gradient_shapes()]
    sizes.append((shape.heads, shape.window, 2 * shape.window - 1, shape.window))
    counts = [torch.Size(size).numel() for size in sizes]
    parts = torch.get_num_threads()
    sums = torch.zeros(parts, sum(counts), dtype=torch.float32, device="cpu")
    block = _block(shape, x, y, eps, True, parts)
    _check(
        load_library(SOURCE).drct_swin_bf16_backward(
            ctypes.byref(block),
            ctypes.byref(_pointers(_Parameters, [*parameters, branches])),
            *(pointer(t) for t in (x, y, dy, dx, dbeside)),
            ctypes.byref(_pointers(_Kept, kept)),
            ctypes.c_void_p(sums.data_ptr()),
            ctypes.c_int64(sums.shape[1]),
        )
    )
    gradients = [part.view(size) for part, size in zip(sums.sum(0).split(counts), sizes, strict=True)]
    cut = [g[tuple(slice(n) for n in size)] for g, size in zip(gradients, shape.gradient_shapes(), strict=False)]
    return [*cut, gradient_of_expanded(gradients[-1])]


class _DenseGroup(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, branches: Tensor, shapes: Sequence[BlockShape], eps: float, keep: bool, *parameters: Tensor | None
    ) -> Tensor:
        keep = keep and any(ctx.needs_input_grad)  # under no_grad they say the same, and gradients are always off in here
        blocks = [_prepared(shape, parameters[i * PARAMETERS : (i + 1) * PARAMETERS]) for i, shape in enumerate(shapes)]
        dense = x.new_empty(*x.shape[:3], shapes[-1].dim)  # every block finds its input here and adds its output
        dense[..., : shapes[0].dim] = x
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        kept = [
            forward(shape, dense, _target(dense, out, shape), block, branches[i], eps, keep)
            for i, (shape, block) in enumerate(zip(shapes, blocks, strict=True))
        ]
        if keep:
            ctx.save_for_backward(dense, out, branches, *parameters, *(t for block in kept for t in block))
            ctx.shapes, ctx.eps = shapes, eps
        return out

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        dense, out, branches, *saved = ctx.saved_tensors
        shapes: Sequence[BlockShape] = ctx.shapes
        count = PARAMETERS * len(shapes)
        dout = gradients[0].to(torch.bfloat16).contiguous()
        ddense = torch.zeros_like(dense)
        ddense[..., : shapes[0].dim] = dout
        found: list[Tensor | None] = []
        for i in reversed(range(len(shapes))):
            shape = shapes[i]
            parameters = saved[i * PARAMETERS : (i + 1) * PARAMETERS]
            kept = saved[count + 6 * i : count + 6 * (i + 1)]
            block = _prepared(shape, parameters)
            y, dy = _target(dense, out, shape), _target(ddense, dout, shape)
            of_block = backward(shape, dense, y, dy, ddense, block, branches[i], ctx.eps, kept)
            found[:0] = _fitting(of_block, parameters)
        return ddense[..., : shapes[0].dim], None, None, None, None, *found


def _prepared(shape: BlockShape, parameters: Sequence[Tensor | None]) -> list[Tensor | None]:
    plain = [None if p is None else p.detach().float().contiguous() for p in parameters[:-1]]
    table = parameters[-1]
    assert table is not None
    return [*plain, expand_table(table, shape.window) * LOG2E]


def _fitting(gradients: Sequence[Tensor], parameters: Sequence[Tensor | None]) -> list[Tensor | None]:
    return [None if p is None else g.reshape(p.shape).to(p.dtype) for p, g in zip(parameters, gradients, strict=True)]


def _target(dense: Tensor, out: Tensor, shape: BlockShape) -> Tensor:
    """Where a block's output belongs: behind its input, or for the last one into the result."""
    return out if shape.residual is not None else dense[..., shape.dim : shape.dim + shape.out]


def dense_group(
    x: Tensor, branches: Tensor, shapes: Sequence[BlockShape], eps: float, parameters: Sequence[Tensor | None]
) -> Tensor:
    """A dense group of Swin blocks (:class:`drct.networks.drct.RDG`) with gradients for ``x`` and the parameters.

    Args:
        x: ``(B, H, W, C)``, bfloat16; H and W multiples of the window.
        branches: ``(blocks, B, 2)`` float32, factors of the residual branches: ones, or what stochastic depth drew.
        shapes: of the blocks; all but the last have ``residual=None``.
        eps: of the norms.
        parameters: for each block those of :data:`NAMES`, then its bias table ``((2 * window - 1)**2, heads)``; float32.
    """
    _refuse(x, shapes)
    return _DenseGroup.apply(x, branches.contiguous(), tuple(shapes), eps, torch.is_grad_enabled(), *parameters)


class _SwinBlock(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        beside: Tensor | None,
        branches: Tensor,
        shape: BlockShape,
        eps: float,
        keep: bool,
        *parameters: Tensor | None,
    ) -> Tensor:
        keep = keep and any(ctx.needs_input_grad)
        y = torch.empty_like(x)
        kept = forward(shape, x, y, _prepared(shape, parameters), branches, eps, keep, beside)
        if keep:
            ctx.save_for_backward(x, branches, *parameters, *kept)
            ctx.shape, ctx.eps, ctx.beside = shape, eps, beside is not None
        return y

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, branches, *saved = ctx.saved_tensors
        parameters, kept = saved[:PARAMETERS], saved[PARAMETERS:]
        shape: BlockShape = ctx.shape
        dy = gradients[0].to(torch.bfloat16).contiguous()
        dx, dbeside = torch.zeros_like(x), torch.empty_like(x) if ctx.beside else None
        # without a convolution the kernel needs no result: dy stands for it
        found = backward(shape, x, dy, dy, dx, _prepared(shape, parameters), branches, ctx.eps, kept, dbeside)
        return dx, dbeside, None, None, None, None, *_fitting(found, parameters)


def swin_block(
    x: Tensor, branches: Tensor, shape: BlockShape, eps: float, parameters: Sequence[Tensor | None], beside: Tensor | None = None
) -> Tensor:
    """A Swin block (:class:`drct.networks.window_attention.SwinBlock`) with gradients for ``x``, ``beside`` and the parameters.

    Args:
        x: ``(B, H, W, C)``, bfloat16; H and W multiples of the window.
        branches: ``(B, 2)`` float32, factors of the residual branches.
        shape: of the block; ``out`` is 0.
        eps: of the norms.
        parameters: those of :data:`NAMES`, None for the convolution's two, then the bias table ``((2 * window - 1)**2, heads)``.
        beside: a branch beside attention, like ``x``: the channel attention of HAT.
    """
    _refuse(x, [shape])
    if beside is not None and (beside.shape != x.shape or beside.dtype != x.dtype):
        raise ValueError(f"a branch {tuple(beside.shape)} of {beside.dtype} does not go with a map {tuple(x.shape)} of {x.dtype}")
    beside = None if beside is None else beside.contiguous()
    return _SwinBlock.apply(x.contiguous(), beside, branches.contiguous(), shape, eps, torch.is_grad_enabled(), *parameters)


def _refuse(x: Tensor, shapes: Sequence[BlockShape]) -> None:
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        raise ValueError(f"the kernel takes bfloat16 on the CPU, not {x.dtype} on {x.device}")
    if x.shape[1] % shapes[0].window or x.shape[2] % shapes[0].window or x.shape[3] != shapes[0].dim:
        raise ValueError(f"a map {tuple(x.shape)} does not go with {shapes[0].dim} channels and windows of {shapes[0].window}")
    if any(shape.out > shape.dim or shape.window % 8 for shape in shapes):
        raise ValueError("the kernel takes windows of multiples of 8 and 1x1 convolutions that do not widen")

"""The one bicubic resize of the house: MATLAB's ``imresize``, on numpy arrays and torch tensors.

Keys' cubic kernel with a = -0.5 ("Cubic convolution interpolation for digital image processing", 1981), stretched by 1/scale when
an image shrinks (antialiasing), pixel centres at half integers, borders mirrored with the edge pixel repeated. The benchmarks of
the field are defined by this operator: with ``rounding="uint8_per_pass"`` it reproduces their published low-resolution files bit
for bit.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from drct.errors import OptionError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Rounding = Literal["none", "uint8_per_pass"]
Image = TypeVar("Image", np.ndarray, "Tensor")

SMALL = 1 << 18  # weights of one axis are one dense matrix up to this number of entries (patches), else a band of blocks
BLOCK = 64  # output samples of one block: its matrix reaches only a few samples beyond the kernel
STRIP_BYTES = 16 << 20  # working memory that a numpy image of any size is resized in


def resize(
    image: Image,
    scale: float | tuple[float, float] | None = None,
    size: tuple[int, int] | None = None,
    rounding: Rounding = "none",
    antialias: bool = True,
) -> Image:
    """Resize an image by MATLAB's bicubic interpolation.

    Args:
        image: numpy ``(H, W)`` or ``(H, W, C)``, or torch ``(..., H, W)`` on any device; integers or floats in any range.
        scale: factor, or ``(vertical, horizontal)`` factors; sides become ``ceil(scale * side)``. Either this or ``size``.
        size: ``(height, width)`` of the result; the factors are then the quotients of the sides.
        rounding: ``"none"`` rounds only once, at the end, and only for integer images. ``"uint8_per_pass"`` works as MATLAB does
            on 8-bit images: the values, 0..255 in any type, are rounded half up and clipped to 0..255 after each of the two
            passes, in float64.
        antialias: stretch the kernel when shrinking.

    Returns:
        The same kind, layout and type. Integers are rounded half up and clipped to their type; floats may overshoot their range.
        As in MATLAB the side with the smaller factor is resized first, and rows (the height) when both are equal. Tensors are
        differentiable with ``rounding="none"``. A numpy image needs little memory beside itself and its result, whatever its size.

    Raises:
        OptionError: neither or both of ``scale`` and ``size``, a factor that is not positive, an image without pixels, or values
            that are neither integers nor floats of up to 64 bits.
    """
    if rounding not in ("none", "uint8_per_pass"):
        raise OptionError(f"resize: rounding is 'none' or 'uint8_per_pass', not {rounding!r}")
    if isinstance(image, np.ndarray):
        if image.ndim not in (2, 3):
            raise OptionError(f"resize: an array of shape {image.shape} is not H x W or H x W x C")
        if image.dtype.kind not in "uif" or image.itemsize > 8:
            raise OptionError(f"resize: values of type {image.dtype} are neither integers nor floats of up to 64 bits")
        rows, columns = _axes(image.shape[0], image.shape[1], scale, size, antialias)
        return _resize_array(image, rows, columns, rounding)
    if image.ndim < 2:
        raise OptionError(f"resize: a tensor of shape {tuple(image.shape)} is not ... x H x W")
    if image.is_complex() or str(image.dtype) == "torch.bool":
        raise OptionError(f"resize: values of type {image.dtype} are neither integers nor floats")
    rows, columns = _axes(image.shape[-2], image.shape[-1], scale, size, antialias)
    x = image.to(_working_type(image, rounding))
    return _round(_resize_planes(x, rows, columns, rounding), image.dtype)


class Rows(Protocol):
    """Pixels ``(H, W, C)`` that are read by rows: a numpy array, or anything that gives arrays for row slices."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice) -> np.ndarray: ...


def resize_rows(image: Rows, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Resize an image to ``(height, width)`` as :func:`resize` does, to the same values, strip by strip from top to bottom.

    Args:
        image: its rows are asked for from top to bottom too; neighbouring strips share those that the kernel reaches.
        size: of the result.

    Yields:
        Arrays ``(h, width, C)`` whose heights add up to ``height``.
    """
    rows, columns = _axes(image.shape[0], image.shape[1], None, size, antialias=True)
    return _strips(image, rows, columns, "none")


class Axis(NamedTuple):
    """One side of a resize: samples in, samples out, factor."""

    length: int
    out: int
    scale: float
    antialias: bool

    @property
    def block(self) -> int:
        return self.out if self.length * self.out <= SMALL else BLOCK


def _axes(
    height: int, width: int, scale: float | tuple[float, float] | None, size: tuple[int, int] | None, antialias: bool
) -> tuple[Axis, Axis]:
    if (scale is None) == (size is None):
        raise OptionError("resize: give either scale or size")
    if min(height, width) < 1:
        raise OptionError(f"resize: an image of {width} x {height} has no pixels")
    if scale is not None:
        sy, sx = scale if isinstance(scale, tuple) else (scale, scale)
        if not all(math.isfinite(s) and s > 0 for s in (sy, sx)):
            raise OptionError(f"resize: the scale must be positive, not {scale}")
        # The slack keeps a product that should be whole, like 9 * (1 / 3) or 10 * 1.1, from gaining a pixel.
        out = [max(1, math.ceil(side * s - 1e-9)) for side, s in ((height, sy), (width, sx))]
    else:
        assert size is not None
        out = [int(side) for side in size]
        if min(out) < 1:
            raise OptionError(f"resize: the size must be at least 1 x 1, not {out[1]} x {out[0]}")
        sy, sx = out[0] / height, out[1] / width
    return Axis(height, out[0], float(sy), antialias), Axis(width, out[1], float(sx), antialias)


def cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel, a = -0.5; zero from 2 on."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


@functools.lru_cache(maxsize=64)
def taps(axis: Axis) -> tuple[np.ndarray, np.ndarray]:
    """Where each output sample comes from: indices (int64) and weights (float64, summing to 1), both ``(out, taps)``."""
    stretch = min(axis.scale, 1.0) if axis.antialias else 1.0
    support = 4.0 / stretch
    centre = (np.arange(axis.out) + 0.5) / axis.scale - 0.5
    first = np.floor(centre - support / 2).astype(np.int64)
    index = first[:, None] + np.arange(math.ceil(support) + 2)
    weight = cubic(stretch * (centre[:, None] - index))
    weight /= weight.sum(axis=1, keepdims=True)
    used = np.any(weight != 0, axis=0)
    index, weight = index[:, used] % (2 * axis.length), weight[:, used]
    index = np.where(index < axis.length, index, 2 * axis.length - 1 - index)
    index.flags.writeable = weight.flags.writeable = False
    return index, weight


class Block(NamedTuple):
    """Outputs ``start:stop`` are ``matrix`` times inputs ``low:high``."""

    start: int
    stop: int
    low: int
    high: int
    matrix: Tensor


@functools.lru_cache(maxsize=32)
def _blocks(axis: Axis, dtype: torch.dtype, device: torch.device) -> tuple[Block, ...]:
    import torch

    index, weight = taps(axis)
    blocks = []
    for start in range(0, axis.out, axis.block):
        part = index[start : start + axis.block]
        low, high = int(part.min()), int(part.max()) + 1
        matrix = np.zeros((len(part), high - low))
        np.add.at(matrix, (np.arange(len(part))[:, None], part - low), weight[start : start + axis.block])
        with torch.inference_mode(False):  # a cached inference tensor could not take part in a later backward pass
            blocks.append(Block(start, start + len(part), low, high, torch.from_numpy(matrix).to(device, dtype)))
    return tuple(blocks)


@functools.lru_cache(maxsize=32)
def _tap_tensors(axis: Axis, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    import torch

    index, weight = taps(axis)
    with torch.inference_mode(False):
        return torch.tensor(index.T, device=device), torch.tensor(weight.T, device=device).to(dtype)


def _exact_products(x: Tensor) -> bool:
    """Whether a matrix product of this tensor keeps its precision; training may have asked for TF32 or bfloat16."""
    import torch

    return x.dtype == torch.float64 or (x.device.type == "cpu" and torch.get_float32_matmul_precision() == "highest")


def _resize_axis(x: Tensor, dim: int, axis: Axis, start: int, stop: int, first: int) -> Tensor:
    """Outputs ``start:stop`` (whole blocks) along ``dim`` (-2 or -1) of a float ``x`` whose samples begin at input ``first``."""
    import torch

    if axis.length == axis.out and axis.scale == 1:
        return x.narrow(dim, start - first, stop - start)
    if _exact_products(x):
        parts = []
        with torch.autocast(x.device.type, enabled=False):
            for block in _blocks(axis, x.dtype, x.device)[start // axis.block : -(-stop // axis.block)]:
                source = x.narrow(dim, block.low - first, block.high - block.low)
                parts.append(block.matrix @ source if dim == -2 else source @ block.matrix.T)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
    index, weight = (t[:, start:stop] for t in _tap_tensors(axis, x.dtype, x.device))
    if dim == -2:
        weight = weight.unsqueeze(-1)
    index = index - first
    out = x.index_select(dim, index[0]) * weight[0]
    for i in range(1, len(index)):
        out = torch.addcmul(out, x.index_select(dim, index[i]), weight[i])
    return out


def _resize_planes(
    x: Tensor, rows: Axis, columns: Axis, rounding: Rounding, start: int = 0, stop: int = -1, first: int = 0
) -> Tensor:
    """Rows ``start:stop`` of the resized ``x`` (..., h, W), which begins at input row ``first``."""
    stop = rows.out if stop < 0 else stop
    passes = [(-2, rows, start, stop, first), (-1, columns, 0, columns.out, 0)]
    for arguments in sorted(passes, key=lambda p: p[1].scale):
        x = _resize_axis(x, *arguments)
        if rounding == "uint8_per_pass":
            x = (x + 0.5).floor().clamp(0, 255)
    return x


def _resize_array(image: np.ndarray, rows: Axis, columns: Axis, rounding: Rounding) -> np.ndarray:
    target = np.empty((rows.out, columns.out, *image.shape[2:]), image.dtype)
    row = 0
    for strip in _strips(image if image.ndim == 3 else image[:, :, None], rows, columns, rounding):
        target[row : row + len(strip)] = strip if image.ndim == 3 else strip[:, :, 0]
        row += len(strip)
    return target


def _strips(image: Rows, rows: Axis, columns: Axis, rounding: Rounding) -> Iterator[np.ndarray]:
    import torch

    index, _ = taps(rows)
    step = 0
    start = 0
    while start < rows.out:
        stop = min(start + (step or 1), rows.out)
        low, high = int(index[start:stop].min()), int(index[start:stop].max()) + 1
        part = image[low:high]
        source = torch.from_numpy(np.require(part, part.dtype.newbyteorder("="), ["C", "W"]))
        working = _working_type(source, rounding)
        if not step:  # only now is the type known
            row_bytes = image.shape[2] * working.itemsize * (columns.length + columns.out) * (1 + rows.length / rows.out)
            step = max(1, int(STRIP_BYTES / row_bytes / rows.block)) * rows.block
            continue
        x = source.permute(2, 0, 1).to(working, memory_format=torch.contiguous_format)
        x = _round(_resize_planes(x, rows, columns, rounding, start, stop, low), source.dtype)
        yield x.permute(1, 2, 0).contiguous().numpy()
        start = stop


def _working_type(x: Tensor, rounding: Rounding) -> torch.dtype:
    import torch

    if x.dtype == torch.float64:
        return torch.float64
    wide = not x.is_floating_point() and x.itemsize > 2  # float32 has 24 bits of precision
    exact = (wide or rounding == "uint8_per_pass") and x.device.type != "mps"  # Apple's GPUs have no float64
    return torch.float64 if exact else torch.float32


def _round(x: Tensor, dtype: torch.dtype) -> Tensor:
    import torch

    if dtype.is_floating_point:
        return x.to(dtype)
    info = torch.iinfo(dtype)
    top = torch.tensor(info.max, dtype=x.dtype)
    if int(top) > info.max:  # rounded up: what lies there would wrap around
        top = torch.nextafter(top, torch.zeros((), dtype=x.dtype))
    return (x + 0.5).floor().clamp(info.min, top.item()).to(dtype)

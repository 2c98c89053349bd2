"""A folded Swin block on a GPU: matrix products in half precision, everything between them fused into Triton kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from drct.engine.folding import Affine, FoldedSwin, pad_head_inputs, pad_heads
from drct.engine.gpu import kernels

# Bytes that rows of matrices begin at multiples of: the vendor's fastest kernels ask for it. DRCT's widths (180, 212, ...) and
# those of its heads are no such multiples in half precision.
ALIGNMENT = 16


class GPULayer:
    """A Swin block with the layer folded into it, or an overlapping cross-attention block.

    Rows are pixels in raster order, ``(B * H * W, dim)``, float32. A block's residual and hidden rows stand side by side where a
    layer is folded, so that it is a single product over both. What products read and write is widened by zeros to
    :data:`ALIGNMENT`, their weights too, and so is every head.

    Attributes:
        dim, out_dim: channels of the block's input, and of what the folded layer returns.
        width: columns of normed rows, ``dim`` widened.
    """

    def __init__(self, block: FoldedSwin, device: torch.device, dtype: torch.dtype) -> None:
        self.dim, self.out_dim, self.window, self.shift = block.dim, block.out_dim, block.window, block.shift
        self.border = (round(block.position_bias.shape[-1] ** 0.5) - block.window) // 2
        self.multiply_adds, self.dtype = block.multiply_adds(), dtype
        step = ALIGNMENT // dtype.itemsize
        self.width, hidden, out, head = (
            -(-n // step) * step for n in (block.dim, len(block.fc1.weight), block.out_dim, block.head_dim)
        )

        def placed(layer: Affine) -> tuple[Tensor, Tensor]:
            return layer.weight.to(device, dtype), layer.bias.to(device, dtype)

        qkv = pad_heads(block.qkv, block.heads, block.head_dim, head)
        qkv.weight[: block.heads * head] *= kernels.LOG2E
        qkv.bias[: block.heads * head] *= kernels.LOG2E
        self.qkv = placed(_widened(qkv, len(qkv.weight), self.width))
        proj = pad_head_inputs(block.proj, block.heads, block.head_dim, head)
        self.proj = placed(_widened(proj, self.width, block.heads * head))
        self.fc1 = placed(_widened(block.fc1, hidden, self.width))
        self.bias = (block.position_bias * kernels.LOG2E).to(device, dtype).contiguous()
        last = _widened(block.from_hidden, out, hidden)
        if block.from_residual is not None:
            last.weight = torch.cat([_widened(block.from_residual, out, self.width).weight, last.weight], 1)
        self.last = placed(last)
        self.norms = [(n.weight.to(device), n.bias.to(device), n.eps) for n in (block.norm1, block.norm2)]

    def norm1(self, x: Tensor) -> Tensor:
        """The first norm, in half precision, ``(T, width)``."""
        return kernels.layer_norm(x, *self.norms[0], self.dtype, self.width)

    def attended(self, normed: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Attention of normed rows, output projection included, ``(T, width)``."""
        y = kernels.window_attention(F.linear(normed, *self.qkv), self.bias, size, self.window, self.shift, self.border)
        return F.linear(y, *self.proj)

    def folded(self, x: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Block and folded layer: rows ``(T, dim)``, possibly columns of a wider buffer, to half precision.

        The result has ``out_dim`` columns, widened.
        """
        both = torch.empty(len(x), self.last[0].shape[1], dtype=self.dtype, device=x.device)
        y = kernels.add_layer_norm(
            x, self.attended(self.norm1(x), size), both[:, : self.width], *self.norms[1], self.dtype, self.width
        )
        kernels.gelu_into(F.linear(y, *self.fc1), both[:, self.width :])
        return F.linear(both, *self.last)

    def update(self, x: Tensor, size: tuple[int, int, int], normed: Tensor | None = None) -> None:
        """A block without a folded layer, on rows in place; ``normed`` replaces the first norm of ``x``."""
        normed = self.norm1(x) if normed is None else normed
        y = kernels.add_layer_norm(x, self.attended(normed, size), x, *self.norms[1], self.dtype, self.width)
        hidden = F.linear(y, *self.fc1)
        kernels.gelu_into(hidden, hidden)
        kernels.add_into(F.linear(hidden, *self.last), x)


def _widened(layer: Affine, rows: int, columns: int) -> Affine:
    """A layer with zeros for further outputs and inputs."""
    weight, bias = layer.weight.new_zeros(rows, columns), layer.bias.new_zeros(rows)
    weight[: len(layer.weight), : layer.weight.shape[1]] = layer.weight
    bias[: len(layer.bias)] = layer.bias
    return Affine(weight, bias)

"""A folded Swin block on a GPU: matrix products in half precision, everything between them fused into Triton kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from drct.engine.folding import Affine, FoldedSwin
from drct.engine.gpu import kernels


class GPULayer:
    """A Swin block with the layer folded into it, or an overlapping cross-attention block.

    Rows are pixels in raster order, ``(B * H * W, dim)``, float32. A block's residual and hidden rows stand side by side where a
    layer is folded, so that it is a single product over both.
    """

    def __init__(self, block: FoldedSwin, device: torch.device, dtype: torch.dtype) -> None:
        self.dim, self.out_dim, self.window, self.shift = block.dim, block.out_dim, block.window, block.shift
        self.border = (round(block.position_bias.shape[-1] ** 0.5) - block.window) // 2
        self.multiply_adds, self.dtype = block.multiply_adds(), dtype

        def placed(layer: Affine) -> tuple[Tensor, Tensor]:
            return layer.weight.to(device, dtype), layer.bias.to(device, dtype)

        qkv = Affine(block.qkv.weight.clone(), block.qkv.bias.clone())
        qkv.weight[: block.dim] *= kernels.LOG2E
        qkv.bias[: block.dim] *= kernels.LOG2E
        self.qkv, self.proj, self.fc1 = placed(qkv), placed(block.proj), placed(block.fc1)
        self.bias = (block.position_bias * kernels.LOG2E).to(device, dtype).contiguous()
        last = block.from_hidden.weight
        if block.from_residual is not None:
            last = torch.cat([block.from_residual.weight, last], 1)
        self.last = placed(Affine(last, block.from_hidden.bias))
        self.norms = [(n.weight.to(device), n.bias.to(device), n.eps) for n in (block.norm1, block.norm2)]

    def norm1(self, x: Tensor) -> Tensor:
        """The first norm, in half precision."""
        return kernels.layer_norm(x, *self.norms[0], self.dtype)

    def attended(self, normed: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Attention of normed rows, output projection included."""
        y = kernels.window_attention(F.linear(normed, *self.qkv), self.bias, size, self.window, self.shift, self.border)
        return F.linear(y, *self.proj)

    def folded(self, x: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Block and folded layer: rows ``(T, dim)``, possibly columns of a wider buffer, to half-precision ``(T, out_dim)``."""
        both = torch.empty(len(x), self.last[0].shape[1], dtype=self.dtype, device=x.device)
        y = kernels.add_layer_norm(x, self.attended(self.norm1(x), size), both[:, : self.dim], *self.norms[1], self.dtype)
        kernels.gelu_into(F.linear(y, *self.fc1), both[:, self.dim :])
        return F.linear(both, *self.last)

    def update(self, x: Tensor, size: tuple[int, int, int], normed: Tensor | None = None) -> None:
        """A block without a folded layer, on rows in place; ``normed`` replaces the first norm of ``x``."""
        normed = self.norm1(x) if normed is None else normed
        y = kernels.add_layer_norm(x, self.attended(normed, size), x, *self.norms[1], self.dtype)
        hidden = F.linear(y, *self.fc1)
        kernels.gelu_into(hidden, hidden)
        kernels.add_into(F.linear(hidden, *self.last), x)

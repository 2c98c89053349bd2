"""Linear layers whose weights oneDNN has laid out once for this processor, and convolutions."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drct.engine import native
from drct.engine.folding import Affine

TOKENS = 1024  # rows for which a layout is asked; layouts do not depend much on it


@functools.cache
def packing_available() -> str | None:
    """None when oneDNN's packed layers work in this build of torch, else the reason why not.

    The operators are the ones that torch's own compiler emits; they are checked once against the plain ones.
    """
    if not torch.backends.mkldnn.is_available():
        return "this build of torch has no oneDNN"
    generator = torch.Generator().manual_seed(0)  # of its own: whoever seeded the common one counts on its numbers
    x, weight, bias = (torch.randn(n, generator=generator, dtype=torch.float32, device="cpu") for n in ((32, 20), (24, 20), (24,)))
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 32)
        y = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "gelu", [], "none")
        z = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        said = str(error).partition("\n")[0] or type(error).__name__
        return f"this build of torch cannot pack linear layers ({said})"
    plain = F.linear(x, weight, bias)
    if not (torch.allclose(y, F.gelu(plain), atol=1e-4) and torch.allclose(z, plain, atol=1e-4)):
        return "packed linear layers of this build of torch return other values"
    return None


@functools.cache
def multiplies(dtype: torch.dtype) -> bool:
    """Whether packed layers take this type here: oneDNN refuses bfloat16 on processors without instructions for it."""
    if packing_available() is not None:
        return False
    try:
        torch.ops.mkldnn._reorder_linear_weight(torch.zeros(32, 32, dtype=dtype, device="cpu"), 32)
    except RuntimeError:
        return False
    return True


class Linear:
    """``x @ weight.T + bias``, optionally with exact GELU, or with another tensor added.

    Where the processor has no products of ``dtype``, which torch would imitate at a small part of the rate, they are computed in
    float32 from the rounded weights; inputs and outputs are of ``dtype`` all the same.
    """

    def __init__(self, layer: Affine, dtype: torch.dtype) -> None:
        self.out_dim = len(layer.weight)
        self.dtype = dtype
        self.packed = packing_available() is None
        self.products = dtype if multiplies(dtype) or not self.packed else torch.float32
        weight = layer.weight.to(dtype).to(self.products)
        self.bias = layer.bias.to(dtype).to(self.products) if layer.bias.any() else None
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TOKENS) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        return self._product(x).to(self.dtype)

    def gelu(self, x: Tensor) -> Tensor:
        """The layer followed by GELU."""
        if not self.packed:
            return F.gelu(self._product(x))
        if self.products == torch.float32 and native.gelu_available() is None:
            return native.gelu_(self._product(x)).to(self.dtype)
        return self._product(x, "gelu").to(self.dtype)

    def _product(self, x: Tensor, after: str = "none") -> Tensor:
        """In the type of the products; ``after`` is an operation that oneDNN fuses, for packed layers only."""
        if not self.packed:
            return F.linear(x, self.weight, self.bias)
        variant = "none" if after == "gelu" else ""  # of GELU: the exact one
        return torch.ops.mkldnn._linear_pointwise(x.to(self.products), self.weight, self.bias, after, [], variant)

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        """The layer plus ``other``, which has the shape of its output.

        Two operations: oneDNN's fused sum is up to eight times slower when the layer also has a bias, and no faster without.
        """
        return self(x).add_(other)


class Conv2d:
    """Convolution with zero padding on channels-last maps of ``dtype``, its output times ``factor``."""

    def __init__(
        self, conv: nn.Conv2d, factor: float = 1.0, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> None:
        weight = (conv.weight.detach().float() * factor).to(device, dtype)
        self.weight = weight.contiguous(memory_format=torch.channels_last)
        self.bias = None if conv.bias is None else (conv.bias.detach().float() * factor).to(device, dtype)
        self.padding = conv.kernel_size[0] // 2

    def __call__(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` with channels-last strides to the same with other channels."""
        return F.conv2d(x, self.weight, self.bias, padding=self.padding)

"""Exact rewriting of trained weights: what follows a linear layer linearly is multiplied into it once, not per pixel.

Everything is computed in float64 and rounded once. Zero padding between two convolutions is respected: factors commute with it and
are folded across it, added constants do not and are not; convolutions are folded into each other with weights of their own for
the border (:class:`FoldedUpsampler`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drct.networks.drct import BLOCKS, RDG
from drct.networks.hat import OCAB
from drct.networks.window_attention import SwinBlock, gather_bias

Convolution = tuple[Tensor, Tensor | None]  # weight and bias

REACH = 2  # pixels that 3x3 convolutions with shuffles between look to each side, however many they are
EXAMPLES = 0, 2 * REACH + 1, 4 * REACH + 2  # a first, an inner and a last row (or column) so far apart that no pixel reaches two


@dataclasses.dataclass
class Affine:
    """``y = x @ weight.T + bias``: weight ``(out, in)``, bias ``(out)``, both float32."""

    weight: Tensor
    bias: Tensor


@dataclasses.dataclass
class Norm:
    """LayerNorm over the last axis."""

    weight: Tensor
    bias: Tensor
    eps: float

    @classmethod
    def of(cls, norm: nn.Module | None) -> Norm | None:
        """The values of a LayerNorm; None for an identity or nothing in its place."""
        if isinstance(norm, nn.LayerNorm):
            return cls(norm.weight.detach().float().clone(), norm.bias.detach().float().clone(), norm.eps)
        return None


@dataclasses.dataclass
class FoldedSwin:
    """A Swin block, and the linear layer that alone reads its output if there is one.

    With ``h = gelu(fc1(norm2(u)))`` and ``u = x + proj(attention(norm1(x)))`` the block returns ``u + fc2(h)``, so a layer
    ``A`` after it is ``from_residual(u) + from_hidden(h)``, where ``from_hidden`` is the product of ``A`` and ``fc2``. Without
    such a layer ``from_residual`` is None and stands for ``u`` itself, and ``from_hidden`` is ``fc2``.

    Attributes:
        qkv: rows ordered (q|k|v, head, head_dim); the query rows carry the scale of the scores.
        position_bias: ``(heads, window**2, keys)``; ``keys`` is ``window**2`` but for overlapping cross-attention.
        masks: ``(4, window**2, window**2)``, see :func:`drct.networks.window_attention.shift_masks`.
        from_hidden: carries the sum of all biases; that of ``from_residual`` is zero.
    """

    window: int
    shift: int
    heads: int
    head_dim: int
    norm1: Norm
    qkv: Affine
    position_bias: Tensor
    masks: Tensor
    proj: Affine
    norm2: Norm
    fc1: Affine
    from_residual: Affine | None
    from_hidden: Affine

    @property
    def dim(self) -> int:
        """Channels of the block's input."""
        return self.qkv.weight.shape[1]

    @property
    def out_dim(self) -> int:
        """Channels that the folded last layer returns."""
        return self.from_hidden.weight.shape[0]

    def products(self) -> list[tuple[int, int]]:
        """(in, out) of every matrix that a pixel is multiplied with."""
        matrices = (self.qkv, self.proj, self.fc1, self.from_residual, self.from_hidden)
        return [(m.weight.shape[1], m.weight.shape[0]) for m in matrices if m is not None]

    def multiply_adds(self) -> int:
        """Multiply-adds per pixel, with attention counted as its two matrix products."""
        return sum(k * n for k, n in self.products()) + 2 * self.position_bias.shape[-1] * self.heads * self.head_dim


def affine(layer: nn.Linear | nn.Conv2d, factor: float = 1.0) -> Affine:
    """A linear layer or 1x1 convolution, times ``factor``."""
    weight = layer.weight.detach().double().flatten(1) * factor
    bias = layer.weight.new_zeros(len(weight)).double() if layer.bias is None else layer.bias.detach().double() * factor
    return Affine(weight.float(), bias.float())


def fold_after(fc2: nn.Linear, after: nn.Module | None, factor: float = 1.0) -> tuple[Affine | None, Affine]:
    """``from_residual`` and ``from_hidden`` (see :class:`FoldedSwin`) of a block that ends with ``u + fc2(h)``."""
    if after is None:
        return None, affine(fc2)
    assert isinstance(after, (nn.Conv2d, nn.Linear))
    a = after.weight.detach().double().flatten(1) * factor
    a_bias = after.weight.new_zeros(len(a)).double() if after.bias is None else after.bias.detach().double() * factor
    weight, bias = fc2.weight.detach().double(), fc2.bias.detach().double()
    return Affine(a.float(), torch.zeros_like(a_bias).float()), Affine((a @ weight).float(), (a @ bias + a_bias).float())


def fold_swin(block: nn.Module, after: nn.Module | None = None, factor: float = 1.0) -> FoldedSwin:
    """Fold a Swin block, the 1x1 convolution or linear layer ``after`` it, and a ``factor`` on that layer's output."""
    assert isinstance(block, SwinBlock)
    attn = block.attn
    norm1, norm2 = Norm.of(block.norm1), Norm.of(block.norm2)
    assert norm1 is not None
    assert norm2 is not None
    from_residual, from_hidden = fold_after(block.mlp.fc2, after, factor)
    return FoldedSwin(
        window=attn.window,
        shift=attn.shift,
        heads=attn.num_heads,
        head_dim=attn.dim // attn.num_heads,
        norm1=norm1,
        qkv=_scaled_queries(attn.qkv, attn.scale),
        position_bias=gather_bias(attn.relative_position_bias_table.detach().float(), attn.relative_position_index),
        masks=attn.masks,
        proj=affine(attn.proj),
        norm2=norm2,
        fc1=affine(block.mlp.fc1),
        from_residual=from_residual,
        from_hidden=from_hidden,
    )


def fold_overlap(block: nn.Module) -> FoldedSwin:
    """HAT's overlapping cross-attention block: a Swin block without shift whose windows have more keys than queries."""
    assert isinstance(block, OCAB)
    norm1, norm2 = Norm.of(block.norm1), Norm.of(block.norm2)
    assert norm1 is not None
    assert norm2 is not None
    return FoldedSwin(
        window=block.window,
        shift=0,
        heads=block.num_heads,
        head_dim=block.proj.in_features // block.num_heads,
        norm1=norm1,
        qkv=_scaled_queries(block.qkv, block.scale),
        position_bias=gather_bias(block.relative_position_bias_table.detach().float(), block.relative_position_index),
        masks=torch.zeros(1, 1, 1, dtype=torch.float32, device="cpu"),
        proj=affine(block.proj),
        norm2=norm2,
        fc1=affine(block.mlp.fc1),
        from_residual=None,
        from_hidden=affine(block.mlp.fc2),
    )


def _scaled_queries(qkv: nn.Linear, scale: float) -> Affine:
    folded = affine(qkv)
    queries = qkv.in_features
    folded.weight[:queries] *= scale
    folded.bias[:queries] *= scale
    return folded


def pad_heads(affine_qkv: Affine, heads: int, head_dim: int, padded: int) -> Affine:
    """Widen every head of a query/key/value matrix with zero rows: scores and values stay, columns beyond are zero."""
    weight = affine_qkv.weight.new_zeros(3, heads, padded, affine_qkv.weight.shape[1])
    bias = affine_qkv.bias.new_zeros(3, heads, padded)
    weight[:, :, :head_dim] = affine_qkv.weight.view(3, heads, head_dim, -1)
    bias[:, :, :head_dim] = affine_qkv.bias.view(3, heads, head_dim)
    return Affine(weight.flatten(0, 2), bias.flatten())


def pad_head_inputs(proj: Affine, heads: int, head_dim: int, padded: int) -> Affine:
    """Zero columns in the output projection for heads that were widened by :func:`pad_heads`."""
    weight = proj.weight.new_zeros(len(proj.weight), heads, padded)
    weight[:, :, :head_dim] = proj.weight.view(-1, heads, head_dim)
    return Affine(weight.flatten(1), proj.bias)


def fold_group(group: RDG) -> list[FoldedSwin]:
    """The five blocks of a residual dense group with their 1x1 convolutions, the group's factor 0.2 included."""
    return [
        fold_swin(group.get_submodule(f"swin{j + 1}"), group.get_submodule(f"adjust{j + 1}"), 0.2 if j == BLOCKS - 1 else 1.0)
        for j in range(BLOCKS)
    ]


@dataclasses.dataclass
class FoldedUpsampler:
    """3x3 convolutions with pixel shuffles between, nothing else: one convolution and one shuffle.

    Each output pixel is a sum over 5 x 5 input pixels. In the first and last row and column some of the features between do not
    exist and count as zero, so the weights are others there.

    Attributes:
        scale: magnification.
        weights: ``(3, 3, out * scale**2, in, 5, 5)``; the first two axes are first, inner and last row and column.
        biases: ``(3, 3, out * scale**2)``.
        saved_multiply_adds: per input pixel, compared with one convolution after the other.
    """

    scale: int
    weights: Tensor
    biases: Tensor
    saved_multiply_adds: int


def fold_upsampler(layers: Sequence[nn.Module], factor: float = 1.0) -> FoldedUpsampler | None:
    """Fold convolutions and shuffles that take turns, a convolution first and last; None where that saves nothing.

    ``factor`` multiplies the result. The weights are the gradient of single outputs with respect to the input: nine examples of
    pixels (corner, edge, inside) at once, on a map that keeps them apart.
    """
    steps: list[Convolution | int] = []  # a number stands for a shuffle
    scale, plain = 1, 0
    for layer in layers:
        if isinstance(layer, nn.PixelShuffle):
            steps.append(layer.upscale_factor)
            scale *= layer.upscale_factor
        elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and layer.padding == (1, 1):
            steps.append(_convolution(layer))
            plain += layer.weight.numel() * scale**2
        else:
            return None
    first, last = layers[0], layers[-1]
    in_turns = all(isinstance(step, int) == bool(i % 2) for i, step in enumerate(steps))
    if not in_turns or not isinstance(first, nn.Conv2d) or not isinstance(last, nn.Conv2d):
        return None
    outputs, side = last.out_channels * scale**2, EXAMPLES[-1] + 1
    saved = plain - (2 * REACH + 1) ** 2 * first.in_channels * outputs
    if saved <= 0:
        return None

    at = torch.tensor(EXAMPLES, device="cpu")
    constant = torch.zeros(1, first.in_channels, side, side, dtype=torch.float64, device="cpu")
    for step in steps:
        constant = F.pixel_shuffle(constant, step) if isinstance(step, int) else F.conv2d(constant, *step, padding=1)
    single = torch.zeros(outputs, outputs, side, side, dtype=torch.float64, device="cpu")
    single[:, :, at[:, None], at] = torch.eye(outputs, dtype=torch.float64, device="cpu")[..., None, None]
    parts = []
    for part in F.pixel_shuffle(single, scale).split(16):  # the maps between are wide
        for step in reversed(steps):
            part = F.pixel_unshuffle(part, step) if isinstance(step, int) else F.conv_transpose2d(part, step[0], padding=1)
        parts.append(part)
    around = F.pad(torch.cat(parts), (REACH,) * 4).unfold(2, 2 * REACH + 1, 1).unfold(3, 2 * REACH + 1, 1)
    return FoldedUpsampler(
        scale,
        weights=around[:, :, at[:, None], at].permute(2, 3, 0, 1, 4, 5).mul(factor).float(),
        biases=F.pixel_unshuffle(constant, scale)[0, :, at[:, None], at].permute(1, 2, 0).mul(factor).float(),
        saved_multiply_adds=saved,
    )


def _convolution(layer: nn.Conv2d) -> Convolution:
    return layer.weight.detach().cpu().double(), None if layer.bias is None else layer.bias.detach().cpu().double()

"""HAT: Hybrid Attention Transformer (Chen et al., CVPR 2023, arXiv 2205.04437; extended in 2309.05239).

The outline stands in :mod:`drct.networks.body`; a group here is a residual hybrid attention group (RHAG, section 3.2):

    RHAG(x) = x + conv(ocab(hab_n(...hab_1(x))))

A hybrid attention block (HAB) adds channel attention to a Swin block; the overlapping cross-attention block (OCAB) lets each
window look over its borders.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drct.errors import OptionError
from drct.networks.base import init_weights
from drct.networks.body import BodyNetwork, WindowOptions, drop_path_rates, residual_convolution
from drct.networks.float32 import LayerNorm
from drct.networks.window_attention import (
    Mlp,
    SwinBlock,
    gather_bias,
    relative_position_index,
    to_bchw,
    window_partition,
    window_reverse,
)


@dataclasses.dataclass(frozen=True)
class HATOptions(WindowOptions):
    """Options of :class:`HAT`; ``depths`` holds the hybrid attention blocks of each group.

    Attributes:
        compress_ratio: the convolutions of a channel attention block meet at ``embed_dim // compress_ratio`` channels.
        squeeze_factor: channel attention itself squeezes to ``embed_dim // squeeze_factor`` channels.
        conv_scale: weight of the channel attention branch, alpha of the paper.
        overlap_ratio: keys and values of overlapping cross-attention reach ``overlap_ratio * window_size / 2`` over each border.
    """

    window_size: int = 16
    compress_ratio: int = 3
    squeeze_factor: int = 30
    conv_scale: float = 0.01
    overlap_ratio: float = 0.5

    upsamplers: ClassVar[tuple[str, ...]] = ("pixelshuffle",)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("compress_ratio", "squeeze_factor"):
            if not 1 <= getattr(self, name) <= self.embed_dim:
                raise OptionError(f"{name} is {getattr(self, name)}, but must be between 1 and embed_dim, {self.embed_dim}")
        if self.window_size < 2:
            raise OptionError(f"window_size is {self.window_size}, but must be 2 or more")
        if self.overlap_ratio < 0 or (self.overlap_window - self.window_size) % 2:
            raise OptionError(f"overlap_ratio {self.overlap_ratio} of a window of {self.window_size} gives no two equal borders")

    @property
    def overlap_window(self) -> int:
        """Side of the patch that keys and values come from."""
        return int(self.window_size * self.overlap_ratio) + self.window_size


class ChannelAttention(nn.Module):
    """Squeeze and excite: each channel times a number between 0 and 1 that depends on all channels' means."""

    def __init__(self, dim: int, squeezed: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(dim, squeezed, 1), nn.ReLU(inplace=True), nn.Conv2d(squeezed, dim, 1), nn.Sigmoid()
        )

    def forward(self, x_bchw: Tensor) -> Tensor:
        return x_bchw * self.attention(x_bchw)


class CAB(nn.Module):
    """Channel attention block: two 3x3 convolutions through a bottleneck, then channel attention."""

    def __init__(self, dim: int, compressed: int, squeezed: int) -> None:
        super().__init__()
        self.cab = nn.Sequential(
            nn.Conv2d(dim, compressed, 3, 1, 1), nn.GELU(), nn.Conv2d(compressed, dim, 3, 1, 1), ChannelAttention(dim, squeezed)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` in and out."""
        return self.cab(to_bchw(x)).permute(0, 2, 3, 1)


class HAB(SwinBlock):
    """Hybrid attention block (paper, equation 3): ``x + Attention(LN(x)) + alpha CAB(LN(x))``, then ``x + MLP(LN(x))``.

    Stochastic depth leaves the channel attention alone, as in the published code.
    """

    def __init__(self, options: HATOptions, heads: int, shift: int, drop_path: float) -> None:
        d = options.embed_dim
        super().__init__(
            d,
            heads,
            window=options.window_size,
            shift=shift,
            mlp_ratio=options.mlp_ratio,
            qkv_bias=options.qkv_bias,
            qk_scale=options.qk_scale,
            drop=options.drop_rate,
            attn_drop=options.attn_drop_rate,
            drop_path=drop_path,
        )
        self.conv_scale = options.conv_scale
        self.conv_block = CAB(d, d // options.compress_ratio, d // options.squeeze_factor)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` in and out."""
        normed = self.norm1(x)
        return self.second_half(x + self.drop_path(self.attention(normed)) + self.conv_branch(normed))

    def conv_branch(self, normed: Tensor) -> Tensor:
        """``alpha CAB(normed)``"""
        return self.conv_scale * self.conv_block(normed)


def overlap_position_index(window: int, overlap_window: int) -> Tensor:
    """Row of the bias table for each query of a window and each key of its larger patch; int64, some rows from the end.

    Query (y, x) and key (v, u), both counted from the corner of their own square, belong to row
    ``(v - y + window - overlap_window + 1) * (window + overlap_window - 1) + (u - x + window - overlap_window + 1)``. The
    published formula yields negative rows too; no two offsets meet in one row when these count from the end of the table.
    """
    ys, xs = (t.flatten() for t in torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij"))
    vs, us = (t.flatten() for t in torch.meshgrid(torch.arange(overlap_window), torch.arange(overlap_window), indexing="ij"))
    offset = window - overlap_window + 1
    dy, dx = vs[None, :] - ys[:, None] + offset, us[None, :] - xs[:, None] + offset
    return dy * (window + overlap_window - 1) + dx


class OCAB(nn.Module):
    """Overlapping cross-attention block (paper, section 3.2.2): queries from windows, keys and values from larger patches.

    Patches lie at the stride of the windows and reach over every border alike; beyond the map they see zeros.
    """

    relative_position_index: Tensor

    def __init__(self, options: HATOptions, heads: int) -> None:
        super().__init__()
        d = options.embed_dim
        self.window, self.overlap_window, self.num_heads = options.window_size, options.overlap_window, heads
        self.scale = options.qk_scale or (d // heads) ** -0.5
        self.norm1 = LayerNorm(d)
        self.qkv = nn.Linear(d, 3 * d, bias=options.qkv_bias)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((self.window + self.overlap_window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        index = overlap_position_index(self.window, self.overlap_window)
        self.register_buffer("relative_position_index", index, persistent=False)
        self.proj = nn.Linear(d, d)
        self.norm2 = LayerNorm(d)
        self.mlp = Mlp(d, int(d * options.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` in and out."""
        x = x + self.proj(self.attention(self.qkv(self.norm1(x))))
        return x + self.mlp(self.norm2(x))

    def attention(self, qkv: Tensor) -> Tensor:
        """``(B, H, W, 3 * dim)`` to ``(B, H, W, dim)``."""
        b, h, w, _ = qkv.shape
        heads, side = self.num_heads, self.overlap_window
        dim = qkv.shape[-1] // 3
        rows, columns = h // self.window, w // self.window
        n = self.window**2
        q = window_partition(qkv[..., :dim].contiguous(), self.window).reshape(b * rows * columns, n, heads, dim // heads)
        border = (side - self.window) // 2
        padded = F.pad(qkv[..., dim:], (0, 0, border, border, border, border))
        patches = padded.unfold(1, side, self.window).unfold(2, side, self.window)  # (B, rows, columns, 2 dim, side, side)
        kv = patches.reshape(b * rows * columns, 2, heads, dim // heads, side * side)
        k, v = kv.transpose(-1, -2).unbind(1)
        bias = gather_bias(self.relative_position_bias_table, self.relative_position_index).to(q.dtype)
        out = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=bias, scale=self.scale)
        return window_reverse(out.transpose(1, 2).reshape(b, rows, columns, n, dim), self.window)


class HybridBlocks(nn.Module):
    """The blocks of one group, a level of its own in the published names."""

    def __init__(self, options: HATOptions, group: int, drop_path: list[float]) -> None:
        super().__init__()
        heads = options.num_heads[group]
        self.blocks = nn.ModuleList(
            HAB(options, heads, shift=options.window_size // 2 if i % 2 else 0, drop_path=rate) for i, rate in enumerate(drop_path)
        )
        self.overlap_attn = OCAB(options, heads)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.overlap_attn(x)


class RHAG(nn.Module):
    """Residual hybrid attention group (paper, section 3.2)."""

    def __init__(self, options: HATOptions, group: int, drop_path: list[float]) -> None:
        super().__init__()
        self.residual_group = HybridBlocks(options, group, drop_path)
        self.conv = residual_convolution(options.embed_dim, options.resi_connection)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, embed_dim)`` in and out."""
        return x + self.conv(to_bchw(self.residual_group(x))).permute(0, 2, 3, 1)


class HAT(BodyNetwork):
    """The network; options in :class:`HATOptions`.

    The two position indices that published files store at the top level are constants here, recomputed and not saved.
    """

    architecture = "hat"
    options: HATOptions

    def __init__(self, options: HATOptions) -> None:
        def groups() -> list[nn.Module]:
            return [RHAG(options, g, rates) for g, rates in enumerate(drop_path_rates(options))]

        super().__init__(options, groups, pad_multiple=options.window_size)
        window, larger = options.window_size, options.overlap_window
        self.register_buffer("relative_position_index_SA", relative_position_index(window), persistent=False)
        self.register_buffer("relative_position_index_OCA", overlap_position_index(window, larger), persistent=False)
        self.apply(init_weights)


# Named sizes: what differs from the defaults of HATOptions.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "hat": {},
    "hat_s": {"embed_dim": 144, "compress_ratio": 24, "squeeze_factor": 24},
    "hat_l": {"depths": (6,) * 12, "num_heads": (6,) * 12},
}

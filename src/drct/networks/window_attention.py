"""Window attention with relative position bias: the parts that SwinIR, HAT and DRCT share.

Swin Transformer (Liu et al., ICCV 2021, arXiv 2103.14030), sections 3.2 and 3.3. Feature maps are channels-last,
``x_bhwc`` of shape ``(B, H, W, C)`` with H and W multiples of the window size, so that no layer has to transpose.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drct.networks.float32 import LayerNorm

MASKED = -100.0  # added to the score of two positions that only the cyclic shift made neighbours


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of positions in a window; shape ``(window**2, window**2)``, int64.

    The row of query (y, x) and key (v, u) is ``(y - v + window - 1) * (2 * window - 1) + (x - u + window - 1)``.
    """
    y, x = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + window - 1
    dx = x[:, None] - x[None, :] + window - 1
    return dy * (2 * window - 1) + dx


def shift_masks(window: int, shift: int) -> Tensor:
    """The four masks that windows of a shifted map can need; shape ``(4, window**2, window**2)``, 0 or -100.

    Rolling the map by ``-shift`` brings pixels from opposite borders together only in the last row and the last column
    of windows. Entry 0 belongs to all other windows (no mask), 1 to the last column, 2 to the last row, 3 to the corner.
    """
    wrapped = torch.arange(window) >= window - shift  # positions that came from the other side
    row = wrapped[:, None].expand(window, window).flatten()
    column = wrapped[None, :].expand(window, window).flatten()
    other_row = row[:, None] != row[None, :]
    other_column = column[:, None] != column[None, :]
    nowhere = torch.zeros_like(other_row)
    return torch.stack([nowhere, other_column, other_row, other_row | other_column]).float() * MASKED


def window_partition(x_bhwc: Tensor, window: int) -> Tensor:
    """Cut ``(B, H, W, C)`` into windows: ``(B, H / window, W / window, window**2, C)``."""
    b, h, w, c = x_bhwc.shape
    x = x_bhwc.view(b, h // window, window, w // window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(b, h // window, w // window, window * window, c)


def window_reverse(windows: Tensor, window: int) -> Tensor:
    """Inverse of :func:`window_partition`."""
    b, rows, columns, _, c = windows.shape
    x = windows.view(b, rows, columns, window, window, c)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(b, rows * window, columns * window, c)


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., ECCV 2016): during training a sample skips the branch with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with relative position bias and the mask of shifted windows.

    ``softmax(q k^T / sqrt(d) + bias + mask) v`` per head. The masks live beside the weights, in no state dict. The bias is gathered
    from its table in every pass: a change of the table through ``.data`` leaves no trace that a cache could see.

    Args:
        dim: channels.
        window: side of a window in pixels.
        num_heads: heads; must divide ``dim``.
        shift: cyclic shift in pixels that the caller applied before cutting windows; 0 for none.
        qkv_bias: biases in the query, key and value projections.
        qk_scale: replaces ``1 / sqrt(dim / num_heads)``.
    """

    relative_position_index: Tensor
    masks: Tensor

    def __init__(
        self,
        dim: int,
        window: int,
        num_heads: int,
        shift: int = 0,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.window = window
        self.num_heads = num_heads
        self.shift = shift
        self.scale = qk_scale or (dim // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window), persistent=False)
        self.register_buffer("masks", shift_masks(window, shift), persistent=False)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.attn_drop = attn_drop
        self.proj_drop = nn.Dropout(proj_drop)

    def position_bias(self, dtype: torch.dtype) -> Tensor:
        """Relative position bias, ``(num_heads, window**2, window**2)``."""
        return gather_bias(self.relative_position_bias_table, self.relative_position_index).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Attend within each window of ``x``: ``(B, rows, columns, window**2, dim)`` in and out."""
        b, rows, columns, n, c = x.shape
        qkv = self.qkv(x).view(b, rows, columns, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(4, 0, 1, 2, 5, 3, 6)  # each (B, rows, columns, heads, window**2, head_dim)
        bias = self.position_bias(q.dtype)
        if self.shift == 0:
            out = self.attend(q, k, v, bias)
        else:
            masks = self.masks.to(q.dtype)[:, None]
            # only the last row and column of windows hold pixels from two sides of the map
            top = [
                self.attend(q[:, :-1, :-1], k[:, :-1, :-1], v[:, :-1, :-1], bias + masks[0]),
                self.attend(q[:, :-1, -1:], k[:, :-1, -1:], v[:, :-1, -1:], bias + masks[1]),
            ]
            bottom = [
                self.attend(q[:, -1:, :-1], k[:, -1:, :-1], v[:, -1:, :-1], bias + masks[2]),
                self.attend(q[:, -1:, -1:], k[:, -1:, -1:], v[:, -1:, -1:], bias + masks[3]),
            ]
            out = torch.cat([torch.cat(top, 2), torch.cat(bottom, 2)], 1)
        return self.proj_drop(self.proj(out))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Attention of some windows that share one bias; returns ``(B, rows, columns, window**2, dim)``."""
        b, rows, columns, heads, n, d = q.shape
        if rows * columns == 0:
            return q.new_empty(b, rows, columns, n, heads * d)
        q, k, v = (t.reshape(-1, heads, n, d) for t in (q, k, v))
        out = F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, dropout_p=self.attn_drop if self.training else 0.0, scale=self.scale
        )
        return out.transpose(1, 2).reshape(b, rows, columns, n, heads * d)


def gather_bias(table: Tensor, index: Tensor) -> Tensor:
    """Expand a bias table ``(T, heads)`` by ``index`` ``(queries, keys)`` to ``(heads, queries, keys)``."""
    return table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1).contiguous()


class SwinBlock(nn.Module):
    """Swin Transformer block: ``x + Attention(LN(x))``, then ``x + MLP(LN(x))``.

    Args:
        dim: channels.
        num_heads: attention heads.
        window: side of a window; H and W of the input are multiples of it.
        shift: cyclic shift in pixels, 0 or half a window.
        mlp_ratio: hidden width of the MLP relative to ``dim``.
        drop_path: rate of stochastic depth.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int,
        shift: int,
        mlp_ratio: float,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = LayerNorm(dim)
        self.attn = WindowAttention(dim, window, num_heads, shift, qkv_bias, qk_scale, attn_drop, drop)
        self.drop_path = DropPath(drop_path)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` in and out."""
        return self.second_half(self.first_half(x))

    def first_half(self, x: Tensor) -> Tensor:
        """``x + Attention(LN(x))``"""
        return x + self.drop_path(self.attention(self.norm1(x)))

    def second_half(self, x: Tensor) -> Tensor:
        """``x + MLP(LN(x))``"""
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def attention(self, x: Tensor) -> Tensor:
        """(Shifted) window attention on a whole map ``(B, H, W, dim)``."""
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = window_reverse(self.attn(window_partition(x, self.window)), self.window)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x


class PatchEmbed(nn.Module):
    """Image to tokens. With patch size 1 nothing is left of it but the LayerNorm that the published state dicts contain."""

    def __init__(self, dim: int, patch_norm: bool = True) -> None:
        super().__init__()
        if patch_norm:
            self.norm: nn.Module = LayerNorm(dim)
        else:
            self.norm = nn.Identity()

    def forward(self, x_bchw: Tensor) -> Tensor:
        """``(B, C, H, W)`` to ``(B, H, W, C)``."""
        return self.norm(x_bchw.permute(0, 2, 3, 1))


def to_bchw(x_bhwc: Tensor) -> Tensor:
    """View a channels-last map as ``(B, C, H, W)``; its memory stays channels-last, which is what convolutions like."""
    return x_bhwc.permute(0, 3, 1, 2)

"""What DRCT's relatives have in common: options, deep features group by group, reconstruction.

SwinIR (Liang et al., ICCV Workshops 2021), HAT (Chen et al., CVPR 2023) and what follows them share one outline and differ in
their groups:

    shallow features   F0 = conv_first(x)
    deep features      FD = conv_after_body(norm(group_N(...group_1(F0)))) + F0
    reconstruction     y  = tail(FD)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from drct.errors import OptionError
from drct.networks.base import SuperResolutionNetwork, Upsample, UpsampleOneStep
from drct.networks.float32 import Conv2d, LayerNorm
from drct.networks.window_attention import PatchEmbed, to_bchw

NUM_FEAT = 64  # channels of the reconstruction


@dataclasses.dataclass(frozen=True)
class BodyOptions:
    """Options that every network of this outline has, under the names of the published option files.

    Attributes:
        upscale: magnification.
        in_chans: image channels.
        img_size: training patch in LR pixels; only absolute position embeddings depend on it.
        embed_dim: channels between the groups.
        depths: one entry per group.
        mlp_ratio: hidden width of the MLPs relative to their channels.
        upsampler: ``"pixelshuffle"``, ``"pixelshuffledirect"`` (one convolution) or ``"nearest+conv"`` (scales 2 and 4); not every
            family has all.
        resi_connection: ``"1conv"``, ``"3conv"`` (a bottleneck of three) or ``"identity"``; not every family has all.
        img_range: value range inside the network.
        drop_path_rate: largest rate of stochastic depth.
        ape: absolute position embeddings; inputs must then be ``img_size`` x ``img_size``.
        use_checkpoint: recompute groups in the backward pass to save memory.
    """

    upscale: int = 4
    in_chans: int = 3
    img_size: int = 64
    embed_dim: int = 180
    depths: tuple[int, ...] = (6,) * 6
    mlp_ratio: float = 2.0
    upsampler: str = "pixelshuffle"
    resi_connection: str = "1conv"
    img_range: float = 1.0
    drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    ape: bool = False
    patch_norm: bool = True
    use_checkpoint: bool = False

    upsamplers: ClassVar[tuple[str, ...]] = ("pixelshuffle", "pixelshuffledirect")
    connections: ClassVar[tuple[str, ...]] = ("1conv", "identity")

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # those of the families, too
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise OptionError(f"{field.name} is {value}, but must be a finite number")
            if field.name.endswith("_rate") and not 0 <= value < 1:
                raise OptionError(f"{field.name} is {value}, but must be at least 0 and below 1")
            if field.name in ("img_range", "qk_scale") and value is not None and value <= 0:
                raise OptionError(f"{field.name} is {value}, but must be above 0")
        if not self.depths or min(self.depths) < 1:
            raise OptionError(f"depths is {list(self.depths)}: at least one group, and one block in each, is needed")
        for name in ("upscale", "in_chans", "img_size", "embed_dim"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if int(self.embed_dim * self.mlp_ratio) < 1:
            raise OptionError(f"mlp_ratio {self.mlp_ratio} leaves no hidden channel of {self.embed_dim}")
        for name, known in (("upsampler", self.upsamplers), ("resi_connection", self.connections)):
            if getattr(self, name) not in known:
                raise OptionError(f"{name} '{getattr(self, name)}' is unknown: use {' or '.join(map(repr, known))}")
        if self.upsampler == "nearest+conv" and self.upscale not in (2, 4):
            raise OptionError(f"scale {self.upscale} is not possible with 'nearest+conv': use 2 or 4")
        if self.resi_connection == "3conv" and self.embed_dim < 4:
            raise OptionError(f"resi_connection '3conv' needs at least 4 channels, but embed_dim is {self.embed_dim}")


@dataclasses.dataclass(frozen=True)
class WindowOptions(BodyOptions):
    """Options of the networks whose blocks attend within windows.

    Attributes:
        num_heads: attention heads in the blocks of each group.
        window_size: side of an attention window in LR pixels.
        qkv_bias: biases in the query, key and value projections.
        qk_scale: replaces ``1 / sqrt(head dimension)``.
        attn_drop_rate: dropout of attention weights.
    """

    num_heads: tuple[int, ...] = (6,) * 6
    window_size: int = 8
    qkv_bias: bool = True
    qk_scale: float | None = None
    attn_drop_rate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.depths) != len(self.num_heads):
            raise OptionError(
                f"depths has {len(self.depths)} entries and num_heads {len(self.num_heads)}: one of each per group is needed"
            )
        if self.window_size < 1:
            raise OptionError(f"window_size is {self.window_size}, but must be at least 1")
        for heads in self.num_heads:
            if heads < 1 or self.embed_dim % heads:
                raise OptionError(f"{heads} heads do not divide {self.embed_dim} channels: change embed_dim or num_heads")


def drop_path_rates(options: BodyOptions) -> list[list[float]]:
    """Rate of stochastic depth for every block of every group: linear from 0 to ``drop_path_rate``."""
    rates = torch.linspace(0, options.drop_path_rate, sum(options.depths), device="cpu").tolist()
    starts = [sum(options.depths[:g]) for g in range(len(options.depths))]
    return [rates[start : start + depth] for start, depth in zip(starts, options.depths, strict=True)]


def residual_convolution(dim: int, connection: str) -> nn.Module:
    """The convolution that ends a group and the body."""
    if connection == "1conv":
        return nn.Conv2d(dim, dim, 3, 1, 1)
    if connection == "3conv":
        return nn.Sequential(
            nn.Conv2d(dim, dim // 4, 3, 1, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(dim // 4, dim // 4, 1),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(dim // 4, dim, 3, 1, 1),
        )
    return nn.Identity()


class BodyNetwork(SuperResolutionNetwork):
    """The outline with its groups left open.

    Args:
        options: of the family.
        make_groups: makes the deep layers, each ``(B, H, W, embed_dim)`` in and out. It is called between the first convolution
            and the last norm, so that random numbers are drawn in the order of the layers, as in the published networks.
        pad_multiple: sides of the input are padded to a multiple of it.
    """

    options: BodyOptions

    def __init__(self, options: BodyOptions, make_groups: Callable[[], Sequence[nn.Module]], pad_multiple: int) -> None:
        if options.ape and options.img_size % pad_multiple:
            raise OptionError(f"img_size is {options.img_size}, but with ape must be a multiple of the window, {pad_multiple}")
        super().__init__(
            options, scale=options.upscale, in_chans=options.in_chans, pad_multiple=pad_multiple, img_range=options.img_range
        )
        d, num_out = options.embed_dim, options.in_chans
        self.conv_first = Conv2d(options.in_chans, d, 3, 1, 1)
        self.patch_embed = PatchEmbed(d, options.patch_norm)
        if options.ape:
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, options.img_size**2, d))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(options.drop_rate)
        self.layers = nn.ModuleList(make_groups())
        self.norm = LayerNorm(d)
        self.conv_after_body = residual_convolution(d, options.resi_connection)
        if options.upsampler == "pixelshuffledirect":
            self.upsample: nn.Module = UpsampleOneStep(options.upscale, d, num_out)
            return
        self.conv_before_upsample = nn.Sequential(nn.Conv2d(d, NUM_FEAT, 3, 1, 1), nn.LeakyReLU(inplace=True))
        if options.upsampler == "pixelshuffle":
            self.upsample = Upsample(options.upscale, NUM_FEAT)
        else:
            self.conv_up1 = nn.Conv2d(NUM_FEAT, NUM_FEAT, 3, 1, 1)
            if options.upscale == 4:
                self.conv_up2 = nn.Conv2d(NUM_FEAT, NUM_FEAT, 3, 1, 1)
            self.conv_hr = nn.Conv2d(NUM_FEAT, NUM_FEAT, 3, 1, 1)
        self.conv_last = Conv2d(NUM_FEAT, num_out, 3, 1, 1)

    def forward_features(self, x: Tensor) -> Tensor:
        """Deep features: shallow features ``(B, d, H, W)`` through all groups, same shape out."""
        x = self.patch_embed(x)
        if self.options.ape:
            side = self.options.img_size
            if x.shape[1:3] != (side, side):
                padded = f"padded to multiples of {self.pad_multiple} this one is {x.shape[1]} x {x.shape[2]}"
                raise OptionError(f"with ape the input must be {side} x {side}, as it comes or padded: {padded}")
            x = x + self.absolute_pos_embed.view(1, side, side, -1)
        x = self.pos_drop(x)
        for group in self.layers:
            if self.options.use_checkpoint and self.training and torch.is_grad_enabled():
                x = checkpoint(group, x, use_reentrant=False)
            else:
                x = group(x)
        return to_bchw(self.norm(x))

    def forward_padded(self, x: Tensor) -> Tensor:
        x = self.conv_first(x)
        x = self.conv_after_body(self.forward_features(x)) + x
        if self.options.upsampler == "pixelshuffledirect":
            return self.upsample(x)
        x = self.conv_before_upsample(x)
        if self.options.upsampler == "pixelshuffle":
            return self.conv_last(self.upsample(x))
        x = enlarge(x, self.conv_up1)
        if self.options.upscale == 4:
            x = enlarge(x, self.conv_up2)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), 0.2))


def enlarge(x: Tensor, conv: nn.Module) -> Tensor:
    """Repeat every pixel 2 x 2 and convolve: the step of the ``nearest+conv`` tail."""
    return F.leaky_relu(conv(F.interpolate(x, scale_factor=2, mode="nearest")), 0.2)

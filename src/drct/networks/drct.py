"""DRCT: Dense Residual Connected Transformer (Hsu, Lee, Chou; CVPR Workshops 2024, arXiv 2404.00722).

Window transformers for super-resolution lose feature intensity towards the end of a deep body, the paper's "information
bottleneck". DRCT puts dense connections inside each group so that what the first layers saw still reaches the last one.

    shallow features   F0 = conv_first(x)                                   (paper, section 3.2)
    deep features      FD = conv_after_body(norm(RDG_N(...RDG_1(F0)))) + F0
    reconstruction     y  = conv_last(upsample(conv_before_upsample(FD)))

Read from top to bottom: the block list of one group, the group (RDG), the network, the named sizes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from drct.errors import OptionError
from drct.networks.base import SuperResolutionNetwork, Upsample, UpsampleOneStep, init_weights
from drct.networks.window_attention import PatchEmbed, SwinBlock, to_bchw

BLOCKS = 5  # Swin blocks in one group; the number is part of the architecture, not an option
MLP_RATIO_LAST = 1.0  # the two widest blocks keep a narrow MLP


@dataclasses.dataclass(frozen=True)
class DRCTOptions:
    """Options of :class:`DRCT`, under the names of the published option files.

    Attributes:
        upscale: magnification.
        in_chans: image channels.
        img_size: training patch in LR pixels; only absolute position embeddings depend on it.
        embed_dim: channels d between the groups.
        depths: one entry per group; the values only shape the schedule of stochastic depth.
        num_heads: heads h of the first block of each group; block j gets ``h - (d + j gc) % h``.
        window_size: side of an attention window in LR pixels.
        gc: growth channels of the dense connections.
        mlp_ratio: hidden width of the MLP in blocks 1 to 3; blocks 4 and 5 use 1.
        head_dim: if given, every block has ``dim_j / head_dim`` heads instead (not a published option).
        block_heads: if given, the heads of the five blocks (not a published option).
        upsampler: ``"pixelshuffle"`` (published) or ``"pixelshuffledirect"`` (one convolution, for light networks).
        resi_connection: ``"1conv"`` or ``"identity"``.
        img_range: value range inside the network.
        drop_path_rate: largest rate of stochastic depth.
        use_checkpoint: recompute groups in the backward pass to save memory.
    """

    upscale: int = 4
    in_chans: int = 3
    img_size: int = 64
    embed_dim: int = 180
    depths: tuple[int, ...] = (6,) * 6
    num_heads: tuple[int, ...] = (6,) * 6
    window_size: int = 16
    gc: int = 32
    mlp_ratio: float = 2.0
    head_dim: int | None = None
    block_heads: tuple[int, ...] | None = None
    upsampler: str = "pixelshuffle"
    resi_connection: str = "1conv"
    img_range: float = 1.0
    qkv_bias: bool = True
    qk_scale: float | None = None
    drop_rate: float = 0.0
    attn_drop_rate: float = 0.0
    drop_path_rate: float = 0.1
    ape: bool = False
    patch_norm: bool = True
    use_checkpoint: bool = False

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.num_heads):
            raise OptionError(
                f"depths has {len(self.depths)} entries and num_heads {len(self.num_heads)}: one of each per group is needed"
            )
        if not self.depths:
            raise OptionError("depths is empty: at least one group is needed")
        for name in ("upscale", "in_chans", "img_size", "embed_dim", "window_size", "gc"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.upsampler not in ("pixelshuffle", "pixelshuffledirect"):
            raise OptionError(f"upsampler '{self.upsampler}' is unknown: use 'pixelshuffle' or 'pixelshuffledirect'")
        if self.resi_connection not in ("1conv", "identity"):
            raise OptionError(f"resi_connection '{self.resi_connection}' is unknown: use '1conv' or 'identity'")
        if self.block_heads is not None and len(self.block_heads) != BLOCKS:
            raise OptionError(f"block_heads has {len(self.block_heads)} entries, but a group has {BLOCKS} blocks")

    def block_dims(self) -> tuple[int, ...]:
        """Channels that each of the five blocks works on: d, d + c, ..., d + 4c."""
        return tuple(self.embed_dim + j * self.gc for j in range(BLOCKS))

    def heads_of_group(self, group: int) -> tuple[int, ...]:
        """Attention heads of the five blocks of a group."""
        dims = self.block_dims()
        if self.block_heads is not None:
            heads = self.block_heads
        elif self.head_dim is not None:
            heads = tuple(dim // self.head_dim for dim in dims)
        else:
            h = self.num_heads[group]
            heads = (h, *(h - dim % h for dim in dims[1:]))
        for j, (dim, n) in enumerate(zip(dims, heads, strict=True)):
            if n < 1 or dim % n or (self.head_dim is not None and dim % self.head_dim):
                raise OptionError(
                    f"block {j + 1} has {dim} channels, which {n} heads do not divide: change embed_dim, gc or the heads"
                )
        return heads

    @property
    def follows_published_rule(self) -> bool:
        """Whether programs that know only the published architecture can rebuild this network from its tensors."""
        published = dataclasses.replace(self, head_dim=None, block_heads=None)
        try:
            same = all(published.heads_of_group(g) == self.heads_of_group(g) for g in range(len(self.depths)))
        except OptionError:
            return False
        return same and self.upsampler == "pixelshuffle" and self.patch_norm and not self.ape


class RDG(nn.Module):
    """Residual dense group (paper, section 3.3): five Swin blocks, each seeing the outputs of all before it.

    ``x_j = lrelu(adjust_j(swin_j([x, x_1, ..., x_{j-1}])))`` for j = 1..4, ``x_5 = adjust_5(swin_5([...]))``;
    the group returns ``x + 0.2 x_5``.
    """

    def __init__(self, options: DRCTOptions, group: int, drop_path: float) -> None:
        super().__init__()
        heads = options.heads_of_group(group)
        for j, dim in enumerate(options.block_dims()):
            swin = SwinBlock(
                dim,
                heads[j],
                window=options.window_size,
                shift=options.window_size // 2 if j % 2 else 0,
                mlp_ratio=options.mlp_ratio if j < 3 else MLP_RATIO_LAST,
                qkv_bias=options.qkv_bias,
                qk_scale=options.qk_scale,
                drop=options.drop_rate,
                attn_drop=options.attn_drop_rate,
                drop_path=drop_path,
            )
            out_dim = options.gc if j < BLOCKS - 1 else options.embed_dim
            self.add_module(f"swin{j + 1}", swin)
            self.add_module(f"adjust{j + 1}", nn.Conv2d(dim, out_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, embed_dim)`` in and out."""
        dense = x
        for j in range(BLOCKS - 1):
            dense = torch.cat([dense, F.leaky_relu(self.step(j, dense), 0.2)], dim=-1)
        return x + 0.2 * self.step(BLOCKS - 1, dense)

    def step(self, j: int, x: Tensor) -> Tensor:
        """Swin block j and its 1x1 convolution."""
        swin, adjust = self.get_submodule(f"swin{j + 1}"), self.get_submodule(f"adjust{j + 1}")
        return adjust(to_bchw(swin(x))).permute(0, 2, 3, 1)


class DRCT(SuperResolutionNetwork):
    """The network. See the head of this file; options in :class:`DRCTOptions`."""

    architecture = "drct"
    options: DRCTOptions

    def __init__(self, options: DRCTOptions) -> None:
        super().__init__(
            options,
            scale=options.upscale,
            in_chans=options.in_chans,
            pad_multiple=options.window_size,
            img_range=options.img_range,
        )
        d, num_feat, num_out = options.embed_dim, 64, options.in_chans
        # each group uses the first rate of its slice of the linear schedule for all of its blocks
        rates = torch.linspace(0, options.drop_path_rate, sum(options.depths)).tolist()
        starts = [sum(options.depths[:g]) for g in range(len(options.depths))]

        self.conv_first = nn.Conv2d(options.in_chans, d, 3, 1, 1)
        self.patch_embed = PatchEmbed(d, options.patch_norm)
        if options.ape:
            self.absolute_pos_embed = nn.Parameter(torch.zeros(1, options.img_size**2, d))
            nn.init.trunc_normal_(self.absolute_pos_embed, std=0.02)
        self.pos_drop = nn.Dropout(options.drop_rate)
        self.layers = nn.ModuleList(RDG(options, g, rates[start]) for g, start in enumerate(starts))
        self.norm = nn.LayerNorm(d)
        self.conv_after_body = (
            nn.Conv2d(d, d, 3, 1, 1) if options.resi_connection == "1conv" else nn.Identity()
        )  # fmt: skip
        if options.upsampler == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(nn.Conv2d(d, num_feat, 3, 1, 1), nn.LeakyReLU(inplace=True))
            self.upsample: nn.Module = Upsample(options.upscale, num_feat)
            self.conv_last = nn.Conv2d(num_feat, num_out, 3, 1, 1)
        else:
            self.upsample = UpsampleOneStep(options.upscale, d, num_out)
        self.apply(init_weights)

    def forward_features(self, x: Tensor) -> Tensor:
        """Deep features: shallow features ``(B, d, H, W)`` through all groups, same shape out."""
        x = self.patch_embed(x)
        if self.options.ape:
            side = self.options.img_size
            if x.shape[1:3] != (side, side):
                raise OptionError(f"with ape the input must be {side} x {side}, not {x.shape[1]} x {x.shape[2]}")
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
        if self.options.upsampler == "pixelshuffle":
            return self.conv_last(self.upsample(self.conv_before_upsample(x)))
        return self.upsample(x)


# Named sizes: what differs from the defaults of DRCTOptions.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "drct": {},
    "drct_l": {"depths": (6,) * 12, "num_heads": (6,) * 12},
    "drct_xl": {"depths": (6,) * 14, "num_heads": (6,) * 14},
    # for everyday use on a CPU: 1.13 M parameters at x4, every head 16 channels wide
    "drct_light": {
        "embed_dim": 48,
        "gc": 16,
        "depths": (6,) * 4,
        "num_heads": (3,) * 4,
        "head_dim": 16,
        "upsampler": "pixelshuffledirect",
        "drop_path_rate": 0.0,
    },
}

"""DRCT: Dense Residual Connected Transformer (Hsu, Lee, Chou; CVPR Workshops 2024, arXiv 2404.00722).

Window transformers for super-resolution lose feature intensity towards the end of a deep body, the paper's "information
bottleneck". DRCT puts dense connections inside each group so that what the first layers saw still reaches the last one.

    shallow features   F0 = conv_first(x)                                   (paper, section 3.2)
    deep features      FD = conv_after_body(norm(RDG_N(...RDG_1(F0)))) + F0
    reconstruction     y  = conv_last(upsample(conv_before_upsample(FD)))

Read from top to bottom: options, the dense group, the network, the named sizes. The outline of the network (shallow features,
groups, reconstruction) is shared with its relatives and stands in ``body.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drct.errors import OptionError
from drct.networks.base import init_weights
from drct.networks.body import BodyNetwork, BodyOptions, drop_path_rates
from drct.networks.window_attention import SwinBlock, to_bchw

BLOCKS = 5  # blocks in one group; the number is part of the architecture, not an option
MLP_RATIO_LAST = 1.0  # the two widest blocks keep a narrow MLP


@dataclasses.dataclass(frozen=True)
class DenseOptions(BodyOptions):
    """Options of networks made of dense groups; those of every body are in :class:`drct.networks.body.BodyOptions`.

    ``depths`` has one entry per group, whose value only shapes the schedule of stochastic depth. ``mlp_ratio`` holds for the first
    three blocks of a group; the last two use 1.

    Attributes:
        gc: growth channels of the dense connections.
    """

    gc: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gc < 1:
            raise OptionError(f"gc is {self.gc}, but must be at least 1")

    def block_dims(self) -> tuple[int, ...]:
        """Channels that each of the five blocks works on: d, d + c, ..., d + 4c."""
        return tuple(self.embed_dim + j * self.gc for j in range(BLOCKS))

    def block_mlp_ratios(self) -> tuple[float, ...]:
        """Hidden width of the MLP of each of the five blocks relative to its channels."""
        return (self.mlp_ratio,) * 3 + (MLP_RATIO_LAST,) * 2


@dataclasses.dataclass(frozen=True)
class DRCTOptions(DenseOptions):
    """Options of :class:`DRCT`, under the names of the published option files.

    Attributes:
        num_heads: heads h of the first block of each group; block j gets ``h - (d + j gc) % h``.
        window_size: side of an attention window in LR pixels.
        head_dim: if given, every block has ``dim_j / head_dim`` heads instead (not a published option).
        block_heads: if given, the heads of the five blocks (not a published option).
        qkv_bias: biases in the query, key and value projections.
        qk_scale: replaces ``1 / sqrt(head dimension)``.
        attn_drop_rate: dropout of attention weights.
    """

    num_heads: tuple[int, ...] = (6,) * 6
    window_size: int = 16
    head_dim: int | None = None
    block_heads: tuple[int, ...] | None = None
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
        if min(self.num_heads) < 1:
            raise OptionError(f"num_heads is {list(self.num_heads)}, but each must be at least 1")
        if self.head_dim is not None and self.head_dim < 1:
            raise OptionError(f"head_dim is {self.head_dim}, but must be at least 1")
        if self.block_heads is not None and len(self.block_heads) != BLOCKS:
            raise OptionError(f"block_heads has {len(self.block_heads)} entries, but a group has {BLOCKS} blocks")

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
                by_width = self.head_dim is not None and self.block_heads is None
                kind = f"heads of head_dim {self.head_dim}" if by_width else f"{n} heads"
                raise OptionError(
                    f"block {j + 1} has {dim} channels, which {kind} do not divide: change embed_dim, gc or the heads"
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


class DenseGroup(nn.Module):
    """Five blocks, each seeing the outputs of all before it, and five 1x1 convolutions (paper, section 3.3).

    ``x_j = lrelu(adjust_j(block_j([x, x_1, ..., x_{j-1}])))`` for j = 1..4, ``x_5 = adjust_5(block_5([...]))``;
    the group returns ``x + 0.2 x_5``.

    Args:
        options: widths.
        name: blocks are registered as ``NAME1`` .. ``NAME5``.
        make_block: makes block j = 0..4, which takes and returns ``(B, H, W, d + j gc)``.
    """

    def __init__(self, options: DenseOptions, name: str, make_block: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.name = name
        for j, dim in enumerate(options.block_dims()):
            self.add_module(f"{name}{j + 1}", make_block(j))
            self.add_module(f"adjust{j + 1}", nn.Conv2d(dim, options.gc if j < BLOCKS - 1 else options.embed_dim, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, embed_dim)`` in and out."""
        dense = x
        for j in range(BLOCKS - 1):
            dense = torch.cat([dense, F.leaky_relu(self.step(j, dense), 0.2)], dim=-1)
        return x + 0.2 * self.step(BLOCKS - 1, dense)

    def step(self, j: int, x: Tensor) -> Tensor:
        """Block j and its 1x1 convolution."""
        block, adjust = self.get_submodule(f"{self.name}{j + 1}"), self.get_submodule(f"adjust{j + 1}")
        return adjust(to_bchw(block(x))).permute(0, 2, 3, 1)


class RDG(DenseGroup):
    """Residual dense group: a dense group of Swin blocks, of which the second and the fourth are shifted."""

    def __init__(self, options: DRCTOptions, group: int, drop_path: float) -> None:
        dims, heads, mlp_ratios = options.block_dims(), options.heads_of_group(group), options.block_mlp_ratios()

        def block(j: int) -> nn.Module:
            return SwinBlock(
                dims[j],
                heads[j],
                window=options.window_size,
                shift=options.window_size // 2 if j % 2 else 0,
                mlp_ratio=mlp_ratios[j],
                qkv_bias=options.qkv_bias,
                qk_scale=options.qk_scale,
                drop=options.drop_rate,
                attn_drop=options.attn_drop_rate,
                drop_path=drop_path,
            )

        super().__init__(options, "swin", block)


class DRCT(BodyNetwork):
    """The network. See the head of this file; options in :class:`DRCTOptions`."""

    architecture = "drct"
    options: DRCTOptions

    def __init__(self, options: DRCTOptions) -> None:
        def groups() -> list[nn.Module]:
            # each group uses the first rate of its slice of the linear schedule for all of its blocks
            return [RDG(options, g, rates[0]) for g, rates in enumerate(drop_path_rates(options))]

        super().__init__(options, groups, pad_multiple=options.window_size)
        self.apply(init_weights)


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


def settle_heads(chosen: dict[str, Any], named: Mapping[str, Any]) -> None:
    """``num_heads`` that a caller names take the place of a named size's ``head_dim``, unless first blocks have as many by it."""
    width = chosen.get("head_dim")
    if width is not None and "num_heads" in named and "head_dim" not in named:
        dim = chosen.get("embed_dim", DRCTOptions.embed_dim)
        if any(heads * width != dim for heads in chosen["num_heads"]):
            del chosen["head_dim"]

"""SwinIR: image restoration with Swin Transformer (Liang et al., ICCV Workshops 2021, arXiv 2108.10257).

The outline stands in :mod:`drct.networks.body`; a group here is a residual Swin Transformer block (RSTB, section 3.1):

    RSTB(x) = x + conv(swin_n(...swin_1(x))),    every second Swin block on shifted windows
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor, nn

from drct.networks.base import init_weights
from drct.networks.body import BodyNetwork, WindowOptions, drop_path_rates, residual_convolution
from drct.networks.window_attention import SwinBlock, to_bchw


@dataclasses.dataclass(frozen=True)
class SwinIROptions(WindowOptions):
    """Options of :class:`SwinIR`; ``depths`` holds the Swin blocks of each group."""

    upsamplers: ClassVar[tuple[str, ...]] = ("pixelshuffle", "pixelshuffledirect", "nearest+conv")
    connections: ClassVar[tuple[str, ...]] = ("1conv", "3conv")


class SwinBlocks(nn.Module):
    """The Swin blocks of one group, a level of its own in the published names."""

    def __init__(self, options: SwinIROptions, group: int, drop_path: list[float]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            SwinBlock(
                options.embed_dim,
                options.num_heads[group],
                window=options.window_size,
                shift=options.window_size // 2 if i % 2 else 0,
                mlp_ratio=options.mlp_ratio,
                qkv_bias=options.qkv_bias,
                qk_scale=options.qk_scale,
                drop=options.drop_rate,
                attn_drop=options.attn_drop_rate,
                drop_path=rate,
            )
            for i, rate in enumerate(drop_path)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class RSTB(nn.Module):
    """Residual Swin Transformer block (paper, equations 5 and 6)."""

    def __init__(self, options: SwinIROptions, group: int, drop_path: list[float]) -> None:
        super().__init__()
        self.residual_group = SwinBlocks(options, group, drop_path)
        self.conv = residual_convolution(options.embed_dim, options.resi_connection)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, embed_dim)`` in and out."""
        return x + self.conv(to_bchw(self.residual_group(x))).permute(0, 2, 3, 1)


class SwinIR(BodyNetwork):
    """The network; options in :class:`SwinIROptions`."""

    architecture = "swinir"
    options: SwinIROptions

    def __init__(self, options: SwinIROptions) -> None:
        def groups() -> list[nn.Module]:
            return [RSTB(options, g, rates) for g, rates in enumerate(drop_path_rates(options))]

        super().__init__(options, groups, pad_multiple=options.window_size)
        self.apply(init_weights)


# Named sizes: what differs from the defaults of SwinIROptions.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "swinir": {},
    "swinir_light": {"embed_dim": 60, "depths": (6,) * 4, "num_heads": (6,) * 4, "upsampler": "pixelshuffledirect"},
    "swinir_real": {"upsampler": "nearest+conv"},
    "swinir_real_large": {
        "embed_dim": 240,
        "depths": (6,) * 9,
        "num_heads": (8,) * 9,
        "upsampler": "nearest+conv",
        "resi_connection": "3conv",
    },
}

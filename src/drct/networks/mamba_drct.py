"""MambaDRCT: DRCT whose window attention is replaced by a two-dimensional selective scan (SS2D).

The authors of DRCT announced it ("replace the Swin layer with SS2D") and gave it up because it was slow to train; no weights were
published. SS2D is that of VMamba (Liu et al., arXiv 2401.10166) and MambaIR (Guo et al., ECCV 2024, arXiv 2402.15648). Everything
else is DRCT's: dense groups of five blocks, the MLP of the Swin block, its widths.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drct.errors import OptionError
from drct.networks.base import init_weights
from drct.networks.body import BodyNetwork, drop_path_rates
from drct.networks.drct import DenseGroup, DenseOptions
from drct.networks.float32 import LayerNorm
from drct.networks.scan import selective_scan
from drct.networks.window_attention import DropPath, Mlp, to_bchw

DIRECTIONS = 4  # rows, columns, and both from the end


@dataclasses.dataclass(frozen=True)
class MambaDRCTOptions(DenseOptions):
    """Options of :class:`MambaDRCT`; widths, MLPs and the meaning of ``depths`` are DRCT's.

    Attributes:
        expand: SS2D works on ``int(expand * channels)`` channels.
        d_state: numbers N in the state of each channel.
    """

    expand: float = 1.0
    d_state: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.d_state < 1:
            raise OptionError(f"d_state is {self.d_state}, but must be at least 1")
        if int(self.expand * self.embed_dim) < 1:
            raise OptionError(f"expand {self.expand} leaves no channel of {self.embed_dim}")


class SS2D(nn.Module):
    """Two-dimensional selective scan: four one-dimensional ones over the same map, summed.

    Args:
        d_model: channels in and out.
        d_state: numbers in the state of a channel.
        expand: ``int(expand * d_model)`` channels are scanned.

    Parameters keep the published names. ``x_proj_weight`` makes, for each direction, ``dt_rank = ceil(d_model / 16)`` numbers
    for the step size and the vectors B and C of every pixel.
    """

    def __init__(self, d_model: int, d_state: int = 16, expand: float = 1.0) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.dt_rank = int(expand * d_model), d_state, math.ceil(d_model / 16)
        k, d, r, n = DIRECTIONS, self.d_inner, self.dt_rank, d_state
        self.in_proj = nn.Linear(d_model, 2 * d, bias=False)
        self.conv2d = nn.Conv2d(d, d, 3, 1, 1, groups=d)
        self.x_proj_weight = nn.Parameter(torch.empty(k, r + 2 * n, d))
        self.dt_projs_weight = nn.Parameter(torch.empty(k, d, r))
        self.dt_projs_bias = nn.Parameter(torch.empty(k, d))
        self.A_logs = nn.Parameter(torch.empty(k * d, n))
        self.Ds = nn.Parameter(torch.empty(k * d))
        self.out_norm = LayerNorm(d)
        self.out_proj = nn.Linear(d, d_model, bias=False)
        self.reset_scan()

    @torch.no_grad()
    def reset_scan(self) -> None:
        """Initialize what the scan depends on as Mamba does (section 3.6): steps log-uniform in 0.001..0.1, A = -1..-N, D = 1."""
        self.x_proj_weight.uniform_(-(self.d_inner**-0.5), self.d_inner**-0.5)
        self.dt_projs_weight.uniform_(-(self.dt_rank**-0.5), self.dt_rank**-0.5)
        step = torch.exp(torch.empty_like(self.dt_projs_bias).uniform_(math.log(1e-3), math.log(1e-1)))
        self.dt_projs_bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus brings it back to ``step``
        self.A_logs.copy_(torch.arange(1, self.d_state + 1).log().expand_as(self.A_logs))
        self.Ds.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, d_model)`` in and out."""
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        x = F.silu(self.conv2d(to_bchw(x))).permute(0, 2, 3, 1)
        y = self.out_norm(self.scan(x).to(x.dtype))
        return self.out_proj(y * F.silu(gate))

    def scan(self, x: Tensor) -> Tensor:
        """Sum of the four scans of a map ``(B, H, W, d_inner)``, in float32."""
        steps, b, c = self.project(x)
        a = -torch.exp(self.A_logs.float()).view(DIRECTIONS, self.d_inner, self.d_state)
        u = x.float().unsqueeze(3).expand(*x.shape[:3], DIRECTIONS, self.d_inner)
        ordered = [to_sequences(t) for t in (u, F.softplus(steps), b, c)]
        y = from_sequences(selective_scan(ordered[0], ordered[1], a, ordered[2], ordered[3]), *x.shape[1:3])
        return y + self.skip(x)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Step sizes before softplus ``(B, H, W, 4, d_inner)`` and the vectors B and C ``(B, H, W, 4, d_state)``, float32."""
        made = F.linear(x, self.x_proj_weight.flatten(0, 1).to(x.dtype)).unflatten(-1, (DIRECTIONS, -1))
        low, b, c = made.float().split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        steps = [F.linear(part, weight.float()) for part, weight in zip(low.unbind(3), self.dt_projs_weight, strict=True)]
        return torch.stack(steps, 3).float() + self.dt_projs_bias.float(), b, c

    def skip(self, x: Tensor) -> Tensor:
        """``D u`` of all directions: they meet again at the pixel they came from, so their factors add up."""
        return x.float() * self.Ds.float().view(DIRECTIONS, -1).sum(0)


def to_sequences(x: Tensor) -> Tensor:
    """``(B, H, W, 4, X)`` to ``(B, H * W, 4, X)``, each direction in the order in which it visits the pixels."""
    across, down, back, up = x.unbind(3)
    along = [across, down.transpose(1, 2), back.flip(1, 2), up.transpose(1, 2).flip(1, 2)]
    return torch.stack([t.flatten(1, 2) for t in along], 2)


def from_sequences(y: Tensor, height: int, width: int) -> Tensor:
    """Bring ``(B, H * W, 4, X)`` back to the map and sum the directions: ``(B, H, W, X)``."""
    across, down, back, up = y.unbind(2)
    rows = (across + back.flip(1)).unflatten(1, (height, width))
    columns = (down + up.flip(1)).unflatten(1, (width, height))
    return rows + columns.transpose(1, 2)


class MambaBlock(nn.Module):
    """The Swin block with SS2D in the place of attention: ``x + SS2D(LN(x))``, then ``x + MLP(LN(x))``."""

    def __init__(self, dim: int, options: MambaDRCTOptions, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.ss2d = SS2D(dim, options.d_state, options.expand)
        self.drop_path = DropPath(drop_path)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, max(1, int(dim * mlp_ratio)), options.drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H, W, dim)`` in and out."""
        x = x + self.drop_path(self.ss2d(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class MambaRDG(DenseGroup):
    """DRCT's residual dense group of Mamba blocks."""

    def __init__(self, options: MambaDRCTOptions, drop_path: float) -> None:
        dims, mlp_ratios = options.block_dims(), options.block_mlp_ratios()
        super().__init__(options, "mamba", lambda j: MambaBlock(dims[j], options, mlp_ratios[j], drop_path))


class MambaDRCT(BodyNetwork):
    """The network; options in :class:`MambaDRCTOptions`. Without windows nothing needs padding."""

    architecture = "mamba_drct"
    options: MambaDRCTOptions

    def __init__(self, options: MambaDRCTOptions) -> None:
        def groups() -> list[nn.Module]:
            return [MambaRDG(options, rates[0]) for rates in drop_path_rates(options)]

        super().__init__(options, groups, pad_multiple=1)
        self.apply(init_weights)  # reaches linear layers and norms only: what reset_scan chose stays


# Named sizes: what differs from the defaults of MambaDRCTOptions.
CONFIGURATIONS: dict[str, dict[str, Any]] = {"mamba_drct": {}}

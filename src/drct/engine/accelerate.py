"""Faster operators inside a network that stays a network: for training and for gradients.

:func:`drct.engine.compile` makes a program that only runs forward. Training needs the module itself, so here single operations
are exchanged in place for fused ones that have gradients; parameters, names and values stay.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drct.engine import native
from drct.networks.mamba_drct import DIRECTIONS, SS2D
from drct.networks.window_attention import SwinBlock


class _NativeAttention:
    """Stands in for ``SwinBlock.attention``: projections in torch, everything between them in one kernel."""

    def __init__(self, block: SwinBlock) -> None:
        self.block = block
        self.plain = type(block).attention

    def __call__(self, x: Tensor) -> Tensor:
        attn = self.block.attn
        if x.device.type != "cpu" or (attn.training and attn.attn_drop > 0):
            return self.plain(self.block, x)
        qkv = attn.qkv(x)
        table, index = attn.relative_position_bias_table, attn.relative_position_index
        out = native.window_attention(qkv, table, index, attn.window, attn.shift, attn.scale)
        return attn.proj_drop(attn.proj(out))


class _NativeScan:
    """Stands in for ``SS2D.scan``: projections in torch, the four scans in one kernel."""

    def __init__(self, block: SS2D) -> None:
        self.block = block
        self.plain = type(block).scan

    def __call__(self, x: Tensor) -> Tensor:
        block = self.block
        if x.device.type != "cpu":
            return self.plain(block, x)
        steps, b, c = block.project(x)
        a = -torch.exp(block.A_logs.float()).view(DIRECTIONS, block.d_inner, block.d_state)
        return native.selective_scan(x.float(), F.softplus(steps), a, b, c) + block.skip(x)


def accelerate(network: nn.Module) -> list[str]:
    """Exchange window attention and selective scans for native kernels, in place; returns what was done or why not.

    Covers the Swin blocks of DRCT, SwinIR and HAT and the SS2D blocks of MambaDRCT. The network keeps its class, parameters and
    state dict. Copy it (``copy.deepcopy``) before, not after: the exchanged operation belongs to this very network.
    """
    scans = [module for module in network.modules() if isinstance(module, SS2D)]
    swins = [module for module in network.modules() if isinstance(module, SwinBlock)]
    lines = []
    if scans:
        lines.append(_accelerate_scans(scans))
    if swins or not scans:
        lines.append(_accelerate_attention(swins))
    return lines


def _accelerate_attention(blocks: list[SwinBlock]) -> str:
    reason = native.available()
    if reason is not None:
        return f"plain torch attention: {reason}"
    supported = [block for block in blocks if native.supports(block.window)]
    for block in supported:
        block.attention = _NativeAttention(block)  # type: ignore[method-assign]
    return f"native window attention in {len(supported)} blocks"


def _accelerate_scans(blocks: list[SS2D]) -> str:
    reason = native.scan_available()
    if reason is not None:
        return f"plain torch scan: {reason}"
    if any(block.d_state != native.D_STATE for block in blocks):
        return f"plain torch scan in {len(blocks)} blocks: the native one has states of {native.D_STATE} numbers"
    for block in blocks:
        block.scan = _NativeScan(block)  # type: ignore[method-assign]
    return f"native selective scan in {len(blocks)} blocks"

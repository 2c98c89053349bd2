"""Faster operators inside a network that stays a network: for training and for gradients.

:func:`drct.engine.compile` makes a program that only runs forward. Training needs the module itself, so here single operations
are exchanged in place for fused ones that have gradients; parameters, names and values stay.
"""

from __future__ import annotations

from torch import Tensor, nn

from drct.engine import native
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


def accelerate(network: nn.Module) -> list[str]:
    """Exchange the window attention of every Swin block for the native kernel; returns what was done or why not.

    The network keeps its class, parameters and state dict. Copy it (``copy.deepcopy``) before, not after: the exchanged
    operation belongs to this very network.
    """
    reason = native.available()
    if reason is not None:
        return [f"plain torch attention: {reason}"]
    count = 0
    for module in network.modules():
        if isinstance(module, SwinBlock) and native.supports(module.window):
            module.attention = _NativeAttention(module)  # type: ignore[method-assign]
            count += 1
    return [f"native window attention in {count} blocks"]

"""Kernels in C for CPUs, built on demand with the system's compiler; every one has a plain torch path beside it."""

from drct.engine.native.feed_forward import FeedForward, feed_forward, feed_forward_available
from drct.engine.native.gelu import gelu_, gelu_available
from drct.engine.native.linear import PackedLinear, linear, linear_available
from drct.engine.native.selective_scan import D_STATE, scan_available, selective_scan, ss2d_scan
from drct.engine.native.swin_attention import AttentionLayer, swin_attention, swin_attention_available
from drct.engine.native.swin_bf16 import BlockShape, dense_group, swin_bf16_available, swin_block
from drct.engine.native.swin_layer import SwinLayerKernel, bf16_unit, swin_layer_available
from drct.engine.native.window_attention import available, supports, window_attention, window_attention_forward

__all__ = [
    "D_STATE",
    "AttentionLayer",
    "BlockShape",
    "FeedForward",
    "PackedLinear",
    "SwinLayerKernel",
    "available",
    "bf16_unit",
    "dense_group",
    "feed_forward",
    "feed_forward_available",
    "gelu_",
    "gelu_available",
    "linear",
    "linear_available",
    "scan_available",
    "selective_scan",
    "ss2d_scan",
    "supports",
    "swin_attention",
    "swin_attention_available",
    "swin_bf16_available",
    "swin_block",
    "swin_layer_available",
    "window_attention",
    "window_attention_forward",
]

"""Faster operators inside a network that stays a network: for training and for gradients.

:func:`drct.engine.compile` makes a program that only runs forward. Training needs the module itself, so here single operations
are exchanged in place for fused ones that have gradients; parameters, names and values stay.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from drct.engine import native
from drct.engine.gpu.availability import triton_available
from drct.engine.native import AttentionLayer, BlockShape, FeedForward
from drct.networks.drct import BLOCKS, RDG
from drct.networks.hat import HAB
from drct.networks.mamba_drct import DIRECTIONS, SS2D
from drct.networks.window_attention import DropPath, SwinBlock, WindowAttention

Attend = Callable[[Tensor, Tensor, Tensor, int, int, float], Tensor]
KINDS = {  # what the kernels of attention take
    *(("cpu", dtype) for dtype in (torch.float32, torch.bfloat16)),
    *(("cuda", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)),
}
Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


class _FastAttention:
    """Stands in for ``SwinBlock.attention``: everything between the projections in one kernel, or these as well.

    Args:
        kernels: the function for each type of device that has one.
        whole: in float32 on a CPU let the C kernel do the projections, too.
    """

    def __init__(self, block: SwinBlock, kernels: Mapping[str, Attend], whole: bool = False) -> None:
        self.block, self.kernels, self.whole = block, kernels, whole
        self.plain = type(block).attention

    def __call__(self, x: Tensor) -> Tensor:
        attn = self.block.attn
        kernel = self.kernels.get(x.device.type)
        dropping = attn.training and attn.attn_drop > 0
        if kernel is None or dropping or _kind(x, attn.qkv.weight) not in KINDS or torch.compiler.is_compiling():
            return self.plain(self.block, x)
        table, index = attn.relative_position_bias_table, attn.relative_position_index
        if self.whole and _is_plain_float(x, attn.qkv.weight):
            return attn.proj_drop(native.swin_attention(x, _attention_layer(attn)))
        return attn.proj_drop(attn.proj(kernel(attn.qkv(x), table, index, attn.window, attn.shift, attn.scale)))


def _attention_layer(attn: WindowAttention, norm: nn.LayerNorm | None = None) -> AttentionLayer:
    layer = AttentionLayer(
        *(attn.qkv.weight, attn.qkv.bias, attn.proj.weight, attn.proj.bias, attn.relative_position_bias_table),
        *(attn.window, attn.shift, attn.scale),
    )
    return layer if norm is None else dataclasses.replace(layer, gain=norm.weight, offset=norm.bias, eps=norm.eps)


def _drawn(path: DropPath, x: Tensor) -> Tensor | None:
    """The factors that stochastic depth draws for the samples of ``x``; None where it does nothing."""
    return path(x.new_ones(len(x), 1)).flatten() if path.rate > 0 and path.training else None


def _first_half(block: SwinBlock, x: Tensor) -> Tensor:
    """``x + drop_path(attention(norm1(x)))`` in one C kernel."""
    return native.swin_attention(x, _attention_layer(block.attn, block.norm1), _drawn(block.drop_path, x))


def _second_half(
    block: SwinBlock,
    u: Tensor,
    last: tuple[Tensor, Tensor | None],
    residual: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """``residual(u) + drop_path(last(gelu(fc1(norm2(u)))))`` in one C kernel; without ``residual`` u itself is added."""
    norm, fc1 = block.norm2, block.mlp.fc1
    parameters = FeedForward(norm.weight, norm.bias, norm.eps, fc1.weight, fc1.bias, *last, *residual)
    return native.feed_forward(u, parameters, _drawn(block.drop_path, u))


class _FastHalves:
    """Stands in for ``SwinBlock.first_half`` and ``second_half``, in float32 on a CPU.

    Args:
        first: whether the kernel takes windows of the block.
    """

    def __init__(self, block: SwinBlock, first: bool) -> None:
        self.block, self.takes_windows = block, first

    def first(self, x: Tensor) -> Tensor:
        attn = self.block.attn
        dropped = attn.training and (attn.attn_drop > 0 or attn.proj_drop.p > 0)
        if dropped or not self.takes_windows or not _is_plain_float(x, attn.qkv.weight):
            return type(self.block).first_half(self.block, x)
        return _first_half(self.block, x)

    def second(self, x: Tensor) -> Tensor:
        mlp = self.block.mlp
        if (mlp.drop.p > 0 and mlp.training) or not _is_plain_float(x, mlp.fc1.weight):
            return type(self.block).second_half(self.block, x)
        return _second_half(self.block, x, (mlp.fc2.weight, mlp.fc2.bias))


class _FoldedStep:
    """Stands in for ``RDG.step``: the block's last layer and its 1x1 convolution become one matrix, made anew in every step.

    ``adjust(u + fc2(h))`` is ``adjust u + (adjust fc2) h``: a ninth of DRCT's multiply-adds and the widest maps are saved.

    Args:
        whole: in float32 on a CPU let one C kernel do the second half of the block and both matrices.
    """

    def __init__(self, group: RDG, whole: bool) -> None:
        self.whole = whole
        self.blocks: list[SwinBlock] = [group.get_submodule(f"swin{j + 1}") for j in range(BLOCKS)]  # type: ignore[misc]
        self.adjusts: list[nn.Conv2d] = [group.get_submodule(f"adjust{j + 1}") for j in range(BLOCKS)]  # type: ignore[misc]
        self.plain = functools.partial(type(group).step, group)

    def __call__(self, j: int, x: Tensor) -> Tensor:
        block, adjust = self.blocks[j], self.adjusts[j]
        mlp = block.mlp
        if torch.compiler.is_compiling() or (mlp.drop.p > 0 and mlp.training) or x.device.type not in ("cpu", "cuda"):
            return self.plain(j, x)
        u = block.first_half(x)
        matrix = adjust.weight.flatten(1)
        with torch.autocast(x.device.type, enabled=False):
            folded, bias = matrix @ mlp.fc2.weight, matrix @ mlp.fc2.bias
        if self.whole and _is_plain_float(u, matrix):
            return _second_half(block, u, (folded, bias), (matrix, adjust.bias))
        h = mlp.act(mlp.fc1(block.norm2(u)))
        return F.linear(u, matrix, adjust.bias) + block.drop_path(F.linear(h, folded, bias))


def _is_plain_float(x: Tensor, weight: Tensor) -> bool:
    """Whether the C kernels for float32 on a CPU take these."""
    cast = torch.is_autocast_enabled("cpu") or not x.dtype == weight.dtype == torch.float32
    return x.device.type == "cpu" and not cast and x.numel() > 0 and not torch.compiler.is_compiling()


def _kind(x: Tensor, weight: Tensor) -> tuple[str, torch.dtype] | None:
    """Device and type of what a layer makes of ``x``; None where that is nothing."""
    device = x.device.type
    cast = torch.is_autocast_enabled(device)
    return (device, torch.get_autocast_dtype(device) if cast else weight.dtype) if x.numel() > 0 else None


class _FastLinear:
    """Stands in for ``Linear.forward`` in float32 on a CPU: the C kernel for its value and the gradient of ``x``."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        linear = native.linear if _is_plain_float(x, self.layer.weight) else F.linear
        return linear(x, self.layer.weight, self.layer.bias)


class _PlanarConvolution:
    """Stands in for ``Conv2d.forward`` where oneDNN's backward is up to three times as slow on channels-last maps as on planes."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        self.convolution = convolution
        self.plain = type(convolution).forward

    def __call__(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            x = x.contiguous()
        return self.plain(self.convolution, x)


class _NativeGroup:
    """Stands in for ``RDG.forward`` under autocast to bfloat16: the whole dense group in one kernel per block."""

    def __init__(self, group: RDG) -> None:
        self.group = group
        self.plain = type(group).forward
        self.blocks: list[SwinBlock] = [group.get_submodule(f"swin{j + 1}") for j in range(BLOCKS)]  # type: ignore[misc]
        self.adjusts: list[nn.Conv2d] = [group.get_submodule(f"adjust{j + 1}") for j in range(BLOCKS)]  # type: ignore[misc]
        self.shapes = [_block_shape(*pair) for pair in zip(self.blocks, self.adjusts, strict=True)]
        self.shapes[-1] = dataclasses.replace(self.shapes[-1], residual=0.2)

    def supported(self) -> bool:
        """Whether the kernel computes what this group does; dropout of single numbers it does not know."""
        return all(shape.out <= shape.dim for shape in self.shapes) and all(map(_fits_kernel, self.blocks))

    def __call__(self, x: Tensor) -> Tensor:
        if not _is_short_autocast(x):
            return self.plain(self.group, x)
        branches = torch.stack([_drawn_twice(block, x) for block in self.blocks])
        parameters = [p for pair in zip(self.blocks, self.adjusts, strict=True) for p in _block_parameters(*pair)]
        return native.dense_group(x.bfloat16(), branches, self.shapes, self.blocks[0].norm1.eps, parameters)


class _NativeBlock:
    """Stands in for ``SwinBlock.forward`` under autocast to bfloat16: the whole block of SwinIR or HAT in one kernel."""

    def __init__(self, block: SwinBlock) -> None:
        self.block = block
        self.plain = type(block).forward
        self.shape = _block_shape(block, None)

    def __call__(self, x: Tensor) -> Tensor:
        block = self.block
        if not _is_short_autocast(x):
            return self.plain(block, x)
        beside = block.conv_branch(block.norm1(x)).bfloat16() if isinstance(block, HAB) else None
        parameters = _block_parameters(block, None)
        return native.swin_block(x.bfloat16(), _drawn_twice(block, x), self.shape, block.norm1.eps, parameters, beside)


def _fits_kernel(block: SwinBlock) -> bool:
    """Whether the kernel of whole blocks computes what this one does; dropout of single numbers it does not know."""
    return block.window % 8 == 0 and block.mlp.drop.p == 0 and block.attn.attn_drop == 0


def _is_short_autocast(x: Tensor) -> bool:
    """Whether the kernel of whole blocks takes this map: under autocast to bfloat16 on a CPU."""
    bf16 = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    return x.device.type == "cpu" and bf16 and x.numel() > 0 and not torch.compiler.is_compiling()


def _drawn_twice(block: SwinBlock, x: Tensor) -> Tensor:
    """The factors ``(B, 2)`` that stochastic depth draws for the two branches of a block."""
    ones = x.new_ones(len(x), 1, 1, 1, dtype=torch.float32)
    return torch.cat([block.drop_path(ones), block.drop_path(ones)], 1).view(-1, 2)


def _block_shape(block: SwinBlock, adjust: nn.Conv2d | None) -> BlockShape:
    attn = block.attn
    return BlockShape(
        block.window,
        block.shift,
        attn.num_heads,
        attn.dim // attn.num_heads,
        block.mlp.fc1.out_features,
        0 if adjust is None else adjust.out_channels,
        attn.scale,
        None,
    )


def _block_parameters(block: SwinBlock, adjust: nn.Conv2d | None) -> list[Tensor | None]:
    layers = (block.norm1, block.attn.qkv, block.attn.proj, block.norm2, block.mlp.fc1, block.mlp.fc2)
    of_adjust = (None, None) if adjust is None else (adjust.weight, adjust.bias)
    return [*(p for layer in layers for p in (layer.weight, layer.bias)), *of_adjust, block.attn.relative_position_bias_table]


class _FastScan:
    """Stands in for ``SS2D.scan``: projections in torch, the four scans in one kernel.

    Args:
        kernels: the function for each type of device that has one.
    """

    def __init__(self, block: SS2D, kernels: Mapping[str, Scan]) -> None:
        self.block, self.kernels = block, kernels
        self.plain = type(block).scan

    def __call__(self, x: Tensor) -> Tensor:
        block = self.block
        kernel = self.kernels.get(x.device.type)
        if kernel is None or torch.compiler.is_compiling():
            return self.plain(block, x)
        steps, b, c = block.project(x)
        a = -torch.exp(block.A_logs.float()).view(DIRECTIONS, block.d_inner, block.d_state)
        return kernel(x.float(), F.softplus(steps), a, b, c) + block.skip(x)


def accelerate(network: nn.Module, blocks: bool = True) -> list[str]:
    """Exchange window attention and selective scans for native kernels, in place; returns what was done or why not.

    Covers, on a CPU or a CUDA GPU, the Swin blocks of DRCT, SwinIR and HAT and the SS2D blocks of MambaDRCT; the network must be on
    its device already. It keeps its class, parameters and state dict. Copy it (``copy.deepcopy``) before, not after: the exchanged
    operation belongs to this very network. The kernels have first derivatives only: ``create_graph=True`` is refused.

    Args:
        network: changed in place.
        blocks: under autocast to bfloat16, let one kernel do whole Swin blocks; without, only their attention.
    """
    scans = [module for module in network.modules() if isinstance(module, SS2D)]
    swins = [module for module in network.modules() if isinstance(module, SwinBlock)]
    device = next((parameter.device.type for parameter in network.parameters()), "cpu")  # a network may have none
    lines = []
    if scans and device in ("cpu", "cuda"):
        lines.append(_accelerate_scans(scans, device))
    packed = device == "cpu" and native.linear_available() is None
    whole = device == "cpu" and native.swin_attention_available() is None and native.feed_forward_available() is None
    for module in network.modules():
        if isinstance(module, RDG):
            module.step = _FoldedStep(module, whole)  # type: ignore[method-assign]
        elif whole and isinstance(module, SwinBlock):
            halves = _FastHalves(module, native.supports(module.window))
            module.first_half, module.second_half = halves.first, halves.second  # type: ignore[method-assign]
        elif packed and isinstance(module, nn.Linear):
            module.forward = _FastLinear(module)  # type: ignore[assignment]
    if device == "cuda" and swins:
        lines.append(_accelerate_attention(swins, device))
    if device != "cpu":
        return lines
    if blocks and swins and native.swin_bf16_available() is None:
        lines.append(_accelerate_blocks(network))
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        for module in network.modules():
            if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
                module.forward = _PlanarConvolution(module)  # type: ignore[assignment]
    if swins or not scans:
        lines.append(_accelerate_attention(swins, device))
    return lines


def _accelerate_blocks(network: nn.Module) -> str:
    groups = [_NativeGroup(module) for module in network.modules() if isinstance(module, RDG)]
    supported = [group for group in groups if group.supported()]
    for group in supported:
        group.group.forward = group  # type: ignore[method-assign]
    if groups and not supported:
        return "under bfloat16 autocast: plain torch blocks, since their sizes do not fit the native ones"
    if groups:
        return f"under bfloat16 autocast: native blocks in {len(supported)} dense groups"
    alone = [module for module in network.modules() if isinstance(module, SwinBlock) and _fits_kernel(module)]
    for block in alone:
        block.forward = _NativeBlock(block)  # type: ignore[method-assign]
    if not alone:
        return "under bfloat16 autocast: plain torch blocks, since their sizes do not fit the native ones"
    return f"under bfloat16 autocast: {len(alone)} native blocks"


def _accelerate_attention(blocks: list[SwinBlock], device: str) -> str:
    if device == "cuda":
        if (reason := triton_available()) is not None:
            return f"plain torch attention: {reason}"
        from drct.engine.gpu.window_attention import window_attention

        kernels, name, whole = {"cuda": window_attention}, "Triton", False
    else:
        if (reason := native.available()) is not None:
            return f"plain torch attention: {reason}"
        kernels, name, whole = {"cpu": native.window_attention}, "native", native.swin_attention_available() is None
    supported = [block for block in blocks if device == "cuda" or native.supports(block.window)]
    if not supported:
        return "plain torch attention: the windows do not fit the native one"
    for block in supported:
        block.attention = _FastAttention(block, kernels, whole)  # type: ignore[method-assign]
    return f"{name} window attention in {len(supported)} blocks"


def _accelerate_scans(blocks: list[SS2D], device: str) -> str:
    if device == "cuda":
        if (reason := triton_available()) is not None:
            return f"plain torch scan: {reason}"
        from drct.engine.gpu.selective_scan import selective_scan

        kernels, name = {"cuda": selective_scan}, "Triton"
    else:
        if (reason := native.scan_available()) is not None:
            return f"plain torch scan: {reason}"
        if any(block.d_state != native.D_STATE for block in blocks):
            return f"plain torch scan in {len(blocks)} blocks: the native one has states of {native.D_STATE} numbers"
        kernels, name = {"cpu": native.selective_scan}, "native"
    for block in blocks:
        block.scan = _FastScan(block, kernels)  # type: ignore[method-assign]
    return f"{name} selective scan in {len(blocks)} blocks"

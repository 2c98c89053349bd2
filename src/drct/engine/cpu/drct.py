"""DRCT on the CPU.

What it does differently from the network, with the same values:

* linear layers are folded (:mod:`drct.engine.folding`) and packed; the features of a group lie in one growing buffer of rows;
* rows stand in window order, and a block works through them in chunks of a few windows that stay in the cache, so nothing
  larger than the buffer itself is ever written to memory;
* masks and biases are made once, and only border windows are masked;
* the tail works through bands of rows: the enlarged features never exist as a whole.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from drct.engine.cpu.attention import kinds_between
from drct.engine.cpu.blocks import LayerNorm, SwinAdjust
from drct.engine.cpu.layout import WindowOrder, to_map, to_tokens, window_order
from drct.engine.cpu.linear import Conv3x3, packing_available
from drct.engine.cpu.workers import for_each, split
from drct.engine.devices import DTYPES
from drct.engine.folding import Norm, fold_swin
from drct.engine.program import Program
from drct.networks.base import pad_to_multiple
from drct.networks.drct import BLOCKS, DRCT

CHUNK_TOKENS = 1024  # a chunk's queries, keys and values fit into the caches, its operators are long enough to be efficient
BAND_PIXELS = 4096  # LR pixels of a band of the tail


class DRCTProgram(Program):
    """The fast program; see the head of this file."""

    def __init__(self, network: DRCT, precision: str) -> None:
        super().__init__(network, torch.device("cpu"), precision)
        options = network.options
        dtype = DTYPES[precision]
        self.window, self.dim, self.width = options.window_size, options.embed_dim, options.block_dims()[-1]
        self.mean, self.img_range = network.mean.detach().float().clone(), network.img_range
        self.conv_first = Conv3x3(network.conv_first, torch.float32)
        self.first_norm, self.last_norm = (
            None if norm is None else LayerNorm(norm, torch.float32) for norm in map(Norm.of, (network.patch_embed.norm, network.norm))
        )
        self.groups = [
            [
                SwinAdjust(
                    fold_swin(
                        group.get_submodule(f"swin{j + 1}"),
                        group.get_submodule(f"adjust{j + 1}"),
                        factor=0.2 if j == BLOCKS - 1 else 1.0,
                    ),
                    dtype,
                )
                for j in range(BLOCKS)
            ]
            for group in network.layers
        ]
        body = network.conv_after_body
        self.conv_after_body = Conv3x3(body, dtype) if isinstance(body, nn.Conv2d) else None
        self.tail = Tail(network, dtype)
        self.order = functools.lru_cache(maxsize=8)(window_order)

    def run(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        x = (pad_to_multiple(x, self.pad_multiple) - self.mean) * self.img_range
        y = self.tail(self.features(x.contiguous(memory_format=torch.channels_last)))
        return y[..., : h * self.scale, : w * self.scale]

    def features(self, x: Tensor) -> Tensor:
        """Deep features ``(B, d, H, W)`` of a centred image."""
        b, _, h, w = x.shape
        shallow = self.conv_first(x)
        tokens = to_tokens(shallow, self.window)
        dense = tokens.new_empty(len(tokens), self.width)
        dense[:, : self.dim] = tokens if self.first_norm is None else self.first_norm(tokens)
        del tokens
        for group in self.groups:
            for j, block in enumerate(group):
                self.step(block, dense, self.order(b, h, w, self.window, block.shift), last=j == BLOCKS - 1)
        deep = dense[:, : self.dim]
        deep = to_map(deep.contiguous() if self.last_norm is None else self.last_norm(deep), b, h, w, self.window)
        return (deep if self.conv_after_body is None else self.conv_after_body(deep)) + shallow

    def step(self, block: SwinAdjust, dense: Tensor, order: WindowOrder, last: bool) -> None:
        """Append what a block returns to the dense features, or for the last block add it to the group's input."""
        n = self.window**2
        windows = len(dense) // n
        source = dense[:, : block.dim]
        target = dense[:, : self.dim] if last else dense[:, block.dim : block.dim + block.out_dim]

        def chunk(bounds: tuple[int, int]) -> None:
            start, end = bounds
            rows = slice(start * n, end * n)
            index = None if order.tokens is None else order.tokens[rows]
            x = source[rows].contiguous() if index is None else source.index_select(0, index)
            y = block(x, list(kinds_between(order.ends, start, end)))
            if last:
                if index is None:
                    target[rows] += y
                else:
                    target.index_add_(0, index, y)
            else:
                y = F.leaky_relu_(y, 0.2)
                if index is None:
                    target[rows] = y
                else:
                    target.index_copy_(0, index, y)

        for_each(chunk, split(windows, max(1, CHUNK_TOKENS // n)))

    def describe(self) -> list[str]:
        reason = packing_available()
        linear = "packed by oneDNN, GELU and additions inside" if reason is None else f"plain torch: {reason}"
        names = [block.attention.name for group in self.groups for block in group]
        return [
            f"drct on cpu in {self.precision}, {torch.get_num_threads()} threads",
            f"linear layers: folded, {linear}",
            "window attention: " + ", ".join(f"{name} in {names.count(name)} blocks" for name in sorted(set(names))),
        ]

    def memory_estimate(self, height: int, width: int, batch: int = 1) -> int:
        return 4 * self.padded_pixels(height, width, batch) * (self.width + 2 * self.dim) + self.tail.memory(width)


class Tail:
    """From features to the image, by bands of rows with a halo as wide as the convolutions see."""

    def __init__(self, network: DRCT, dtype: torch.dtype) -> None:
        self.scale, self.in_chans, self.dtype = network.scale, network.in_chans, dtype
        self.before: Conv3x3 | None = None
        self.steps: list[tuple[Conv3x3, int]] = []
        options = network.options
        shuffles = [module.upscale_factor for module in network.upsample if isinstance(module, nn.PixelShuffle)]
        convs = [module for module in network.upsample if isinstance(module, nn.Conv2d)]
        if options.upsampler == "pixelshuffle":
            self.before = Conv3x3(network.conv_before_upsample[0], dtype)
            self.slope = network.conv_before_upsample[1].negative_slope
            self.steps = [(Conv3x3(conv, dtype), r) for conv, r in zip(convs, shuffles, strict=True)]
            self.last = Conv3x3(network.conv_last, dtype, 1 / network.img_range)
        else:
            self.last = Conv3x3(convs[0], dtype, 1 / network.img_range)
            self.shuffle = shuffles[0]
        self.mean = network.mean.detach().float().clone()

    def __call__(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        y = x.new_empty(b, self.in_chans, h * self.scale, w * self.scale)
        halo = 1 if self.before is None else 3

        def band(bounds: tuple[int, int]) -> None:
            start, end = bounds
            top, bottom = max(0, start - halo), min(h, end + halo)
            part = self.band(x[:, :, top:bottom].to(self.dtype))
            part = part[:, :, (start - top) * self.scale : (end - top) * self.scale]
            torch.add(part, self.mean, out=y[:, :, start * self.scale : end * self.scale])

        for_each(band, split(h, max(1, BAND_PIXELS // (b * w))))
        return y

    def band(self, x: Tensor) -> Tensor:
        """The whole tail, as if ``x`` were all there is."""
        if self.before is None:
            return F.pixel_shuffle(self.last(x), self.shuffle)
        x = F.leaky_relu_(self.before(x), self.slope)
        for conv, r in self.steps:
            x = F.pixel_shuffle(conv(x), r)
        return self.last(x)

    def memory(self, width: int) -> int:
        """Bytes of one band's largest features, in and out."""
        rows = max(1, BAND_PIXELS // width) + 6
        return 2 * 4 * rows * width * 64 * self.scale**2

"""The outline that DRCT shares with its relatives, on the CPU, with the groups left open.

What all of these programs do differently from their networks, with the same values:

* linear layers are folded (:mod:`drct.engine.folding`) and packed;
* features are rows of pixels in window order, and a block works through them in chunks of a few windows that stay in the cache
  (:mod:`drct.engine.cpu.workers`), so that nothing wider than the features themselves is ever written to memory;
* masks and biases are made once, and only border windows are masked;
* the convolutions and shuffles of an upsampler are one convolution, and the tail works through bands of rows
  (:mod:`drct.engine.cpu.tail`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from drct.engine import native
from drct.engine.cpu.blocks import Layer, LayerNorm, Maps, NativeSwinLayer, SwinLayer
from drct.engine.cpu.layout import to_map, to_tokens, window_order
from drct.engine.cpu.linear import packing_available
from drct.engine.cpu.tail import Tail, convolution
from drct.engine.cpu.workers import for_each
from drct.engine.folding import Norm
from drct.engine.program import Program
from drct.networks.base import SuperResolutionNetwork, pad_to_multiple


class BodyProgram(Program):
    """Everything but the groups.

    Args:
        network: has ``conv_first``, ``patch_embed``, ``norm``, ``conv_after_body`` and a tail that :class:`Tail` knows.
    """

    layers: Sequence[Layer]
    raster = False  # whether features are stored in raster order, see drct.engine.cpu.layout

    def __init__(self, network: SuperResolutionNetwork, precision: str) -> None:
        super().__init__(network, torch.device("cpu"), precision)
        get = network.get_submodule
        self.window, self.dim = getattr(network.options, "window_size", 1), network.options.embed_dim
        self.mean, self.img_range = network.mean.detach().float().clone(), network.img_range
        # 3x3 convolutions stay in float32: they are a tenth of the work, and in bf16 most of the error would be theirs
        conv_first = convolution(get("conv_first"))
        assert conv_first is not None
        self.conv_first = conv_first
        first, last = Norm.of(getattr(get("patch_embed"), "norm", None)), Norm.of(get("norm"))
        self.first_norm = None if first is None else LayerNorm(first, torch.float32)
        self.last_norm = None if last is None else LayerNorm(last, torch.float32)
        self.conv_after_body = convolution(get("conv_after_body"))
        self.tail = Tail(network)
        self.saved_multiply_adds = self.tail.saved_multiply_adds
        self.order = functools.lru_cache(maxsize=8)(window_order)

    def run(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2:]
        x = (pad_to_multiple(x, self.pad_multiple) - self.mean) * self.img_range
        y = self.tail(self.features(x.contiguous(memory_format=torch.channels_last)))
        return y[..., : h * self.scale, : w * self.scale]

    def features(self, x: Tensor) -> Tensor:
        """Deep features ``(B, d, H, W)`` of a centred image."""
        shallow = self.conv_first(x)
        b, _, h, w = shallow.shape
        tokens = self.to_tokens(shallow)
        if self.first_norm is not None:
            tokens = self.first_norm(tokens)
        tokens = self.body(tokens, (b, h, w))
        if self.last_norm is not None:
            tokens = self.last_norm(tokens)
        deep = self.to_map(tokens, (b, h, w))
        return (deep if self.conv_after_body is None else self.conv_after_body(deep)).add_(shallow)

    def body(self, tokens: Tensor, size: tuple[int, int, int]) -> Tensor:
        """All groups, on rows in home order, which must stay as they are. ``size`` is (B, H, W)."""
        raise TypeError(f"{type(self).__name__} does not define body")

    def to_tokens(self, x: Tensor) -> Tensor:
        """A channels-last map ``(B, C, H, W)`` as rows in home order; may share its memory."""
        rows = x.permute(0, 2, 3, 1).flatten(0, 2) if self.raster else to_tokens(x, self.window)
        return rows.contiguous()  # of one grey image torch makes no channels-last map

    def to_map(self, tokens: Tensor, size: tuple[int, int, int]) -> Tensor:
        """Rows in home order as a channels-last map; may share their memory."""
        if self.raster:
            return tokens.view(*size, -1).permute(0, 3, 1, 2)
        return to_map(tokens, *size, self.window)

    def step(
        self,
        layer: SwinLayer,
        source: Tensor,
        target: Tensor,
        size: tuple[int, int, int],
        add: bool = False,
        normed: Tensor | None = None,
    ) -> None:
        """Run a Swin layer on all windows; other arguments as in :class:`Maps`."""
        maps = Maps(source, target, self.order(*size, self.window, layer.shift, self.raster), add, normed)
        for_each(lambda bounds: layer.run(maps, *bounds), layer.parts(len(source) // self.window**2))

    def describe(self) -> list[str]:
        reason, missing = packing_available(), native.available()
        whole = sum(isinstance(layer, NativeSwinLayer) for layer in self.layers)
        names = [layer.attention_name for layer in self.layers]
        because = "" if missing is None else f" ({missing})"
        lines = [
            f"{self.architecture} on cpu in {self.precision}, {torch.get_num_threads()} threads",
            "linear layers: folded, " + ("packed by oneDNN" if reason is None else f"plain torch ({reason})"),
            "window attention: " + ", ".join(f"{name} in {names.count(name)} blocks" for name in sorted(set(names))) + because,
        ]
        if whole:
            lines[1] = f"Swin blocks: folded, {whole} of {len(self.layers)} in one native kernel each"
        return lines

    def memory_estimate(self, height: int, width: int, batch: int = 1) -> int:
        m = self.pad_multiple
        height, width = -(-height // m) * m, -(-width // m) * m
        pixels = batch * height * width
        threads = torch.get_num_threads()
        rooms = [(isinstance(layer, NativeSwinLayer), layer.room(pixels // threads)) for layer in self.layers]
        lasting, passing = (
            4 * threads * max((room for native, room in rooms if native is kind), default=0) for kind in (True, False)
        )
        body = 4 * pixels * (self.dim + self.body_width()) + passing
        bands = min(threads * self.tail.memory(batch, height, width), self.tail.memory(batch, height, width) * height)
        tail = 4 * pixels * (self.dim + self.in_chans * self.scale**2) + bands
        return max(body, 4 * pixels * 3 * self.dim, tail) + lasting

    def products(self) -> list[tuple[int, int]]:
        """(in, out) of every linear layer, in order."""
        return [product for layer in self.layers for product in layer.products]

    def body_width(self) -> int:
        """Floats per pixel that :meth:`body` holds beside one layer's chunks."""
        raise TypeError(f"{type(self).__name__} does not define body_width")

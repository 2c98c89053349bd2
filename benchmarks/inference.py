"""Time of one forward pass: ours, the plain network and the published implementation's operations, in one run.

    python benchmarks/inference.py drct drct_light --sizes 128 256 --turns 5 --json inference.json

The contestants take turns, so that whatever else the machine does meets all of them; medians and the median of the ratios
within a turn are printed. Weights are random: time does not depend on them, and the outputs are compared with each other. With
--threads 1 seconds of processor time are counted, which hold on a busy machine too.

On a GPU (--device cuda) the published operations run under autocast to bf16, and --sizes takes WIDTHxHEIGHT:

    python benchmarks/inference.py drct --device cuda --sizes 640x480 --json inference-gpu.json
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from drct.cli.bench import parse_size, report
from drct.engine import resolve_device
from drct.engine.measure import benchmark, environment
from drct.engine.peers import spandrel_drct
from drct.networks import create_network
from drct.networks.base import pad_to_multiple
from drct.networks.drct import BLOCKS, DRCT
from drct.networks.window_attention import SwinBlock


def published_mask(height: int, width: int, window: int, shift: int) -> Tensor:
    """The mask of every window of a map, ``(windows, window**2, window**2)``, built the way the published code builds it."""
    regions = torch.zeros(1, height, width, 1)
    bands = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for i, rows in enumerate(bands):
        for j, columns in enumerate(bands):
            regions[:, rows, columns, :] = 3 * i + j
    windows = cut(regions, window).view(-1, window * window)
    difference = windows[:, None, :] - windows[:, :, None]
    return difference.masked_fill(difference != 0, -100.0).masked_fill(difference == 0, 0.0)


@functools.cache
def stored_mask(window: int, shift: int) -> Tensor:
    """The mask that published files hold, made for 64 x 64."""
    return published_mask(64, 64, window, shift)


def cut(x: Tensor, window: int) -> Tensor:
    """``(B, H, W, C)`` to ``(windows, window, window, C)``."""
    b, h, w, c = x.shape
    return x.view(b, h // window, window, w // window, window, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window, window, c)


def published_block(block: SwinBlock, x: Tensor, height: int, width: int) -> Tensor:
    """Swin block on tokens ``(B, H * W, C)``: explicit scores, bias gathered and mask built on every call."""
    b, _, c = x.shape
    attn, n = block.attn, block.window**2
    y = block.norm1(x).view(b, height, width, c)
    if block.shift:
        y = torch.roll(y, (-block.shift, -block.shift), (1, 2))
    y = cut(y, block.window).view(-1, n, c)
    q, k, v = attn.qkv(y).reshape(len(y), n, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
    scores = (q * attn.scale) @ k.transpose(-2, -1)
    bias = attn.relative_position_bias_table[attn.relative_position_index.view(-1)].view(n, n, -1)
    scores = scores + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
    if height == width == 64:  # the size that the published masks are stored for
        mask = stored_mask(block.window, block.shift).to(x.device) if block.shift else None
    else:
        mask = published_mask(height, width, block.window, block.shift).to(x.device)
    if mask is not None:
        scores = (scores.view(b, -1, attn.num_heads, n, n) + mask[None, :, None]).view(-1, attn.num_heads, n, n)
    y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, n, c)
    y = attn.proj(y).view(b, height // block.window, width // block.window, block.window, block.window, c)
    y = y.permute(0, 1, 3, 2, 4, 5).contiguous().view(b, height, width, c)
    if block.shift:
        y = torch.roll(y, (block.shift, block.shift), (1, 2))
    x = x + y.view(b, height * width, c)
    return x + block.mlp(block.norm2(x))


def published_forward(network: DRCT, image: Tensor) -> Tensor:
    """Forward pass of DRCT with the operations of the published implementation, on the weights of ``network``.

    Tokens are (B, H W, C); every block's output goes to (B, C, H, W) for its 1x1 convolution and back.
    """
    h, w = image.shape[-2:]
    x = (pad_to_multiple(image, network.pad_multiple) - network.mean) * network.img_range
    height, width = x.shape[-2:]

    def to_image(tokens: Tensor) -> Tensor:
        return tokens.transpose(1, 2).contiguous().view(len(tokens), -1, height, width)

    shallow = network.conv_first(x)
    tokens = network.patch_embed.norm(shallow.flatten(2).transpose(1, 2))
    for group in network.layers:
        features = [tokens]
        for j in range(BLOCKS):
            swin, adjust = group.get_submodule(f"swin{j + 1}"), group.get_submodule(f"adjust{j + 1}")
            y = adjust(to_image(published_block(swin, torch.cat(features, -1), height, width)))
            if j < BLOCKS - 1:
                y = F.leaky_relu(y, 0.2)
            features.append(y.flatten(2).transpose(1, 2))
        tokens = features[-1] * 0.2 + tokens
    x = network.conv_after_body(to_image(network.norm(tokens))) + shallow
    if network.options.upsampler == "pixelshuffle":
        x = network.conv_last(network.upsample(network.conv_before_upsample(x)))
    else:
        x = network.upsample(x)
    return (x / network.img_range + network.mean)[..., : h * network.scale, : w * network.scale]


def published(network: DRCT, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The published operations on a device, under autocast on a GPU."""
    network = network.to(device)

    def run(x: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return published_forward(network, x)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["drct", "drct_light"])
    parser.add_argument("--sizes", nargs="+", default=["128", "256"], help="N or WIDTHxHEIGHT, input pixels")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads; with 1, seconds of processor time are counted")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precisions", nargs="+", default=["fp32"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = resolve_device(arguments.device)
    results = []
    for name in arguments.networks:
        network = create_network(name, scale=arguments.scale).eval()
        others = {"published operations": published(network, device)} if isinstance(network, DRCT) else {}
        if (peer := spandrel_drct(network, device)) is not None:
            others["spandrel"] = peer
        for size in arguments.sizes:
            for precision in arguments.precisions:
                result = benchmark(
                    name,
                    network,
                    size=(1, *parse_size(size)),
                    device=device,
                    precision=precision,
                    turns=arguments.turns,
                    others=others,
                )
                results.append(result.as_dict())
                print("\n".join(report(result)), "\n", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"environment": environment(device), "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()

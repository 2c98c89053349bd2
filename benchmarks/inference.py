"""Time of one forward pass: ours, the plain network and the published implementation's operations, in one run.

    python benchmarks/inference.py drct drct_light --sizes 128 256 --turns 5 --json inference.json

The contestants take turns, so that whatever else the machine does meets all of them; medians and the median of the ratios
within a turn are printed. Weights are random: time does not depend on them, and the outputs are compared with each other. With
--threads 1 seconds of processor time are counted, which hold on a busy machine too.

On a GPU (--device cuda) the published operations run under autocast to bf16, and --sizes takes WIDTHxHEIGHT:

    python benchmarks/inference.py drct --device cuda --sizes 640x480 --json inference-gpu.json

The published code makes the masks of its windows on the CPU, anew for every block of every call; what that costs a GPU is the
difference to "published, masks kept". Our program runs with CUDA graphs and without. --peers leaves contestants out, --peers none
all of them. The JSON file is written after every network.

With --tune nothing but the GPU's attention kernel is timed: for every cut of its work, beside torch's fused attention with a mask.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from drct import engine
from drct.cli.bench import parse_size, report
from drct.engine import resolve_device
from drct.engine.folding import fold_swin
from drct.engine.measure import benchmark, environment
from drct.engine.peers import spandrel_drct
from drct.errors import Error
from drct.networks import SuperResolutionNetwork, create_network
from drct.networks.base import pad_to_multiple
from drct.networks.drct import BLOCKS, DRCT
from drct.networks.window_attention import SwinBlock
from drct.places import check_place

if TYPE_CHECKING:
    from drct.engine.gpu.kernels import Launch

Masks = Callable[[int, int, int, int, torch.device], Tensor | None]

PEERS = ["plain", "published", "spandrel"]


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


def made_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor | None:
    """What the published code adds to the scores of a block, made as it does; a mask of zeros is one too."""
    if height == width == 64:  # the size that the published masks are stored for
        return stored_mask(window, shift).to(device) if shift else None
    return published_mask(height, width, window, shift).to(device)


kept_mask = functools.cache(made_mask)


def published_block(block: SwinBlock, x: Tensor, height: int, width: int, masks: Masks = made_mask) -> Tensor:
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
    mask = masks(height, width, block.window, block.shift, x.device)
    if mask is not None:
        scores = (scores.view(b, -1, attn.num_heads, n, n) + mask[None, :, None]).view(-1, attn.num_heads, n, n)
    y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, n, c)
    y = attn.proj(y).view(b, height // block.window, width // block.window, block.window, block.window, c)
    y = y.permute(0, 1, 3, 2, 4, 5).contiguous().view(b, height, width, c)
    if block.shift:
        y = torch.roll(y, (block.shift, block.shift), (1, 2))
    x = x + y.view(b, height * width, c)
    return x + block.mlp(block.norm2(x))


def published_forward(network: DRCT, image: Tensor, masks: Masks = made_mask) -> Tensor:
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
            y = adjust(to_image(published_block(swin, torch.cat(features, -1), height, width, masks)))
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


def published(network: DRCT, device: torch.device, masks: Masks = made_mask) -> Callable[[Tensor], Tensor]:
    """The published operations on a device, under autocast on a GPU."""
    network = network.to(device)

    def run(x: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return published_forward(network, x, masks)

    return run


def tune(network: SuperResolutionNetwork, device: torch.device, height: int, width: int, turns: int) -> dict[str, Any]:
    """Time the attention kernel for every way to cut its work up, on the shapes of a network's blocks; milliseconds, medians.

    Returns them by shape. The fastest is worth a look at ``drct.engine.gpu.kernels.LAUNCH``: nothing is changed here.
    """
    from drct.engine.gpu import kernels
    from drct.engine.gpu.blocks import GPULayer

    window = network.options.window_size
    height, width = -(-height // window) * window, -(-width // window) * window
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    layers = {GPULayer(fold_swin(block), torch.device("cpu"), dtype) for block in swin_blocks(network)}
    results: dict[str, Any] = {}
    for heads, head_dim in sorted({(len(layer.bias), layer.proj[0].shape[1] // len(layer.bias)) for layer in layers}):
        qkv = torch.randn(height * width, 3 * heads * head_dim, device=device).to(dtype)
        bias = torch.randn(heads, window**2, window**2, device=device).to(dtype)
        runs: dict[str, Callable[[], object]] = {}
        for launch in launches(window, head_dim, qkv.dtype):
            runs[str(launch)] = functools.partial(kernels.window_attention, qkv, bias, (1, height, width), window, 0, launch=launch)
        runs["torch"] = functools.partial(torch_attention, qkv, bias)
        times: dict[str, list[float]] = {}
        for turn in range(turns + 1):  # the first compiles
            for name, run in list(runs.items()):
                try:
                    seconds = timed(run, device)
                except (RuntimeError, triton_error()) as error:  # some cuts need more shared memory than a GPU has
                    print(f"  {name}: {str(error).splitlines()[0]}")
                    del runs[name]
                    continue
                if turn:
                    times.setdefault(name, []).append(1000 * seconds)
        medians = {name: statistics.median(values) for name, values in times.items() if name in runs}
        results[f"{heads} heads of {head_dim}"] = dict(sorted(medians.items(), key=lambda item: item[1]))
        print(f"attention, {heads} heads of {head_dim}, {width} x {height}:")
        for name, value in list(results[f"{heads} heads of {head_dim}"].items())[:5]:
            print(f"  {value:9.3f} ms  {name}")
        if "torch" in medians:
            print(f"  {medians['torch']:9.3f} ms  torch", flush=True)
    return results


def launches(window: int, head_dim: int, dtype: torch.dtype) -> list[Launch]:
    """Cuts of the attention kernel that are worth a try and differ; each takes seconds to compile."""
    from drct.engine.gpu.kernels import Launch, tile_size

    channels = max(16, 1 << (head_dim - 1).bit_length())
    blocks = sorted({tile_size(block, window**2, channels, dtype) for block in (64, 128)})
    return [Launch(m, n, warps, stages) for m in blocks for n in blocks for warps in (4, 8) for stages in (2, 3)]


def torch_attention(qkv: Tensor, bias: Tensor) -> Tensor:
    """torch's fused attention on rows that are in window order already, heads widened to what its kernels ask for."""
    heads, n, _ = bias.shape
    q, k, v = qkv.view(-1, n, 3, heads, qkv.shape[1] // 3 // heads).permute(2, 0, 3, 1, 4)
    wide = (F.pad(part, (0, -part.shape[-1] % 8)) for part in (q, k, v))
    return F.scaled_dot_product_attention(*wide, attn_mask=bias, scale=1.0)[..., : q.shape[-1]]


def triton_error() -> type[Exception]:
    """What Triton raises when a kernel does not fit the GPU."""
    from triton.runtime.errors import OutOfResources

    return OutOfResources


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def swin_blocks(network: SuperResolutionNetwork) -> list[SwinBlock]:
    """All Swin blocks of a network."""
    return [module for module in network.modules() if isinstance(module, SwinBlock)]


def without_graphs(network: SuperResolutionNetwork, device: torch.device, precision: str) -> Callable[[Tensor], Tensor]:
    """Our program with its kernels launched one by one."""
    from drct.engine.gpu.body import GPUBodyProgram

    program = engine.compile(network, device, precision)
    if isinstance(program, GPUBodyProgram):
        program.graphs = False
    return program


def compare(
    name: str, network: SuperResolutionNetwork, device: torch.device, arguments: argparse.Namespace, results: list[dict[str, Any]]
) -> None:
    """Measure one network at all sizes and precisions, and add what was found to ``results``."""
    for size, precision in itertools.product(arguments.sizes, arguments.precisions):
        others: dict[str, Callable[[Tensor], Tensor]] = {}
        if precision != "fp32" and device.type == "cpu":
            others["drct, fp32"] = engine.compile(network, device, "fp32")
        if device.type == "cuda" and precision != "fp32":
            others["drct, without graphs"] = without_graphs(network, device, precision)
        if "published" in arguments.peers and isinstance(network, DRCT):
            others["published operations"] = published(network, device)
            if device.type == "cuda":
                others["published, masks kept"] = published(network, device, kept_mask)
        if "spandrel" in arguments.peers and (peer := spandrel_drct(network, device)) is not None:
            others["spandrel"] = peer
        result = benchmark(
            name,
            network,
            size=(1, *parse_size(size)),
            device=device,
            precision=precision,
            turns=arguments.turns,
            others=others,
            plain="plain" in arguments.peers,
        )
        results.append(result.as_dict())
        print("\n".join(report(result)), "\n", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["drct", "drct_light"])
    parser.add_argument("--sizes", nargs="+", default=["128", "256"], help="N or WIDTHxHEIGHT, input pixels")
    parser.add_argument("--scale", type=int, default=4)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads; with 1, seconds of processor time are counted")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precisions", nargs="+", default=["fp32"])
    parser.add_argument("--peers", nargs="+", default=PEERS, choices=[*PEERS, "none"])
    parser.add_argument("--tune", action="store_true", help="time nothing but the cuts of the GPU's attention kernel")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.json:
        check_place(arguments.json)  # now, not when everything was measured
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = resolve_device(arguments.device)
    results: list[dict[str, Any]] = []
    cuts: dict[str, Any] = {}
    for name in arguments.networks:
        network = create_network(name, scale=arguments.scale).eval()
        if arguments.tune:
            cuts[name] = tune(network, device, *parse_size(arguments.sizes[0]), arguments.turns)
        else:
            compare(name, network, device, arguments, results)
        if arguments.json:
            document = {"environment": environment(device), "attention": cuts, "results": results}
            arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        sys.exit(f"inference: {error}")

"""What bfloat16 does to the gradients of training, by layer: noise that averages out, or a turn that does not.

    python benchmarks/gradients.py options/train/drct_light_x4_continued.yml [--model drct-light-x4] [--batches 24] [--json FILE]

Over batches as the option file draws them, the gradient of the network under autocast to bfloat16, accelerated as training does
it, is compared with that in float32. Of the mean gradient of each layer is printed its length, and relative to it the length of the
mean difference: what is left of it after many batches is no noise, and moves training to another place. The last column is the
length that the mean difference would have if it were noise alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from pathlib import Path

import torch
from torch import Tensor, nn

from drct.engine.accelerate import accelerate
from drct.errors import Error
from drct.places import check_place
from drct.training.options import read_options
from drct.training.pairs import Batch, open_pairs
from drct.weights import load_network


def gradients(network: nn.Module, batch: Batch, half: bool) -> dict[str, Tensor]:
    """Of the squared error, by parameter."""
    network.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        sr = network(batch.lq)
    (sr.float() - batch.gt).square().mean().backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def measure(options_file: Path, model: str, batches: int) -> dict[str, dict[str, float]]:
    """By layer: ``length``, and relative to it ``turn`` and ``noise``."""
    options, _ = read_options(options_file)
    pairs, size = open_pairs(options), options.train_set.batch_size_per_gpu
    exact, short = load_network(model).train(), load_network(model).train()
    accelerate(short)
    sums: dict[str, Tensor] = {}
    squares: dict[str, float] = defaultdict(float)
    for k in range(batches):
        batch = pairs(pairs.patches.raw_batch(range(k * size, (k + 1) * size)), torch.device("cpu"), (options.manual_seed, k))
        right, rounded = gradients(exact, batch, False), gradients(short, batch, True)
        for name, gradient in right.items():
            difference = rounded[name] - gradient
            found = torch.stack([gradient, difference])
            sums[name] = sums[name] + found if name in sums else found
            squares[_layer(name)] += float(difference.square().sum())
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, both in sums.items():
        for i, mean in enumerate(both / batches):
            totals[_layer(name)][i] += float(mean.square().sum())
    found_by_layer = {}
    for layer, (length, turn) in totals.items():
        noise = math.sqrt(squares[layer]) / batches
        found_by_layer[layer] = {"length": length**0.5, "turn": (turn / length) ** 0.5, "noise": noise / length**0.5}
    return found_by_layer


def _layer(name: str) -> str:
    """``layers.0`` for all of a group, else what stands before the first point."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "layers" else parts[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("options", type=Path, help="option file, whose training data are drawn")
    parser.add_argument("--model", default="drct-light-x4")
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.json:
        check_place(arguments.json)  # now, not when everything was measured
    if arguments.batches < 1:
        parser.error("--batches is a whole number from 1 on")
    found = measure(arguments.options, arguments.model, arguments.batches)
    print("| layer | mean gradient | mean difference | if it were noise |\n|---|---:|---:|---:|")
    for layer, f in found.items():
        print(f"| {layer} | {f['length']:.2e} | {f['turn']:.2f} | {f['noise']:.2f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        sys.exit(f"gradients: {error}")

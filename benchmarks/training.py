"""Images per second of one training step: our loop against the published one, in one run; and whether the loader keeps up.

    python benchmarks/training.py --model drct --batch 4 32 --patch 64 --pairs 3 --json training.json

The two steps take turns, so that whatever else the machine does meets both; medians and the median of the ratios are printed. The
published step is float32 without compilation and runs the published network's operations. Ours is what ``drct train`` runs on this
device with ``precision: bf16``. The loader is timed alone, on a pack of random images, over the same batches.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from drct.datasets.loader import PatchSet, batches
from drct.datasets.pack import Pack, write_pack
from drct.engine.accelerate import accelerate
from drct.networks import create_network
from inference import published_forward

SCALE = 4


def step_function(model: str, device: torch.device, ours: bool, precision: str) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """One optimizer step with EMA, as a function of a batch."""
    torch.manual_seed(0)
    network: Any = create_network(model, scale=SCALE, drop_path_rate=0.0).to(device)
    if ours and device.type == "cpu":
        print("  ours:", *accelerate(network))
    average = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.Adam(network.parameters(), 2e-4, betas=(0.9, 0.99), fused=True if ours else None)

    def step(lq: torch.Tensor, gt: torch.Tensor) -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=ours and precision == "bf16"):
            sr = network(lq) if ours else published_forward(network, lq)
        optimizer.zero_grad(set_to_none=True)
        F.l1_loss(sr.float(), gt).backward()
        optimizer.step()
        with torch.no_grad():
            if ours:
                torch._foreach_lerp_(average, list(network.parameters()), 0.001)
            else:
                for held, p in zip(average, network.parameters(), strict=True):
                    held.mul_(0.999).add_(p, alpha=0.001)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step


def timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def loader_rate(batch: int, patch: int, device: torch.device) -> float:
    """Images per second of the loader alone: cut, make LR, orient."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        write_pack(folder, [(str(i), rng.integers(0, 256, (600, 800, 3), np.uint8)) for i in range(16)])
        patches = PatchSet(Pack(folder), None, SCALE, patch * SCALE, seed=0)
        source = batches(patches, 0, batch)
        patches.finish(next(source), device)
        seconds = [timed(lambda: patches.finish(next(source), device)) for _ in range(10)]
        source.close()  # type: ignore[attr-defined]
    return batch / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="drct")
    parser.add_argument("--batch", type=int, nargs="+", default=[4])
    parser.add_argument("--patch", type=int, default=64, help="side in LR pixels")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16", help="of our step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads, {device}, model {arguments.model}")
    steps = [step_function(arguments.model, device, ours, arguments.precision) for ours in (False, True)]
    rows = []
    for batch in arguments.batch:
        lq = torch.rand(batch, 3, arguments.patch, arguments.patch, device=device)
        gt = torch.rand(batch, 3, SCALE * arguments.patch, SCALE * arguments.patch, device=device)
        if device.type == "cuda":
            for step in steps:
                step(lq, gt)
        pairs = [[timed(partial(step, lq, gt)) for step in steps] for _ in range(arguments.pairs)]
        published, ours = (statistics.median(column) for column in zip(*pairs, strict=True))
        row = {
            "batch": batch,
            "patch": arguments.patch,
            "published_images_per_second": batch / published,
            "ours_images_per_second": batch / ours,
            "ratio": statistics.median(a / b for a, b in pairs),
            "loader_images_per_second": loader_rate(batch, arguments.patch, device),
        }
        rows.append(row)
        print(
            f"batch {batch:>3}: published {batch / published:.3f} images/s, ours {batch / ours:.3f} ({arguments.precision}), "
            f"ratio {row['ratio']:.2f}; loader alone {row['loader_images_per_second']:.0f} images/s"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"device": str(device), "model": arguments.model, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()

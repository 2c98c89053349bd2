"""LAM batched along its path against one forward and backward pass per step, in one process, taking turns.

    python benchmarks/lam.py                                 # the bundled model on the CPU, several sizes
    python benchmarks/lam.py --device cuda --sizes 64 128    # on a GPU, time and memory

Both ways compute the same map; the largest difference is printed. On a CPU time is processor time of one thread, which is not
stretched by other programs; memory is the largest sum of live tensors (on a GPU: of allocations).
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from drct.engine.devices import resolve_device
from drct.engine.memory import LiveBytes
from drct.errors import Error
from drct.explain.lam import Attribution, Window, attribute, batch_size
from drct.explain.subjects import load_or_create
from drct.networks import SuperResolutionNetwork
from drct.places import check_place

Way = Callable[[], Attribution]


def seconds_of(way: Way, device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    way()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def peak_of(way: Way, device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way()
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes() as live:
        way()
    return live.peak


def compare(network: SuperResolutionNetwork, size: int, fold: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Both ways on an LR image of ``size`` x ``size``; prints a row."""
    lr = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    window = Window(2 * size, 2 * size, min(16, size))
    batch = min(fold, batch_size(network, size, size))

    def way(steps: int) -> Way:
        return lambda: attribute(network, lr, window, fold=fold, batch=steps)

    single, batched = way(1), way(batch)
    maps = [w().map for w in (single, batched)]  # and warms up
    times = [(seconds_of(single, device), seconds_of(batched, device)) for _ in range(rounds)]
    row = {
        "size": size,
        "batch": batch,
        "single_s": min(t[0] for t in times),
        "batched_s": min(t[1] for t in times),
        "times": statistics.median(a / b for a, b in times),
        "single_bytes": peak_of(single, device),
        "batched_bytes": peak_of(batched, device),
        "difference": float(np.abs(maps[0] - maps[1]).max()),
    }
    print(
        f"  {size:>4} x {size:<4} batch {batch:>3}   one by one {row['single_s']:8.2f} s {row['single_bytes'] / 2**20:7.0f} MiB   "
        f"batched {row['batched_s']:8.2f} s {row['batched_bytes'] / 2**20:7.0f} MiB   {row['times']:5.2f} times faster   "
        f"difference {row['difference']:.1e}"
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="drct-light-x4", help="model, file or name of a network")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16, 32, 64], help="sides of the LR image")
    parser.add_argument("--fold", type=int, default=50, help="steps of the path")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    if arguments.json:
        check_place(arguments.json)  # now, not when everything was measured
    if min(arguments.sizes) < 1:
        parser.error("--sizes takes whole numbers from 1 on")
    device = resolve_device(arguments.device)
    torch.set_num_threads(1)
    network = load_or_create(arguments.model).to(device)
    print(f"LAM of {arguments.model}, {arguments.fold} steps, on {device}, torch {torch.__version__}")
    rows = [compare(network, size, arguments.fold, arguments.rounds, device) for size in arguments.sizes]
    if arguments.json:
        arguments.json.write_text(json.dumps({"model": arguments.model, "fold": arguments.fold, "rows": rows}, indent=1))


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        sys.exit(f"lam: {error}")

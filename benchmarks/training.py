"""Images per second of one training step: our loop against the published one, in one run; and whether the loader keeps up.

    python benchmarks/training.py --model drct --batch 4 32 --patch 64 --pairs 3 --json training.json
    python benchmarks/training.py --model drct --batch 4 32 --micro 1 --pairs 1 --threads 1 --processor-time

The first line is for a GPU, the second for a CPU with 24 GB. The two steps take turns, so that whatever else the machine does meets
both; medians and the median of the ratios are printed. A batch too large for one of them costs a line; the JSON file is written
after every batch size. The published step is float32 without compilation and runs the published network's operations. Ours is the
step of ``drct train`` with ``precision: auto``, its checks and its log's numbers included; both with Adam. The loader is timed
alone, on a pack of random images, over the same batches.

``--micro N`` cuts a batch into pieces of N images whose gradients add up, in both loops, where the memory does not hold the
activations of a whole batch (the published loop needs about 3 GB for each image of DRCT). ``--processor-time`` counts the time of
the processor instead of the clock's, for machines that others use at the same time; together with ``--threads 1``.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from drct.datasets.loader import PatchSet, batches
from drct.datasets.pack import Pack, write_pack
from drct.engine import resolve_device, resolve_precision
from drct.engine.accelerate import accelerate
from drct.engine.program import DEVICE_FULL
from drct.errors import Error
from drct.networks import create_network
from drct.places import check_place
from drct.training.ema import EMA
from drct.training.loop import repeatable
from drct.training.options import parse_options
from drct.training.pairs import Batch
from drct.training.starting import build_network
from drct.training.steps import build_step
from inference import kept_mask, published_forward

SCALE = 4

Step = Callable[[Tensor, Tensor], None]


def published_step(model: str, device: torch.device, micro: int | None) -> Step:
    """The published loop's: its network's operations in float32, Adam, EMA parameter by parameter; masks as they are kept there."""
    torch.manual_seed(0)
    network: Any = create_network(model, scale=SCALE, drop_path_rate=0.0).to(device)
    average = [p.detach().clone() for p in network.parameters()]
    optimizer = torch.optim.Adam(network.parameters(), 2e-4, betas=(0.9, 0.99))

    def step(lq: Tensor, gt: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        for lq_part, gt_part in zip(lq.split(micro or len(lq)), gt.split(micro or len(lq)), strict=True):
            sr = published_forward(network, lq_part, kept_mask)
            (F.l1_loss(sr, gt_part) * (len(lq_part) / len(lq))).backward()
        optimizer.step()
        with torch.no_grad():
            for held, p in zip(average, network.parameters(), strict=True):
                held.mul_(0.999).add_(p, alpha=0.001)

    return step


def our_step(model: str, device: torch.device, precision: str, micro: int | None, batch: int, *, blocks: bool = True) -> Step:
    """The step of ``drct train`` with Adam; ``blocks``: with the kernels of whole blocks, not of attention alone."""
    options, _ = parse_options(
        {
            "name": "benchmark",
            "scale": SCALE,
            "datasets": {"train": {"dataroot_gt": "none"}},
            "network_g": {"type": model, "drop_path_rate": 0.0},
            "train": {"precision": precision, "accumulate": -(-batch // (micro or batch))},
        }
    )
    torch.manual_seed(0)
    network = build_network(options, lambda line: None).to(device)
    print("  ours:", *accelerate(network, blocks=blocks))
    average = EMA(network, options.train.ema_decay)
    one = build_step(options, network, device)
    one.train()

    def step(lq: Tensor, gt: Tensor) -> None:
        parts = zip(lq.split(micro or len(lq)), gt.split(micro or len(lq)), strict=True)
        with repeatable(device):
            terms = one.gradients((Batch(*part, part[1]) for part in parts), 0)
            assert one.clip()
            terms.numbers()
            one.update(1.0)
        average.update(network)

    return step


def timed(function: Callable[[], Any], clock: Callable[[], float], device: torch.device) -> float:
    """Seconds that a call takes, what it leaves to a GPU included."""
    start = clock()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def take_turns(
    steps: dict[str, Step], lq: Tensor, gt: Tensor, turns: int, clock: Callable[[], float], unit: str
) -> dict[str, list[float]]:
    """Seconds of each contestant in each turn; none at all of one that ran out of memory, whom the others do not wait for."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    running = dict(steps)
    warming = 1 if lq.device.type == "cuda" else 0
    for turn in range(warming + turns):
        for name, step in list(running.items()):
            try:
                seconds[name].append(timed(functools.partial(step, lq, gt), clock, lq.device))
                continue
            except RuntimeError as error:
                if not any(words in str(error) for words in DEVICE_FULL):
                    raise
            del running[name]
            seconds[name].clear()
            # outside of the handler, whose exception would keep the tensors alive
            print(f"  {name}: out of memory with {len(lq)} images", flush=True)
            torch.cuda.empty_cache()
        if running and turn >= warming:
            times = ", ".join(f"{name} {seconds[name][-1]:.3f} {unit}" for name in running)
            print(f"  turn {turn - warming + 1}: {times}", flush=True)
    return {name: times[warming:] for name, times in seconds.items()}


def number(value: float | None, digits: int) -> str:
    """None as a dash."""
    return "-" if value is None else f"{value:.{digits}f}"


def loader_rate(batch: int, patch: int, device: torch.device, clock: Callable[[], float]) -> float:
    """Images per second of the loader alone: cut, make LR, orient."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        write_pack(folder, [(str(i), rng.integers(0, 256, (600, 800, 3), np.uint8)) for i in range(16)])
        patches = PatchSet(Pack(folder), None, SCALE, patch * SCALE, seed=0)
        source = batches(patches, 0, batch, workers=0 if clock is time.process_time else 2, pin=device.type == "cuda")

        def load() -> None:
            patches.finish(next(source), device)

        load()
        seconds = [timed(load, clock, device) for _ in range(10)]
        source.close()
    return batch / statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="drct")
    parser.add_argument("--batch", type=int, nargs="+", default=[4])
    parser.add_argument("--patch", type=int, default=64, help="side in LR pixels")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        default="auto",
        help="of our step; auto: bf16 where the device is made for it",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--against", choices=["published", "attention"], default="published", help="attention: ours with that kernel alone (CPU)"
    )
    parser.add_argument("--micro", type=int, help="images at once; the gradients of a batch's pieces add up")
    parser.add_argument("--threads", type=int, help="of the processor")
    parser.add_argument("--processor-time", action="store_true", help="count processor time instead of the clock's")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.json:
        check_place(arguments.json)  # now, not when everything was measured
    device = resolve_device(arguments.device)
    precision = resolve_precision(arguments.precision, device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.processor_time else time.perf_counter
    unit = "s of processor time" if arguments.processor_time else "s"
    print(
        f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} threads, {device}, {precision}, "
        f"model {arguments.model}"
    )
    names = (arguments.against, "ours")
    rows = []
    for batch in arguments.batch:
        ours_is = functools.partial(our_step, arguments.model, device, precision, arguments.micro, batch)
        if arguments.against == "published":
            steps = {"published": published_step(arguments.model, device, arguments.micro), "ours": ours_is()}
        else:
            steps = {"attention": ours_is(blocks=False), "ours": ours_is()}
        lq = torch.rand(batch, 3, arguments.patch, arguments.patch, device=device)
        gt = torch.rand(batch, 3, SCALE * arguments.patch, SCALE * arguments.patch, device=device)
        turns = take_turns(steps, lq, gt, arguments.pairs, clock, unit)
        other, ours = (statistics.median(turns[name]) if turns[name] else None for name in names)
        row = {
            "batch": batch,
            "patch": arguments.patch,
            "micro": arguments.micro or batch,
            "against": arguments.against,
            "against_seconds": other,
            "ours_seconds": ours,
            "against_images_per_second": other and batch / other,
            "ours_images_per_second": ours and batch / ours,
            "ratio": statistics.median(a / b for a, b in zip(*turns.values(), strict=True)) if other and ours else None,
            "loader_images_per_second": loader_rate(batch, arguments.patch, device, clock),
        }
        rows.append(row)
        pieces = f" as {-(-batch // arguments.micro)} x {arguments.micro}" if arguments.micro and arguments.micro < batch else ""
        print(
            f"batch {batch}{pieces}: {arguments.against} {number(other, 3)} {unit}, ours {number(ours, 3)} ({precision}), ", end=""
        )
        print(f"ratio {number(row['ratio'], 2)}; images/s: ", end="")
        print(f"{arguments.against} {number(row['against_images_per_second'], 3)}, ", end="")
        print(f"ours {number(row['ours_images_per_second'], 3)}, ", end="")
        print(f"loader alone {row['loader_images_per_second']:.0f}", flush=True)
        if arguments.json:
            document = {"device": str(device), "model": arguments.model, "rows": rows}
            arguments.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        sys.exit(f"training: {error}")

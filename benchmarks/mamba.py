"""The selective scan and a training step of MambaDRCT: formula, plain torch, kernels and DRCT, in one run.

    python benchmarks/mamba.py                          # scans at DRCT's narrowest width on 64 x 64, steps of one group on 64 x 64
    python benchmarks/mamba.py --channels 180 308 --groups 6 --rounds 5 --json mamba.json
    python benchmarks/mamba.py --device cuda --channels 180 308 --groups 6 --rounds 5 --json mamba-gpu.json

The contestants take turns, so that whatever else the machine does meets all of them; printed are the least time of each and the
median of the ratios within a round. On a CPU that is processor time of one thread, which is not stretched by waiting, and kernels
are in C; on a GPU it is the clock's, kernels are Triton's, and networks run under autocast to bfloat16. The sequential scan is the
formula with all decays computed beforehand, as in the reference code of Mamba. "kept" is what autograd holds between forward and
backward.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from drct.engine import compile, native, resolve_device
from drct.engine.accelerate import accelerate
from drct.errors import Error
from drct.networks import SuperResolutionNetwork, create_network
from drct.networks.mamba_drct import from_sequences, to_sequences
from drct.networks.scan import selective_scan, sequential_scan
from drct.places import check_place

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def four_scans(scan: Scan) -> Scan:
    """Scan a map in four directions with a function that knows sequences only."""

    def run(u: Tensor, delta: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        s = [to_sequences(t) for t in (u.unsqueeze(3).expand_as(delta), delta, b, c)]
        return from_sequences(scan(s[0], s[1], a, s[2], s[3]), *u.shape[1:3])

    return run


def scan_inputs(size: int, channels: int, device: torch.device) -> list[Tensor]:
    u, delta = torch.randn(1, size, size, channels), F.softplus(torch.randn(1, size, size, 4, channels) - 3)
    a = -torch.arange(1.0, 17.0).expand(4, channels, 16).contiguous()
    b, c = torch.randn(1, size, size, 4, 16), torch.randn(1, size, size, 4, 16)
    return [t.to(device).requires_grad_() for t in (u, delta, a, b, c)]


def clock(device: torch.device) -> float:
    """Seconds: of the processor, or of the clock when the GPU is done."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def alternate(contestants: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after one warming round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for r in range(rounds + 1):
        for name, run in contestants.items():
            begin = clock(device)
            run()
            if r:
                seconds[name].append(clock(device) - begin)
    return seconds


def table(title: str, seconds: dict[str, list[float]], against: str, notes: dict[str, str]) -> dict[str, dict[str, float]]:
    print(f"\n{title}")
    rows = {}
    for name, times in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(seconds[against], times, strict=True))
        rows[name] = {"ms": 1000 * min(times), "ratio": ratio}
        print(f"  {name:<24}{1000 * min(times):9.1f} ms   {against} / this {ratio:6.2f}   {notes.get(name, '')}")
    return rows


def kept_mebibytes(run: Callable[[], object]) -> float:
    """Distinct memory that autograd saves while ``run`` computes a forward pass."""
    storages: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storages[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        result = run()  # held until counted, so that no two tensors share an address
    del result
    return sum(storages.values()) / 2**20


def compare_scans(size: int, channels: int, rounds: int, device: torch.device) -> dict[str, dict[str, dict[str, float]]]:
    inputs = scan_inputs(size, channels, device)
    scans: dict[str, Scan] = {"sequential": four_scans(sequential_scan), "ours, plain torch": four_scans(selective_scan)}
    if device.type == "cuda":
        from drct.engine.gpu.selective_scan import selective_scan as triton_scan

        scans["ours, Triton"] = triton_scan
    elif reason := native.scan_available():
        print(f"no C kernel: {reason}")
    else:
        scans["ours, C kernel"] = native.selective_scan
    with torch.no_grad():
        expected = scans["sequential"](*inputs)
        errors = {name: f"difference {(scan(*inputs) - expected).abs().max():.1e}" for name, scan in scans.items()}

        forward = alternate({name: lambda scan=scan: scan(*inputs) for name, scan in scans.items()}, rounds, device)

    def train(scan: Scan) -> None:
        torch.autograd.grad(scan(*inputs).sum(), inputs)

    notes = {name: f"kept {kept_mebibytes(lambda scan=scan: scan(*inputs)):.0f} MiB" for name, scan in scans.items()}
    both = alternate({name: lambda scan=scan: train(scan) for name, scan in scans.items()}, rounds, device)
    where = f"{channels} channels, 4 directions, {size} x {size}"
    return {
        f"scan_forward_{channels}": table(f"scan, forward: {where}", forward, "sequential", errors),
        f"scan_training_{channels}": table(f"scan, forward and backward: {where}", both, "sequential", notes),
    }


def compare_steps(size: int, groups: int, rounds: int, device: torch.device) -> dict[str, dict[str, dict[str, float]]]:
    """Training steps and inference of DRCT and MambaDRCT with equal groups: plain, with kernels, and the engine's programs."""
    x, gt = torch.rand(1, 3, size, size, device=device), torch.rand(1, 3, 4 * size, 4 * size, device=device)
    gpu = device.type == "cuda"
    networks: dict[str, SuperResolutionNetwork] = {}
    for name in ("drct", "mamba_drct"):
        options = {"depths": [6] * groups} | ({"num_heads": [6] * groups} if name == "drct" else {})
        networks[f"{name}, plain"] = create_network(name, **options).to(device)
        networks[f"{name}, kernels"] = create_network(name, **options).to(device)
        accelerate(networks[f"{name}, kernels"])

    def forward(network: SuperResolutionNetwork) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=gpu):
            return network(x)

    def step(network: SuperResolutionNetwork) -> None:
        network.zero_grad()
        F.l1_loss(forward(network).float(), gt).backward()

    notes = {name: f"kept {kept_mebibytes(lambda n=n: forward(n)):.0f} MiB" for name, n in networks.items()}
    training = alternate({name: lambda n=n: step(n) for name, n in networks.items()}, rounds, device)
    for network in networks.values():
        network.eval()
    runners: dict[str, Callable[[], Tensor]] = {name: lambda n=n: forward(n) for name, n in networks.items()}
    for name in ("drct", "mamba_drct"):
        program = compile(networks[f"{name}, plain"], device, "bf16" if gpu else "fp32")
        program.warm_up(size, size)  # on a GPU the second call captures a graph
        runners[f"{name}, engine"] = lambda p=program: p(x)
    with torch.inference_mode():
        inference = alternate(runners, rounds, device)
    where = f"{groups} groups, {size} x {size}, x4, batch 1"
    return {
        "step": table(f"forward and backward of the network: {where}", training, "drct, kernels", notes),
        "inference": table(f"forward of the network: {where}", inference, "drct, engine", {}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64, help="side of the map in pixels")
    parser.add_argument("--channels", type=int, nargs="+", default=[180], help="of the scan: DRCT's blocks have 180 to 308")
    parser.add_argument("--groups", type=int, default=1, help="groups of the networks (the published sizes have 6)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    arguments = parser.parse_args()
    if arguments.json:
        check_place(arguments.json)  # now, not when everything was measured
    torch.manual_seed(0)
    torch.set_num_threads(1)
    device = resolve_device(arguments.device)
    print(f"torch {torch.__version__}, " + ("1 thread" if device.type == "cpu" else torch.cuda.get_device_name(device)))
    figures = {}
    for channels in arguments.channels:
        figures |= compare_scans(arguments.size, channels, arguments.rounds, device)
    figures |= compare_steps(arguments.size, arguments.groups, arguments.rounds, device)
    if arguments.json:
        arguments.json.write_text(json.dumps(vars(arguments) | {"json": str(arguments.json), "figures": figures}, indent=1))


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        sys.exit(f"mamba: {error}")

"""``drct bench``: how fast models run on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from drct.cli.console import Console
from drct.cli.paths import GivenPath

if TYPE_CHECKING:
    from drct.engine.measure import Benchmark


@click.command(epilog="Times are medians; everything is measured in turns, so that a busy machine disturbs all alike.")
@click.argument("models", nargs=-1)
@click.option(
    "--size", "sizes", multiple=True, default=("128",), show_default=True, metavar="N|WxH", help="Input; may be repeated."
)
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images in one call.")
@click.option("--scale", type=int, default=4, show_default=True, help="Of networks that are given by name only.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--precision", default="auto", show_default=True, help="auto, fp32, bf16 or fp16.")
@click.option("--turns", type=click.IntRange(1), default=5, show_default=True, help="Calls that count.")
@click.option("--json", "json_file", type=GivenPath(dir_okay=False), help="Write the measurements to this file.")
def command(models: tuple[str, ...], sizes: tuple[str, ...], json_file: Path | None, **values: Any) -> None:
    """Measure the speed of MODELS: networks (drct, drct_light, ...), names of models or weight files.

    Ours, the plain network in torch, and spandrel's DRCT where that package is installed.
    """
    from drct.engine.devices import resolve_device
    from drct.engine.measure import environment
    from drct.evaluation.benchmark import check_writable, write_text

    if json_file is not None:
        check_writable(json_file)  # now, not when everything was measured
    console = Console()
    results = []
    for model in models or ("drct_light",):
        for size in sizes:
            result = measure(model, parse_size(size), **values)
            results.append(result)
            for line in report(result):
                console.say(line)
            console.say("")
    if json_file is not None:
        document = {"environment": environment(resolve_device(values["device"])), "results": [r.as_dict() for r in results]}
        write_text(json_file, json.dumps(document, indent=2) + "\n")


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) from ``"128"`` or ``"640x480"`` (width x height)."""
    from drct.errors import OptionError

    width, cross, height = text.partition("x")
    if not cross:
        height = width
    if not (width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        raise OptionError(f"size '{text}' is not a size: use N or WIDTHxHEIGHT, for example 128 or 640x480")
    return int(height), int(width)


def measure(model: str, size: tuple[int, int], *, batch: int, scale: int, device: str, precision: str, turns: int) -> Benchmark:
    """Measure one model at one size (height, width)."""
    from drct.engine.measure import benchmark
    from drct.engine.peers import spandrel_drct
    from drct.networks import create_network, list_networks

    if model in list_networks():
        network = create_network(model, scale=scale).eval()
    else:
        from drct.weights import load_network

        network = load_network(model)
    peer = spandrel_drct(network, device)
    others = {} if peer is None else {"spandrel": peer}
    return benchmark(model, network, size=(batch, *size), device=device, precision=precision, turns=turns, others=others)


def report(result: Benchmark) -> list[str]:
    """The lines of a measurement."""
    from drct.engine.measure import ratio

    batch, height, width = result.size
    ours = result.measurements[0]
    lines = [
        f"{result.network}, {batch} x {width} x {height}, {result.precision} on {result.device}",
        *(f"  {line}" for line in result.kernels),
        f"  {'':24}{'seconds':>9}{'slower':>9}{'first call':>12}{'memory':>10}{'difference':>12}",
    ]
    for m in result.measurements:
        if m.failure is not None:
            lines.append(f"  {m.name:24}failed: {m.failure}")
            continue
        memory = "?" if m.peak_bytes is None else f"{m.peak_bytes / 2**20:.0f} MiB"
        slower = "" if m is ours else f"{ratio(m, ours):.2f}x"
        lines.append(f"  {m.name:24}{m.median:9.3f}{slower:>9}{m.warm_up:12.3f}{memory:>10}{m.difference:12.1e}")
    lines.append(
        f"  {result.operations / 1e9:.1f} GFLOP at {result.rate / 1e9:.0f} GFLOP/s; matrix products alone reach "
        f"{result.ceiling / 1e9:.0f} GFLOP/s: {100 * result.share:.0f} %"
    )
    return lines

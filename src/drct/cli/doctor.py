"""``drct doctor``: what this machine can run, and why."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import click

EXTRAS = {
    "train": ("yaml", "lmdb", "PIL", "matplotlib"),
    "explain": ("matplotlib", "PIL"),
    "video": ("av",),
    "heic": ("pi_heif",),
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document instead.")
def command(as_json: bool) -> None:
    """Tell what this machine can run, and why: devices, precisions, kernels, packages."""
    facts = examine()
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for section, lines in facts.items():
        click.echo(f"{section}:")
        for name, value in lines.items():
            click.echo(f"  {name:18}{value}")


def examine() -> dict[str, dict[str, Any]]:
    """Facts by section, in plain words."""
    import torch

    from drct.engine import resolve_device, resolve_precision
    from drct.engine.measure import environment

    device = resolve_device("auto")
    return {
        "versions": {**environment(torch.device("cpu")), **_libvips()},
        "what 'auto' chooses": {
            "device": str(device),
            "precision": "fp32" if device.type == "cpu" else resolve_precision("auto", device),
            "engine on the CPU": f"{resolve_precision('auto', 'cpu')} (engine.compile, drct bench)",
        },
        "CPU kernels": _cpu(),
        "GPUs": _gpus(),
        "extras": {name: _extra(modules) for name, modules in EXTRAS.items()},
    }


def _libvips() -> dict[str, str]:
    try:
        import pyvips
    except (ImportError, OSError) as error:
        return {"libvips": f"missing, images cannot be read: {str(error).splitlines()[0]}"}
    return {"libvips": ".".join(str(pyvips.version(part)) for part in range(3))}


def _cpu() -> dict[str, str]:
    import torch

    from drct.engine import native
    from drct.engine.cpu.linear import packing_available
    from drct.engine.devices import bf16_instructions, bf16_speedup
    from drct.engine.native.build import find_compiler, kernels_folder

    packing, attention, blocks = packing_available(), native.available(), native.swin_layer_available()
    halves = native.swin_attention_available() or native.feed_forward_available()
    in_bf16 = "" if native.swin_layer_available(torch.bfloat16) else f"bf16 by {native.bf16_unit()}"
    ways = (("two native kernels, fp32", halves), (f"one native kernel, {in_bf16}", native.swin_bf16_available()))
    training = " and ".join(way for way, reason in ways if reason is None)
    types = f"fp32 and {in_bf16}" if in_bf16 else "fp32"
    instructions = bf16_instructions()
    if instructions:
        bf16 = f"{' '.join(instructions)}: matrix products measured at {bf16_speedup():.1f}x the rate of fp32 (--precision bf16)"
    else:
        bf16 = "the processor has no instructions for it: it works, but is not faster"
    return {
        "linear layers": "packed by oneDNN" if packing is None else f"plain torch: {packing}",
        "window attention": f"native, built by {find_compiler()}" if attention is None else f"plain torch, slower: {attention}",
        "Swin blocks": f"whole ones in one native kernel, {types}" if blocks is None else f"operator by operator: {blocks}",
        "training": f"Swin blocks in {training}" if training else f"operator by operator: {halves}",
        "kept in": str(kernels_folder()),
        "bf16": bf16,
    }


def _gpus() -> dict[str, str]:
    import torch

    from drct.engine.gpu.availability import triton_available

    if torch.cuda.is_available():
        result = {}
        for index in range(torch.cuda.device_count()):
            p = torch.cuda.get_device_properties(index)
            result[f"cuda:{index}"] = f"{p.name}, {p.total_memory / 2**30:.0f} GiB, capability {p.major}.{p.minor}"
        missing = triton_available()
        result["kernels"] = "Triton" if missing is None else f"plain torch, slower: {missing}"
        return result
    if torch.backends.mps.is_available():
        return {"mps": "Apple GPU, plain torch"}
    built = torch.version.cuda or torch.version.hip
    return {"none": "no driver or no GPU was found" if built else f"this build of torch ({torch.__version__}) is for CPUs only"}


def _extra(modules: tuple[str, ...]) -> str:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return "installed" if not missing else f"not installed (missing: {', '.join(missing)})"

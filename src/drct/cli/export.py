"""``drct export``: write a model in another file format."""

from __future__ import annotations

from typing import Any

import click

from drct.cli.console import Console
from drct.cli.paths import GivenPath


@click.command()
@click.argument("model", metavar="FILE|NAME")
@click.option("--to", type=click.Choice(["safetensors", "compat"]), required=True, help="Format of the output.")
@click.option("-o", "--output", type=GivenPath(), help="Output file [NAME.safetensors or NAME_compat.pth].")
@click.option("--key", help="Which weights of a .pth to take, for example params [params_ema if it is there].")
@click.option("--dtype", type=click.Choice(["fp32", "fp16", "bf16"]), help="Precision of a safetensors file [as in the input].")
@click.option("--licence", help="Terms of use to write into a safetensors file [those of the input].")
@click.option("--training", help="A line on the training to write into a safetensors file [that of the input].")
@click.option("--overwrite", is_flag=True, help="Replace an existing output.")
def command(**options: Any) -> None:
    """Write a model in another file format.

    safetensors: small, safe to read, with what is needed to rebuild the network; for drct.

    compat: a .pth with all buffers of the published code, for other programs that load DRCT models. Give them this one:
    they cannot tell from the smaller file which windows are shifted.
    """
    from drct.weights import export_model

    notices: list[str] = []
    target = export_model(**options, notices=notices)
    console = Console()
    for notice in notices:
        console.note(notice)
    click.echo(target)

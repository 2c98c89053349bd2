"""``drct train``: one option file, one run."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

from drct.cli import INTERRUPTED, OLDER_CALL, answered
from drct.cli.paths import GivenPath

KEY = re.compile(r"(network_[gd]|datasets|path|train|val|degradation)\b[\w.]*: ")


@click.command()
@click.option("-opt", "--options", "option_file", required=True, type=GivenPath(), help="Option file (YAML).")
@click.option(
    "--resume",
    metavar="auto|FILE",
    help="Continue the run's newest checkpoint, or a given one: newer ones are set aside. Default: path.resume_state.",
)
@click.option("--output", type=GivenPath(), help="Folder of the run; default: runs/NAME.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option("--stop-after", type=click.IntRange(min=1), help="Leave with a checkpoint after so many iterations.")
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard event files too.")
@answered("--launcher", "--local-rank", "--local_rank", answer=OLDER_CALL)
@answered("--auto_resume", is_flag=True, answer="--auto_resume is an option of BasicSR; use: --resume auto")
@answered("--debug", is_flag=True, answer="--debug is an option of BasicSR; use: --stop-after N, and shorter intervals in the file")
@answered("--force_yml", answer="--force_yml is an option of BasicSR; use: a copy of the option file with other values")
def command(
    option_file: Path,
    resume: str | None,
    output: Path | None,
    device: str,
    stop_after: int | None,
    tensorboard: bool,
) -> int:
    """Train a network as an option file says.

    On several GPUs or processes: torchrun --nproc-per-node N -m drct train -opt FILE.yml
    """
    from drct.errors import Error
    from drct.training.loop import train
    from drct.training.options import read_options
    from drct.training.processes import one_voice

    with one_voice():
        options, warnings = read_options(option_file)
    first = os.environ.get("RANK", "0") == "0"
    for warning in warnings if first else []:
        click.echo(f"warning: {warning}", err=True)
    try:
        result = train(
            options, output, resume=resume, device=device, echo=click.echo, stop_after=stop_after, tensorboard=tensorboard
        )
    except Error as error:
        if KEY.match(str(error)):  # what a key of the file led to
            error.args = (f"{option_file}: {error}",)
        raise
    best = ", ".join(f"{k} {v:g}" for k, v in result.best.items())
    if first:
        click.echo(f"{result.folder}: iteration {result.iteration}" + (f", best {best}" if best else ""))
        if result.interrupted:
            click.echo("drct: interrupted: go on by the same command with --resume auto", err=True)
    return INTERRUPTED if result.interrupted else 0

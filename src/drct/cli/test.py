"""``drct test``: measure models on benchmark images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from drct.cli.console import Console
from drct.cli.paths import GivenPath

FILE = GivenPath(dir_okay=False)
FOLDER = GivenPath(file_okay=False)


def _listed(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (value or "").split(",") if part.strip())


@click.command(
    epilog="Metrics: psnr, ssim, ms_ssim (on Y), psnr_rgb, ssim_rgb, lpips, lpips_vgg, dists, niqe. An interrupted run, started "
    "again, goes on where it was cut off. Images that cannot count are named, and the others still do."
)
@click.option("-opt", "option_file", type=FILE, help="A published test option file, instead of --model, --data, --sets, --scale.")
@click.option(
    "-m", "--model", "models", multiple=True, metavar="NAME|FILE", help="Model name, weight file, bicubic or nearest; repeatable."
)
@click.option("-d", "--data", type=GivenPath(), help="Folder with the benchmark sets.")
@click.option("--sets", callback=_listed, metavar="A,B,...", help="Names of sets.  [default: all that are there]")
@click.option("-s", "--scale", type=int, help="Magnification.  [default: 4]")
@click.option("--metrics", callback=_listed, metavar="A,B,...", help="What to measure.  [default: psnr,ssim]")
@click.option("--crop", type=int, help="Pixels cut from each side before measuring.  [default: the scale]")
@click.option("--convention", metavar="float|basicsr|matlab", help="How luma and grey images are seen.  [default: float]")
@click.option("--per-image", is_flag=True, help="Print a row for each image, too.")
@click.option("--save", type=FOLDER, help="Keep the results in this folder: MODEL/SET/IMAGE.png.")
@click.option("--json", "json_file", type=FILE, help="Write all figures to this file.")
@click.option("--markdown", type=FILE, help="Write the tables to this file.")
@click.option("--html", type=FILE, help="Write a page with a slider for each image and difference maps.")
@click.option("--ensemble", is_flag=True, help="Average over 8 flips and rotations: a little better, 8 times slower.")
@click.option("--tile", metavar="auto|off|N", help="Side of the tiles in LR pixels.  [default: off, or what the option file says]")
@click.option("--overlap", type=int, help="LR pixels that neighbouring tiles share.  [default: 32]")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, bf16, fp16 or auto.")
@click.option("--fresh", is_flag=True, help="Begin anew instead of continuing an interrupted run.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def command(
    option_file: Path | None,
    models: tuple[str, ...],
    data: Path | None,
    sets: tuple[str, ...],
    metrics: tuple[str, ...],
    per_image: bool,
    tile: str | None,
    fresh: bool,
    quiet: bool,
    **values: Any,
) -> int:
    """Measure models on benchmark images, as papers do.

    \b
    drct test --model drct-light --model bicubic --data DATASETS --sets Set5,Set14
    drct test -opt DRCT_SRx4.yml
    """
    from drct.errors import OptionError
    from drct.evaluation import EvaluationOptions, RunOptions, evaluate, evaluate_file

    console = Console(quiet=quiet)
    given = {key: value for key, value in values.items() if value is not None}
    given["resume"] = not fresh
    if tile is not None:
        given["tile"] = int(tile) if tile.isdecimal() else tile
    measured = {"models": models, "data": data, "sets": sets, "metrics": metrics, **_taken(given, "scale", "crop", "convention")}
    measured = {key: value for key, value in measured.items() if value not in (None, ())}

    def advance(label: str, done: int, total: int) -> None:
        console.progress("images", done, total, label)

    with console:
        if option_file is not None:
            if measured:
                name = next(iter(measured))
                option = "model" if name == "models" else name
                raise OptionError(f"{option_file} says what to test: --{option} does not go with -opt")
            report = evaluate_file(option_file, RunOptions(**given), say=console.note, advance=advance)
        else:
            if not models:
                raise OptionError("nothing to test: give --model NAME (and --data FOLDER), or -opt FILE")
            if data is None:
                raise OptionError("nothing to test on: give --data FOLDER with the benchmark sets")
            report = evaluate(EvaluationOptions(**measured, **given), say=console.note, advance=advance)
    for line in report.table().splitlines():
        console.say(line)
    if per_image:
        console.say("")
        for line in report.image_table().splitlines():
            console.say(line)
    return 0 if report.complete else 1


def _taken(values: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Move entries out of a dictionary."""
    return {key: values.pop(key) for key in keys if key in values}

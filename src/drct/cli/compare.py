"""``drct compare``: versions of the same pictures, measured and side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from drct.cli.console import Console
from drct.cli.paths import GivenPath


@click.command(epilog="Smaller versions are enlarged by bicubic interpolation if their size divides that of the largest.")
@click.argument("inputs", nargs=-1, required=True, type=GivenPath())
@click.option("-o", "--output", type=GivenPath(file_okay=False), help="Folder for the results.  [default: comparison]")
@click.option("--metrics", metavar="A,B,...", help="What to measure, as for 'drct test'.  [default: psnr,ssim]")
@click.option("--crop", type=int, help="Pixels cut from each side before measuring.  [default: 0]")
@click.option("--convention", metavar="float|basicsr|matlab", help="How luma and grey images are seen.  [default: float]")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document instead.")
def command(inputs: tuple[Path, ...], metrics: str | None, quiet: bool, as_json: bool, **values: Any) -> None:
    """Compare two or more images, or folders of images, with the first of them.

    Writes a sheet for each image with zoomed crops of where the versions differ most, and a page with a slider for each.
    """
    from drct.errors import OptionError
    from drct.evaluation import CompareOptions, compare

    if len(inputs) < 2:
        raise OptionError("give at least two images or folders to compare")
    given = {key: value for key, value in values.items() if value is not None}
    if metrics is not None:
        given["metrics"] = tuple(part.strip() for part in metrics.split(",") if part.strip())
    console = Console(quiet=quiet, as_json=as_json)
    with console:
        result = compare(
            CompareOptions(inputs=inputs, **given), advance=lambda name, done, total: console.progress("images", done, total, name)
        )
    for line in result.left_out:
        console.note(f"left out: {line}")
    for line in result.notices:
        console.note(line)
    for line in result.table().splitlines():
        console.say(line)
    console.say(
        f"-> {result.files[-2]}" + (f", {result.files[0]}" if len(result.files) == 3 else f" and {len(result.files) - 2} sheets")
    )
    if as_json:
        console.document(result.as_dict())

"""``drct prepare``: a folder of images becomes a pack for training, or is looked through for faults."""

from __future__ import annotations

from pathlib import Path

import click

from drct.cli.console import printable
from drct.cli.paths import GivenPath


@click.command()
@click.argument("images", type=GivenPath())
@click.option("-o", "--output", type=GivenPath(), help="Folder of the pack, or NAME.lmdb.")
@click.option("--crop", type=int, help="Cut into sub-images of this side in pixels (the published preparation: 480).")
@click.option("--step", type=int, help="Distance between sub-images; default: no overlap (the published preparation: 240).")
@click.option("--minimum", type=int, default=64, show_default=True, help="Leave out images with a shorter side.")
@click.option("--verify", "only_verify", is_flag=True, help="Write nothing; decode everything and name every fault.")
@click.option("--lq", type=GivenPath(), help="With --verify: the folder of LR images that belong to IMAGES.")
@click.option("--scale", type=int, help="How many times smaller LR images are: GT is cut to a multiple of it; needed with --lq.")
def command(
    images: Path,
    output: Path | None,
    crop: int | None,
    step: int | None,
    minimum: int,
    only_verify: bool,
    lq: Path | None,
    scale: int | None,
) -> int:
    """Decode the images below the folder IMAGES once and pack them for fast training.

    An output that ends in .lmdb is written in the layout of BasicSR, anything else as a pack of raw pixels, which is read faster.
    A pack that is there already is replaced when the new one is complete.
    """
    from drct.datasets.prepare import prepare
    from drct.datasets.verify import verify

    if only_verify and (output, crop, step) != (None, None, None):
        raise click.UsageError("--verify writes nothing: leave out -o, --crop and --step")
    if not only_verify and lq is not None:
        raise click.UsageError("--lq goes with --verify")
    if only_verify:
        seen = verify(images, lq, scale, minimum)
        for line in seen.faults:
            click.echo(printable(line), err=True)
        click.echo(printable(f"{images}: {seen.images} images, {seen.pixels / 1e6:.1f} megapixels, {_faults(len(seen.faults))}"))
        return int(bool(seen.faults))
    if output is None:
        raise click.UsageError("give -o PACK, or --verify to look only")
    report = prepare(images, output, crop=crop, step=step, minimum=minimum, scale=1 if scale is None else scale)
    for line in report.left_out:
        click.echo(printable(f"left out: {line}"), err=True)
    click.echo(printable(f"{output}: {report.pieces} pieces of {report.images} images, {report.pixels / 1e6:.1f} megapixels"))
    return 0


def _faults(count: int) -> str:
    return "1 fault" if count == 1 else f"{count} faults"

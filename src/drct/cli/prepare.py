"""``drct prepare``: a folder of images becomes a pack for training."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("images", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="Folder of the pack.")
@click.option("--crop", type=int, help="Cut into sub-images of this side in pixels (the published preparation: 480).")
@click.option("--step", type=int, help="Distance between sub-images; default: no overlap (the published preparation: 240).")
@click.option("--minimum", type=int, default=64, show_default=True, help="Leave out images with a shorter side.")
def command(images: Path, output: Path, crop: int | None, step: int | None, minimum: int) -> None:
    """Decode the images below the folder IMAGES once and pack them for fast training."""
    from drct.datasets.prepare import prepare

    report = prepare(images, output, crop=crop, step=step, minimum=minimum)
    for line in report.left_out:
        click.echo(f"left out: {line}", err=True)
    click.echo(f"{output}: {report.pieces} pieces of {report.images} images, {report.pixels / 1e6:.1f} megapixels")

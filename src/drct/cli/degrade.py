"""``drct degrade``: good images become bad ones, as a network is trained on."""

from __future__ import annotations

from pathlib import Path

import click

from drct.cli.console import Console
from drct.cli.paths import GivenPath


@click.command(
    epilog="Presets: 'real', the published ones of Real-DRCT; 'web', photos resized and compressed again and again; 'camera', "
    "soft and grainy snapshots, sharpened by the camera."
)
@click.argument("image", type=GivenPath())
@click.option("-o", "--output", type=GivenPath(), required=True, help="Image file to write.")
@click.option("--preset", metavar="real|web|camera", help="What happens to the image.  [default: real]")
@click.option("-opt", "--options", "option_file", type=GivenPath(), help="Degrade as this option file trains.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Another number, another draw.")
@click.option("--scale", type=click.IntRange(1, 16), help="How many times smaller it becomes.  [default: 4, or the file's]")
@click.option("--sheet", type=click.IntRange(1, 99), metavar="N", help="Show N draws for the middle of the image side by side.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
def command(
    image: Path,
    output: Path,
    preset: str | None,
    option_file: Path | None,
    seed: int,
    scale: int | None,
    sheet: int | None,
    quiet: bool,
) -> int:
    """Degrade IMAGE as training does: sharpened first, then blur, resizing, noise and compression, twice.

    Prints what was drawn. The same seed gives the same result.
    """
    from drct.degradation import DegradationOptions, degrade_picture, sample_sheet
    from drct.errors import OptionError
    from drct.imaging import Picture, read, write

    options, sharpen = DegradationOptions.preset(preset or "real"), True
    console = Console(quiet=quiet)
    if option_file is not None:
        from drct.training.options import read_options

        if preset is not None:
            raise OptionError(f"give either --preset {preset} or -opt {option_file}, not both")
        training, warnings = read_options(option_file)
        if training.degradation is None:
            raise OptionError(
                f"{option_file} trains on bicubic LR: it has no degradation options (datasets.train.type RealESRGANDataset)"
            )
        options, scale = training.degradation, scale or training.scale
        sharpen = training.gt_usm or training.network_d is not None
        for warning in warnings:
            console.note(warning)
    scale = scale or 4
    if output.exists() and image.exists() and output.samefile(image):
        raise OptionError(f"{output} is the input: choose another output")
    picture = read(image)
    for notice in picture.notices:
        console.note(f"{image}: {notice}")
    if sheet is None:
        sample = degrade_picture(picture, options, scale=scale, seed=seed, sharpen=sharpen)
        samples, pixels = [sample], sample.pixels
    else:
        pixels, samples = sample_sheet(picture, options, scale=scale, seed=seed, count=sheet, sharpen=sharpen)
    # a grey picture's profile does not fit the colours that it was given
    for notice in write(output, Picture(pixels, icc=None if picture.is_grey else picture.icc)):
        console.note(f"{output}: {notice}")
    for sample in samples:
        console.say(f"seed {sample.seed}: {sample.words}")
    console.say(f"{image} -> {output}  ({picture.width} x {picture.height} -> {pixels.shape[1]} x {pixels.shape[0]})")
    return 0

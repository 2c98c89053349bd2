"""``drct explain``: what a network looks at, how its features flow, what it costs."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from drct.cli.console import Console
from drct.cli.paths import GivenPath


class Models(click.Command):
    """A command whose ``--model`` takes several values: ``--model A B`` means ``--model A --model B``.

    Images and folders after the values are arguments again.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, repeat_model(args))


def repeat_model(args: Sequence[str]) -> list[str]:
    """Write ``--model`` before each of the values that follow it."""
    from drct.imaging import supported_suffixes

    result: list[str] = []
    values = 0
    after_model = False
    for arg in args:
        if arg.startswith("-"):
            after_model, values = arg == "--model" or arg.startswith("--model="), int(arg.startswith("--model="))
            result.append(arg)
            continue
        if after_model and values:
            if (os.path.isdir(arg) and not _names_a_model(arg)) or Path(arg).suffix.lower() in supported_suffixes():
                after_model = False
            else:
                result.append("--model")
        values += 1
        result.append(arg)
    return result


def _names_a_model(arg: str) -> bool:
    """Whether it is taken for a model even where a folder has this name."""
    from drct.networks import list_networks
    from drct.weights import list_models

    return arg in list_networks() or arg in {card.name for card in list_models()}


class Pair(click.ParamType):
    """Two whole numbers with something between them."""

    def __init__(self, name: str, separator: str) -> None:
        self.name, self.separator = name, separator

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(rf"\s*(-?\d{{1,7}})\s*{self.separator}\s*(-?\d{{1,7}})\s*", str(value))
        if match is None:
            self.fail(f"'{value}' is not two whole numbers like {self.name}", param, ctx)
        return int(match[1]), int(match[2])


def _options(*decorators: Callable[..., Any]) -> Callable[[Any], Any]:
    def apply(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


MODEL = click.option(
    "--model", "models", multiple=True, required=True, metavar="FILE|NAME...", help="Models to explain, one or more."
)
DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="Print errors only.")
CROP = click.option("--crop", type=int, default=256, show_default=True, help="Use at most this many pixels a side, of the middle.")
COMMON = _options(MODEL, DEVICE, QUIET)


def _figure_option(name: str) -> Callable[[Any], Any]:
    return click.option(
        "-o",
        "--output",
        type=GivenPath(),
        default=Path(f"{name}.png"),
        show_default=True,
        help="Figure: .png, .pdf or .svg.",
    )


@click.group()
def command() -> None:
    """Show what a network looks at and what it costs."""


@command.command(cls=Models)
@click.argument("image", type=GivenPath())
@click.option("--at", type=Pair("X,Y", ","), required=True, metavar="X,Y", help="Top-left corner of the window, in pixels.")
@click.option("--window", type=int, default=16, show_default=True, help="Side of the window in pixels.")
@click.option("--fold", type=int, default=50, show_default=True, help="Steps of the path.")
@click.option("--sigma", type=float, default=1.2, show_default=True, help="Blur at the beginning of the path.")
@_figure_option("lam")
@COMMON
def lam(
    image: Path,
    at: tuple[int, int],
    window: int,
    fold: int,
    sigma: float,
    output: Path,
    models: tuple[str, ...],
    device: str,
    quiet: bool,
) -> None:
    """Local attribution map: which pixels matter for what is drawn inside a window.

    IMAGE is the HR image; each model gets it reduced by its scale. Writes one figure for all models, and the raw maps beside it
    as .npz. The diffusion index is the larger, the more of the image takes part.
    """
    from drct.explain import figures
    from drct.explain.lam import Window, attribute_all, check_maps, crop_to_multiple, save_maps
    from drct.explain.subjects import load_subjects, rgb8
    from drct.imaging import read

    figures.check_path(output, [image])
    maps = output.with_suffix(".npz")
    check_maps(maps)
    console = Console(quiet=quiet)
    hr = rgb8(read(image))
    place = Window(*at, window)
    place.check(*hr.shape[:2], whole=False)  # whether all of it fits depends on what the models leave of the image
    subjects = load_subjects(models, device)
    hr = crop_to_multiple(hr, subjects)
    with console:
        results = attribute_all(
            hr, subjects, place, sigma=sigma, fold=fold, advance=lambda name, done, total: console.progress(name, done, total)
        )
    names = [subject.name for subject in subjects]
    figures.save(figures.lam_figure(hr, names, results, place), output)
    save_maps(maps, subjects, results, place)
    for name, result in zip(names, results, strict=True):
        console.say(f"{name}: diffusion index {result.diffusion_index:.4f}")
    console.say(f"-> {output}, {maps}")


@command.command(cls=Models)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=GivenPath())
@CROP
@_figure_option("flow")
@COMMON
def flow(images: tuple[Path, ...], crop: int, output: Path, models: tuple[str, ...], device: str, quiet: bool) -> None:
    """Feature intensity after every group: the curve of the information bottleneck.

    IMAGEs, or all images of folders, are fed to the models as they are; values are averaged over them. Writes one figure for all
    models, and its numbers beside it as .csv.
    """
    from drct.explain import figures
    from drct.explain.features import groups_of
    from drct.explain.flow import check_csv, feature_flow, write_csv
    from drct.explain.subjects import find_images, load_subjects, read_input

    files = find_images(images)
    figures.check_path(output, files)
    table = output.with_suffix(".csv")
    check_csv(table)
    subjects = load_subjects(models, device)
    for subject in subjects:
        groups_of(subject)
    console = Console(quiet=quiet)
    flows = []
    with console:
        for subject in subjects:

            def advance(done: int, name: str = subject.name) -> None:
                console.progress(name, done, len(files))

            flows.append(feature_flow(subject, (read_input(file, crop) for file in files), advance))
    names = [subject.name for subject in subjects]
    figures.save(figures.flow_figure(names, flows), output)
    write_csv(table, names, flows)
    for name, result in zip(names, flows, strict=True):
        levels = " ".join(f"{value:.3g}" for value in result.measures["mean_absolute"])
        console.say(f"{name}: mean absolute value by group {levels}")
    console.say(f"-> {output}, {table}")


@command.command(cls=Models)
@MODEL
@click.option("--size", type=Pair("64x64", "[xX]"), default="64x64", show_default=True, help="LR width x height in pixels.")
@click.option("--scale", type=int, help="Magnification of networks given by name.  [default: 4]")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON document instead.")
def cost(models: tuple[str, ...], size: tuple[int, int], scale: int | None, as_json: bool) -> None:
    """Parameters, multiply-adds and memory of activations, counted on the network itself.

    A model is a file, the name of a model, or the name of a network such as drct, drct_l or hat. Memory is that of one float32
    image without weights: the most that lives at one time, and what training keeps for its backward pass.
    """
    from drct.errors import OptionError
    from drct.explain.cost import cost_table, network_cost
    from drct.explain.subjects import load_or_create, unique_names

    width, height = size
    if min(size) < 1:
        raise OptionError(f"size {width}x{height} has no pixels: both sides must be at least 1")
    console = Console(as_json=as_json)
    costs = [
        network_cost(name, load_or_create(model, scale), height, width)
        for name, model in zip(unique_names(models), models, strict=True)
    ]
    for line in cost_table(costs):
        console.say(line)
    if as_json:
        console.document([entry.as_dict() for entry in costs])


IMAGES = click.argument("images", nargs=-1, required=True, metavar="IMAGE...", type=GivenPath())


@command.command(cls=Models)
@click.argument("image", type=GivenPath())
@click.option(
    "--show", default="mean", show_default=True, metavar="mean|pca|N", help="What to show of the channels; N is one of them."
)
@CROP
@_figure_option("features")
@COMMON
def features(image: Path, show: str, crop: int, output: Path, models: tuple[str, ...], device: str, quiet: bool) -> None:
    """Feature maps by depth: a row for each model, a column for each group.

    IMAGE is fed to the models as it is. Each row has one colour scale, except with pca: there each map has colours of its own,
    which tell nothing about its strength.
    """
    from drct.explain import figures
    from drct.explain.features import as_picture, group_features
    from drct.explain.subjects import load_subjects, read_input

    figures.check_path(output, [image])
    pixels = read_input(image, crop)
    subjects = load_subjects(models, device)
    sheets = [[as_picture(feature, show) for feature in group_features(subject, pixels).values()] for subject in subjects]
    figures.save(figures.features_figure([subject.name for subject in subjects], sheets, show), output)
    Console(quiet=quiet).say(f"-> {output}")


@command.command(cls=Models)
@IMAGES
@CROP
@_figure_option("field")
@COMMON
def field(images: tuple[Path, ...], crop: int, output: Path, models: tuple[str, ...], device: str, quiet: bool) -> None:
    """Effective receptive field: how far around a pixel a model looks.

    IMAGEs, or all images of folders, are fed to the models as they are; the field is averaged over them.
    """
    from drct.explain import figures
    from drct.explain.field import receptive_field
    from drct.explain.subjects import find_images, load_subjects, read_input

    files = find_images(images)
    figures.check_path(output, files)
    subjects = load_subjects(models, device)
    fields = [receptive_field(subject, (read_input(file, crop) for file in files)) for subject in subjects]
    names = [subject.name for subject in subjects]
    figures.save(figures.field_figure(names, fields), output)
    console = Console(quiet=quiet)
    for name, result in zip(names, fields, strict=True):
        console.say(f"{name}: " + ", ".join(f"{share:.0%} in {result.square(share, 'px')}" for share in result.sides))
    console.say(f"-> {output}")


@command.command(cls=Models)
@IMAGES
@CROP
@_figure_option("cka")
@COMMON
def cka(images: tuple[Path, ...], crop: int, output: Path, models: tuple[str, ...], device: str, quiet: bool) -> None:
    """Similarity between the groups of each model (linear CKA).

    IMAGEs, or all images of folders, are fed to the models as they are. Groups that resemble each other closely add little.
    """
    from drct.explain import figures
    from drct.explain.cka import samples, similarity
    from drct.explain.subjects import find_images, load_subjects, read_input

    files = find_images(images)
    figures.check_path(output, files)
    subjects = load_subjects(models, device)
    matrices = []
    for subject in subjects:
        groups = samples(subject, (read_input(file, crop) for file in files))
        matrices.append(similarity(groups, groups))
    names = [subject.name for subject in subjects]
    figures.save(figures.cka_figure(names, matrices), output)
    console = Console(quiet=quiet)
    for name, matrix in zip(names, matrices, strict=True):
        console.say(f"{name}: first to last group {matrix[0, -1]:.3f}")
    console.say(f"-> {output}")


@command.command(cls=Models)
@click.argument("image", type=GivenPath())
@click.option(
    "--at", type=Pair("X,Y", ","), metavar="X,Y", help="Top-left corner of the attribution window.  [default: the middle]"
)
@click.option("--window", type=int, default=16, show_default=True, help="Side of the window in pixels.")
@click.option("--fold", type=int, default=50, show_default=True, help="Steps of the attribution's path.")
@CROP
@click.option("-o", "--output", type=GivenPath(), default=Path("report.html"), show_default=True, help="The page, .html.")
@click.option(
    "--model",
    "models",
    multiple=True,
    default=["drct-light-x4"],
    show_default=True,
    metavar="FILE|NAME...",
    help="Models to explain.",
)
@DEVICE
@QUIET
def report(
    image: Path,
    at: tuple[int, int] | None,
    window: int,
    fold: int,
    crop: int,
    output: Path,
    models: tuple[str, ...],
    device: str,
    quiet: bool,
) -> None:
    """Everything on one page: a single HTML file that needs nothing else.

    IMAGE is the HR image; of a larger one the middle is used, and X,Y counts from its corner.
    """
    from drct.errors import OptionError
    from drct.explain.lam import Window
    from drct.explain.report import write_report
    from drct.explain.subjects import centre, load_subjects, rgb8
    from drct.imaging import read
    from drct.places import check_place

    if output.suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"{output} is no name of a page: use .html")
    check_place(output)
    hr = rgb8(read(image))
    # whether all of it fits depends on what the models leave of the image, and so does the middle
    Window(*(at or (0, 0)), window).check(*centre(hr, crop).shape[:2], whole=False)
    place = Window(*at, window) if at else window
    subjects = load_subjects(models, device)
    console = Console(quiet=quiet)
    with console:
        indices = write_report(output, image.name, hr, subjects, place, fold=fold, crop=crop, advance=console.progress)
    for name, index in indices.items():
        console.say(f"{name}: diffusion index {index:.4f}")
    console.say(f"-> {output}")

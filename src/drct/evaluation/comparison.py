"""The verb ``drct compare``: two or more versions of the same pictures, measured, side by side, and laid over each other."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from drct.errors import DataError, ImageError, OptionError
from drct.evaluation.benchmark import make_folder, write_text
from drct.evaluation.measures import MEASURES, Convention, check_measures, measure
from drct.evaluation.options import Checked
from drct.evaluation.page import Figure, Layer, write_page
from drct.evaluation.report import json_number, markdown_table, mean, number
from drct.evaluation.suites import as_rgb
from drct.imaging import Picture, is_image_file, read, read_info, resize, side_by_side, to_depth, write
from drct.imaging.writing import on_white

CROPS = 3  # zoomed crops per image
CROPS_PER_SIDE = 5  # the shorter side of an image is so many crops long
PANEL = 360  # width of a panel of a sheet in pixels, about
COLOURS = ((230, 57, 70), (29, 132, 181), (244, 162, 20))  # frames of the crops
MAKER = b'xmp:CreatorTool="drct compare"'  # by which a later run knows the sheets of an earlier one
SHEET_XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" ' + MAKER + b"/></rdf:RDF></x:xmpmeta>"
)

Advance = Callable[[str, int, int], None]


class CompareOptions(Checked):
    """Options of :func:`compare`."""

    inputs: tuple[Path, ...] = Field(min_length=2, description="image files, or folders with images of the same names")
    output: Path = Field(Path("comparison"), description="folder for the sheets, index.html and figures.json")
    metrics: tuple[str, ...] = Field(("psnr", "ssim"), description="see drct.evaluation.measures")
    crop: int = Field(0, ge=0, description="pixels cut from each side before measuring")
    convention: Convention = Field("float", description="how luma and grey images are seen")


@dataclasses.dataclass
class Comparison:
    """What :func:`compare` found.

    Attributes:
        labels: of the versions; the first is what the others are compared with.
        metrics: keys of :data:`drct.evaluation.measures.MEASURES`.
        values: image name, then version, then metric.
        left_out: one line for each image that was not compared.
        notices: what a reader should know.
        files: what was written.
    """

    labels: list[str]
    metrics: tuple[str, ...]
    values: dict[str, dict[str, dict[str, float | None]]]
    left_out: list[str]
    notices: list[str]
    files: list[Path]

    def table(self) -> str:
        """Values of every image, and their means where there are several, as a Markdown table."""
        header = ["Image", "Version", *(MEASURES[metric].label for metric in self.metrics)]
        rows = []
        for image, versions in self.values.items():
            rows += [[image, label, *self._cells(values)] for label, values in versions.items()]
        if len(self.values) > 1:
            for label in self.labels:
                every = [versions[label] for versions in self.values.values() if label in versions]
                if every:
                    means = {metric: mean(values[metric] for values in every) for metric in self.metrics}
                    rows.append([f"mean of {len(every)}", label, *self._cells(means)])
        return "\n".join(markdown_table(header, rows))

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = {
            image: {label: {k: json_number(v) for k, v in found.items()} for label, found in versions.items()}
            for image, versions in self.values.items()
        }
        return {
            "reference": self.labels[0],
            "metrics": list(self.metrics),
            "images": values,
            "left_out": self.left_out,
            "notices": self.notices,
        }

    def _cells(self, values: dict[str, float | None]) -> list[str]:
        return [number(values[metric], MEASURES[metric].digits) for metric in self.metrics]


def compare(options: CompareOptions, *, advance: Advance | None = None) -> Comparison:
    """Compare versions of the same pictures.

    Written into the output folder are a sheet for each picture (all versions, and zoomed crops of where they differ most),
    ``index.html`` with a slider for each picture and difference maps, and ``figures.json``. What an earlier comparison wrote there
    is replaced, and nothing else.

    Args:
        options: what to compare, and how. The first input is what the others are measured against.
        advance: gets the current image, how many are done, and how many there are.

    Returns:
        The values, what was left out and why, and the files that were written.

    Raises:
        OptionError: files mixed with folders, the output cannot be written, or it would replace an input or a file of somebody.
        DataError: nothing could be compared.
    """
    metrics = check_measures(options.metrics)
    labels = _labels(options.inputs)
    images, left_out = _matched(options.inputs)
    result = Comparison(labels, metrics, {}, left_out, [], [])
    notes: dict[str, list[str]] = {}
    _check_outputs(options, images)
    new = not options.output.exists()
    make_folder(options.output)
    done: dict[str, list[Path]] = {}
    for i, (name, paths) in enumerate(images.items()):
        if advance is not None:
            advance(name, i, len(images))
        try:
            note = functools.partial(_note, notes, name)
            pixels, profiles = _aligned(paths, labels, note)
            result.values[name] = _measured(pixels, labels, options, metrics, note)
        except (DataError, ImageError) as error:
            result.left_out.append(str(error))
            continue
        done[name] = paths
        sheet = _sheet_file(options, name)
        # one profile for all of the sheet, which is RGB also where the versions are grey
        icc = profiles[0] if len(set(profiles)) == 1 and pixels[0].shape[2] == 3 else None
        write(sheet, Picture(make_sheet(pixels, labels), icc=icc, xmp=SHEET_XMP))
        result.files.append(sheet)
    if not result.values:
        if new:
            options.output.rmdir()
        raise DataError(f"nothing could be compared: {result.left_out[0] if result.left_out else 'the folders hold no images'}")
    for text, found in notes.items():
        names = list(dict.fromkeys(found))  # several versions may have said it
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        result.notices.append(f"{', '.join(names[:3])}{more}: {text}")
    page, figures = options.output / "index.html", options.output / "figures.json"
    lines = [f"compared with {labels[0]}", *(f"left out: {cause}" for cause in result.left_out), *result.notices]
    # the figures first: by them a later run knows the page
    write_text(figures, json.dumps(result.as_dict(), indent=1, allow_nan=False) + "\n")
    write_page(page, " / ".join(labels), [result.table()], lines, _figures(result, done))
    result.files += [page, figures]
    return result


def make_sheet(pixels: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """All versions of a picture beside each other, and below them zoomed crops of where they differ most.

    Args:
        pixels: versions of one size, ``(H, W, C)`` uint8 or uint16; the first is the reference.
        labels: one for each.

    Returns:
        uint8 RGB ``(H, W, 3)``.
    """
    versions = [np.ascontiguousarray(as_rgb(to_depth(p, "uint8"))) for p in pixels]
    height, width = versions[0].shape[:2]
    side = max(8, min(height, width) // CROPS_PER_SIDE)
    boxes = [] if side > min(height, width) else largest_differences(versions, side, CROPS)
    zoom = max(1, PANEL // side)
    panel = side * zoom
    overviews = [_overview(version, boxes, side, panel) for version in versions]
    rows = [side_by_side(overviews, labels)]
    for colour, (top, left) in zip(COLOURS, boxes, strict=False):
        crops = [version[top : top + side, left : left + side].repeat(zoom, 0).repeat(zoom, 1) for version in versions]
        framed = [_framed(_wide(crop, overviews[0].shape[1]), (0, 0, *crop.shape[:2]), colour, 4) for crop in crops]
        rows.append(side_by_side(framed, [""] * len(framed), text_height=1))
    return np.concatenate(rows)


def largest_differences(versions: Sequence[np.ndarray], side: int, count: int) -> list[tuple[int, int]]:
    """Top left corners of the squares where versions differ most from the first one, the largest difference first.

    The squares of ``side`` pixels do not overlap; there are fewer than ``count`` where the versions are equal elsewhere.
    """
    first = versions[0].astype(np.int32)
    difference = np.max([np.abs(version - first).sum(2) for version in versions[1:]], axis=0)
    sums = np.zeros((difference.shape[0] + 1, difference.shape[1] + 1), np.int64)
    sums[1:, 1:] = difference.cumsum(0).cumsum(1)
    totals = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    corners: list[tuple[int, int]] = []
    while len(corners) < count and totals.max() > 0:
        top, left = (int(i) for i in np.unravel_index(totals.argmax(), totals.shape))
        corners.append((top, left))
        totals[max(0, top - side + 1) : top + side, max(0, left - side + 1) : left + side] = 0
    return corners


def _overview(version: np.ndarray, boxes: Sequence[tuple[int, int]], side: int, panel: int) -> np.ndarray:
    """The whole picture, shrunk to the width of a panel if it is wider, with the crops marked."""
    height, width = version.shape[:2]
    factor = min(1.0, panel / width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    image = version if factor == 1 else resize(version, size=size)
    for colour, (top, left) in zip(COLOURS, boxes, strict=False):
        box = tuple(round(v * factor) for v in (top, left, top + side, left + side))
        image = _framed(image, box, colour, 2)
    return _wide(image, panel)


def _wide(image: np.ndarray, width: int) -> np.ndarray:
    """Fill up with white on the right."""
    return np.pad(image, ((0, 0), (0, max(0, width - image.shape[1])), (0, 0)), constant_values=255)


def _framed(image: np.ndarray, box: tuple[int, ...], colour: tuple[int, int, int], thickness: int) -> np.ndarray:
    """A copy with a frame just inside of ``box`` (top, left, bottom, right)."""
    top, left, bottom, right = box
    frame = np.zeros(image.shape[:2], bool)
    frame[top:bottom, left:right] = True
    frame[top + thickness : bottom - thickness, left + thickness : right - thickness] = False
    return np.where(frame[:, :, None], np.array(colour, np.uint8), image)


def _labels(inputs: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart, without the last part where it is the same for all."""
    parts = [path.resolve().parts for path in inputs]
    for length in range(1, max(map(len, parts)) + 1):
        ends = [part[-length:] for part in parts]
        if len(set(ends)) == len(ends):
            same = length > 1 and len({end[-1] for end in ends}) == 1
            return ["/".join(end[:-1] if same else end) for end in ends]
    raise OptionError(f"{inputs[0]} is given twice: name different files or folders")


def _sheet_file(options: CompareOptions, name: str) -> Path:
    return options.output / f"{name}.png"


def _check_outputs(options: CompareOptions, images: dict[str, list[Path]]) -> None:
    """Refuse to replace an input, or what no comparison wrote.

    Raises:
        OptionError: naming the file.
    """
    output = options.output
    inputs = [*options.inputs, *itertools.chain.from_iterable(images.values())]
    ours = _is_ours(output / "figures.json")
    outputs = {output: True, output / "figures.json": ours, output / "index.html": ours}
    outputs |= {sheet: _is_ours(sheet) for sheet in (_sheet_file(options, name) for name in images)}
    for path, replaceable in outputs.items():
        if not os.path.lexists(path):
            continue
        if path.exists() and any(path.samefile(file) for file in inputs):
            raise OptionError(f"{path} is an input and would be written over: choose another folder with -o")
        if not replaceable:
            raise OptionError(f"{path} is not of an earlier comparison and would be replaced: choose another folder with -o")


def _is_ours(path: Path) -> bool:
    """Whether a comparison wrote this sheet or these figures."""
    try:
        if path.suffix == ".png":
            return MAKER in (read_info(path).xmp or b"")
        found = json.loads(path.read_bytes())
    except (ImageError, OSError, ValueError):
        return False
    return isinstance(found, dict) and {"reference", "metrics", "images", "left_out"} <= found.keys()


def _matched(inputs: Sequence[Path]) -> tuple[dict[str, list[Path]], list[str]]:
    """The files of each image, one per input, and a line for each image that is not in all folders."""
    for path in inputs:
        if not path.exists():
            raise OptionError(f"{path} does not exist: give image files, or folders of images")
    if all(path.is_file() for path in inputs):
        return {_plain_name(inputs[0].stem): list(inputs)}, []
    if not all(path.is_dir() for path in inputs):
        raise OptionError("give either image files or folders to compare, not both")
    matched: dict[str, list[Path]] = {}
    left_out: list[str] = []
    found = [sorted(path for path in folder.iterdir() if path.is_file() and is_image_file(path)) for folder in inputs]
    known = {_plain_name(path.stem) for paths in found for path in paths}
    folders = [_by_name(paths, known, left_out) for paths in found]
    for name, path in folders[0].items():
        missing = [folder for folder, files in zip(inputs, folders, strict=True) if name not in files]
        if missing:
            left_out.append(f"{path}: {missing[0]} has no image of this name")
        else:
            matched[name] = [files[name] for files in folders]
    for folder, files in zip(inputs[1:], folders[1:], strict=True):
        left_out += [
            f"{folder / path.name}: {inputs[0]} has no image of this name" for key, path in files.items() if key not in folders[0]
        ]
    return matched, left_out


def _by_name(paths: Sequence[Path], known: set[str], left_out: list[str]) -> dict[str, Path]:
    """The images of a folder by the names that versions share; of those that share one, the last.

    Args:
        known: plain names in all folders: ``babyx4`` is a version of ``baby`` where there is a ``baby``, and ``0801x4`` of ``0801``
            in any case, while ``box4`` is a name.
    """
    files: dict[str, Path] = {}
    for path in paths:
        name = _plain_name(path.stem)
        shorter = _plain_name(re.sub(r"(?i)x\d+$", "", name))
        if shorter in known or re.fullmatch(r"(?i).*\dx[2348]", name):
            name = shorter
        if name in files:
            left_out.append(f"{files[name]}: {path.name} beside it counts as the same image")
        files[name] = path
    return files


def _plain_name(stem: str) -> str:
    """The name without what tells versions apart: ``baby_x4`` and ``baby-SR`` are ``baby``."""
    return re.sub(r"(?i)([_-](x\d+|hr|lr|sr|gt|out))+$", "", stem) or stem


def _aligned(
    paths: Sequence[Path], labels: Sequence[str], note: Callable[[str], None]
) -> tuple[list[np.ndarray], list[bytes | None]]:
    """All versions in one size, depth and number of channels, opaque; and their colour profiles."""
    pictures = [_told(path, note) for path in paths]
    pixels, profiles = [_opaque(picture, note) for picture in pictures], [picture.icc for picture in pictures]
    if len(set(profiles)) > 1:
        note("colour profiles differ: values are compared as they are")
    for path, image in zip(paths, pixels, strict=True):
        if image.dtype == np.float32:
            raise DataError(f"{path} holds floating point values: metrics are defined on 8 or 16 bits")
        if image.dtype != pixels[0].dtype:
            raise DataError(f"{path} has {8 * image.itemsize} bits, but {paths[0]} has {8 * pixels[0].itemsize}")
    if len({image.shape[2] for image in pixels}) > 1:
        note("grey is taken as RGB, since not all versions are grey")
        # a profile of grey does not fit RGB
        profiles = [None if image.shape[2] == 1 else icc for image, icc in zip(pixels, profiles, strict=True)]
        pixels = [as_rgb(image) for image in pixels]
    largest = max(range(len(pixels)), key=lambda i: pixels[i].shape[:2])
    height, width = pixels[largest].shape[:2]
    aligned = []
    for path, label, image in zip(paths, labels, pixels, strict=True):
        h, w = image.shape[:2]
        if (h, w) != (height, width):
            factor = height // h
            if (h * factor, w * factor) != (height, width):
                raise DataError(f"{path} is {w} x {h}, but {paths[largest]} is {width} x {height}: not a whole multiple")
            note(f"{label} is enlarged x{factor} by bicubic interpolation")
            image = resize(image, scale=factor)
        aligned.append(image)
    return aligned, profiles


def _told(path: Path, note: Callable[[str], None]) -> Picture:
    """A picture, and what its reading left out, such as all frames but the first."""
    picture = read(path)
    for text in picture.notices:
        note(text)
    return picture


def _opaque(picture: Picture, note: Callable[[str], None]) -> np.ndarray:
    """Its pixels on white, as most viewers show them: what lies under transparency is arbitrary."""
    pixels, alpha = picture.pixels, picture.alpha
    if alpha is None or pixels.dtype == np.float32 or bool((alpha == np.iinfo(alpha.dtype).max).all()):
        return pixels
    note("transparency is laid on white")
    return on_white(pixels, alpha)


def _measured(
    pixels: Sequence[np.ndarray],
    labels: Sequence[str],
    options: CompareOptions,
    metrics: Sequence[str],
    note: Callable[[str], None],
) -> dict[str, dict[str, float | None]]:
    """Values of every version against the first; of the first itself only what needs no reference. None where one is too small."""
    values: dict[str, dict[str, float | None]] = {}
    for i, (label, image) in enumerate(zip(labels, pixels, strict=True)):
        reference = pixels[0] if i else None
        if i or not all(MEASURES[metric].needs_hr for metric in metrics):
            values[label] = {}
            for metric in metrics:
                try:
                    values[label][metric] = measure(metric, image, reference, options.crop, options.convention)
                except DataError as error:
                    values[label][metric] = None
                    note(str(error))
    return values


def _note(notes: dict[str, list[str]], name: str, text: str) -> None:
    notes.setdefault(text, []).append(name)


def _figures(result: Comparison, files: dict[str, list[Path]]) -> Iterator[Figure]:
    headings = [MEASURES[metric].label for metric in result.metrics]
    for name, paths in files.items():
        pixels, profiles = _aligned(paths, result.labels, lambda text: None)
        layers = []
        for label, image, icc in zip(result.labels, pixels, profiles, strict=True):
            found = result.values[name].get(label)
            cells = [] if found is None else [number(found[metric], MEASURES[metric].digits) for metric in result.metrics]
            layers.append(Layer(label, functools.partial(np.asarray, image), cells, icc))
        yield Figure("", name, layers, 0, headings)

"""Whether results shrink back to what they were made from: networks that invent surfaces show themselves without a ground truth.

    python benchmarks/consistency.py --data IMAGES [--models bicubic drct-light-x4] [--side 96] [--json FILE]

The middle of each image is enlarged and shrunk again by the MATLAB bicubic; what differs, averaged over 4 x 4 pixels so that lost
detail does not count, is printed in levels of 255: the mean, the share of blocks that are more than 6 away, and the worst block of
all images with the image it lies in. Beside the image as it is come its tones at a fifth of their contrast, near black, middle grey
and white: large surfaces there are rare in what networks are trained on, and common in photographs of goods on white paper and of
the night. Last come drawings, clean, with weak noise, and with noise, sharpening and JPEG errors: dead leaves as training with
leaves_share has them, from a seed of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from drct import Upscaler
from drct.datasets.sources import ImageSource, open_source
from drct.degradation.draws import Draws
from drct.errors import Error
from drct.imaging import resize
from drct.places import check_place
from drct.training.dead_leaves import SIGMA, dead_leaves
from drct.training.faults import add_faults, add_grain
from real_world import enlarger

CONTRAST = 0.2
BLOCK = 4  # side of what is averaged, in pixels of the small image
OFF = 6  # of 255: blocks that differ more are seen
DRAWINGS = 24
TONES: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "near black": lambda x: CONTRAST * x,
    "near grey": lambda x: 0.5 + CONTRAST * (x - 0.5),
    "near white": lambda x: 1 - CONTRAST * (1 - x),
}


@dataclasses.dataclass
class Deviation:
    """Of many images: mean and worst in levels of 255, ``off`` in percent of all blocks."""

    mean: float
    off: float
    worst: float
    image: str


def deviations(lq: Tensor, enlarge: Callable[[Tensor], Tensor], scale: int) -> Tensor:
    """Absolute differences between an image and its shrunk result, as means over blocks, of 255.

    ``lq``: ``(1, 3, H, W)`` in 0..1. A block at the border is left out: there every interpolation has to guess.
    """
    difference = resize(enlarge(lq), scale=1 / scale) - lq
    return F.avg_pool2d(difference, BLOCK)[..., 1:-1, 1:-1].abs() * 255


def middle(images: ImageSource, i: int, side: int) -> Tensor:
    """``(1, 3, side, side)`` float32 in 0..1, smaller where the image is smaller."""
    image = images[i]
    top, left = (max(0, n - side) // 2 for n in image.shape[:2])
    return torch.from_numpy(image[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None] / 255


def photographs(data: Path, side: int, count: int | None) -> dict[str, dict[str, Tensor]]:
    """By tones and name: the middles of images, with 8 bits."""
    images = open_source(data)
    middles = {images.name(i): middle(images, i, side) for i in range(min(len(images), count or len(images)))}
    return {kind: {name: (tones(x) * 255).round() / 255 for name, x in middles.items()} for kind, tones in TONES.items()}


def drawings(side: int, count: int) -> dict[str, dict[str, Tensor]]:
    """By kind and number: dead leaves four times as large, shrunk."""
    generator = torch.Generator().manual_seed(128)
    gt = dead_leaves(count, 4 * side, Draws(generator), torch.device("cpu"))
    lq = (resize(gt, scale=1 / 4) * 255).round() / 255
    grainy, _ = add_grain(lq, gt, 1.0, SIGMA, generator)
    faulty, _ = add_faults(lq, gt, 1.0, generator)
    kinds = {"drawn": lq, "drawn, grainy": grainy, "drawn, faulty": faulty}
    return {kind: {str(i): images[i : i + 1] for i in range(count)} for kind, images in kinds.items()}


def measure(data: Path, models: list[str], side: int = 96, count: int | None = None) -> dict[str, dict[str, Deviation]]:
    """By model and kind of images."""
    kinds = photographs(data, side, count) | drawings(side, count or DRAWINGS)
    found: dict[str, dict[str, Deviation]] = {}
    for model in models:
        scale = 4 if model == "bicubic" else Upscaler(model, device="cpu").default_scale
        enlarge = enlarger(model, scale)
        found[model] = {}
        for kind, images in kinds.items():
            blocks = {name: deviations(lq, enlarge, scale) for name, lq in images.items()}
            worst = max(blocks, key=lambda name: float(blocks[name].max()))
            # a block is off where one of its channels is
            off = torch.cat([(b.amax(1) > OFF).flatten() for b in blocks.values()]).float().mean()
            mean = sum(float(b.mean()) for b in blocks.values()) / len(blocks)
            found[model][kind] = Deviation(mean, 100 * float(off), float(blocks[worst].max()), worst)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="images, a folder or a pack")
    parser.add_argument("--models", nargs="+", default=["bicubic", "drct-light-x4"])
    parser.add_argument("--side", type=int, default=96, help="side of what is cut from the middle of each image, in pixels")
    parser.add_argument("--count", type=int, help="the first so many images only, and so many drawings")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.json:
        check_place(arguments.json)  # now, not when everything was measured
    found = measure(arguments.data, arguments.models, arguments.side, arguments.count)
    print("| model | images | mean | off, % | worst | in |\n|---|---|---:|---:|---:|---|")
    for model, by_kind in found.items():
        for kind, d in by_kind.items():
            print(f"| {model} | {kind} | {d.mean:.2f} | {d.off:.2f} | {d.worst:.1f} | {d.image} |")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({m: {kind: dataclasses.asdict(d) for kind, d in by.items()} for m, by in found.items()}, indent=2)
        )


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        sys.exit(f"consistency: {error}")

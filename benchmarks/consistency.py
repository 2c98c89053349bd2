"""Whether results shrink back to what they were made from: networks that invent surfaces show themselves without a ground truth.

    python benchmarks/consistency.py --data IMAGES [--models bicubic drct-light-x4] [--side 96] [--json FILE]

The middle of each image is enlarged and shrunk again by the MATLAB bicubic; what differs, averaged over 4 x 4 pixels so that lost
detail does not count, is printed in levels of 255: the mean, and the worst 4 x 4 pixels of all images with the image they lie in.
Beside the image as it is come its tones at a fifth of their contrast, near black, middle grey and white: large surfaces there are
rare in what networks are trained on, and common in photographs of goods on white paper and of the night.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from drct import Upscaler
from drct.datasets.sources import ImageSource, open_source
from drct.imaging import resize
from real_world import enlarger

CONTRAST = 0.2
BLOCK = 4  # side of what is averaged, in pixels of the small image
TONES: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "near black": lambda x: CONTRAST * x,
    "near grey": lambda x: 0.5 + CONTRAST * (x - 0.5),
    "near white": lambda x: 1 - CONTRAST * (1 - x),
}


@dataclasses.dataclass
class Deviation:
    """Of many images, in levels of 255."""

    mean: float
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


def measure(data: Path, models: list[str], side: int = 96, count: int | None = None) -> dict[str, dict[str, Deviation]]:
    """By model and tones."""
    images = open_source(data)
    found: dict[str, dict[str, Deviation]] = {}
    for model in models:
        scale = 4 if model == "bicubic" else Upscaler(model, device="cpu").default_scale
        enlarge = enlarger(model, scale)
        found[model] = {}
        for name, tones in TONES.items():
            means, worst = [], (0.0, "")
            for i in range(min(len(images), count or len(images))):
                lq = (tones(middle(images, i, side)) * 255).round() / 255
                blocks = deviations(lq, enlarge, scale)
                means.append(float(blocks.mean()))
                worst = max(worst, (float(blocks.max()), images.name(i)))
            found[model][name] = Deviation(sum(means) / len(means), *worst)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="images, a folder or a pack")
    parser.add_argument("--models", nargs="+", default=["bicubic", "drct-light-x4"])
    parser.add_argument("--side", type=int, default=96, help="side of what is cut from the middle of each image, in pixels")
    parser.add_argument("--count", type=int, help="the first so many images only")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = measure(arguments.data, arguments.models, arguments.side, arguments.count)
    print("| model | tones | mean | worst | in |\n|---|---|---:|---:|---|")
    for model, by_tones in found.items():
        for name, deviation in by_tones.items():
            print(f"| {model} | {name} | {deviation.mean:.2f} | {deviation.worst:.1f} | {deviation.image} |")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({m: {name: dataclasses.asdict(d) for name, d in by.items()} for m, by in found.items()}, indent=2)
        )


if __name__ == "__main__":
    main()

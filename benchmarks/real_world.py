"""How well models restore images as people have them: clean images degraded by a preset with fixed seeds, then enlarged.

    python benchmarks/real_world.py --data IMAGES --models bicubic drct-light-x4 drct-real-light-x4 [--preset real] [--json FILE]

Columns: LPIPS (AlexNet, lower is better) and PSNR on Y, both with a border of the scale cut; colour, the shift of the mean of
red, green and blue against the ground truth, of 255 (degradations shift it too, see bicubic); ringing, by how much pixels leave
the range of the ground truth around them (7 x 7), of 255 on average; grid, by how much the energy of fine detail differs between
the positions within a low-quality pixel (near 1 for a checkerboard). The last line is the ground truth's own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from drct import Upscaler
from drct.degradation import PRESETS
from drct.errors import Error
from drct.evaluation.metrics import psnr
from drct.evaluation.perceptual import lpips
from drct.imaging import from_tensor, resize, to_tensor
from drct.places import check_place
from drct.training.options import ValSet
from drct.training.validation import ValidationSet


@dataclasses.dataclass
class Scores:
    """Of one image, or means of many."""

    lpips: float
    psnr: float
    red: float
    green: float
    blue: float
    ringing: float
    grid: float


def enlarger(model: str, scale: int) -> Callable[[Tensor], Tensor]:
    """A model by its name or file, or ``bicubic``; images are ``(1, 3, H, W)`` in 0..1 with 8 bits."""
    if model == "bicubic":
        return lambda lq: (resize(lq, scale=scale).clamp(0, 1) * 255).round() / 255
    upscaler = Upscaler(model, device="cpu")
    return lambda lq: to_tensor(upscaler(from_tensor(lq, np.dtype(np.uint8))))


def score(sr: Tensor, gt: Tensor, scale: int) -> Scores:
    """Everything about one image."""
    same = torch.equal(sr, gt)
    red, green, blue = ((sr - gt).mean((0, 2, 3)) * 255).tolist()
    return Scores(
        0.0 if same else float(lpips(sr, gt, crop=scale)),
        float("inf") if same else float(psnr(sr, gt, y=True, crop=scale)),
        red,
        green,
        blue,
        ringing(sr, gt),
        grid(sr, scale),
    )


def ringing(sr: Tensor, gt: Tensor) -> float:
    """Mean distance of pixels from the range of the ground truth in the 7 x 7 pixels around, of 255."""
    high, low = F.max_pool2d(gt, 7, 1, 3), -F.max_pool2d(-gt, 7, 1, 3)
    return float(((sr - high).clamp(min=0) + (low - sr).clamp(min=0)).mean()) * 255


def grid(sr: Tensor, scale: int) -> float:
    """Deviation of the energy of fine detail between the ``scale * scale`` positions within an LQ pixel, relative to its mean."""
    grey = sr.mean(1, keepdim=True)
    detail = (grey - F.avg_pool2d(grey, 3, 1, 1, count_include_pad=False)).square()
    energy = F.pixel_unshuffle(detail, scale).mean((0, 2, 3))
    return float(energy.std(correction=0) / energy.mean())


def measure(
    data: Path, models: list[str], preset: str = "real", seed: int = 0, scale: int = 4, count: int | None = None
) -> dict[str, Scores]:
    """Means over a folder or pack of clean images, by model; ``ground truth`` is the last."""
    images = ValidationSet(ValSet(dataroot_gt=str(data), degradation=preset, seed=seed, max_images=count), scale)
    enlargers = {model: enlarger(model, scale) for model in models}
    found: dict[str, list[Scores]] = {model: [] for model in [*models, "ground truth"]}
    with torch.inference_mode():
        for i in range(len(images)):
            sample = images[i]
            assert sample.gt is not None
            for model, enlarge in enlargers.items():
                found[model].append(score(enlarge(sample.lq), sample.gt, scale))
            found["ground truth"].append(score(sample.gt, sample.gt, scale))
    return {model: Scores(*(np.mean([dataclasses.astuple(s) for s in scores], 0)).tolist()) for model, scores in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="clean images, a folder or a pack")
    parser.add_argument("--models", nargs="+", default=["bicubic", "drct-light-x4"])
    parser.add_argument("--preset", choices=PRESETS, default="real")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="the first so many images only")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.json:
        check_place(arguments.json)  # now, not when everything was measured
    means = measure(arguments.data, arguments.models, arguments.preset, arguments.seed, count=arguments.count)
    print("| model | LPIPS | PSNR | colour | ringing | grid |\n|---|---|---|---|---|---|")
    for model, s in means.items():
        colour = f"{s.red:+.2f} {s.green:+.2f} {s.blue:+.2f}"
        print(f"| {model} | {s.lpips:.4f} | {s.psnr:.2f} | {colour} | {s.ringing:.2f} | {s.grid:.3f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({model: dataclasses.asdict(s) for model, s in means.items()}, indent=2))


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        sys.exit(f"real_world: {error}")

"""How often ``drct upscale --model auto`` takes clean images for degraded ones, and the other way round.

    python benchmarks/condition.py --data valid/ [--fit]

Clean: the images themselves, and made smaller by MATLAB's bicubic, also saved as JPEG of high quality. Degraded: the presets of
``drct degrade``, and plain JPEG and noise of several strengths on the bicubic images. With --fit the bounds of
``drct.degradation.condition`` are sought anew, on every other image; the errors are then those on the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from drct.degradation import PRESETS, DegradationOptions, degrade, usm_sharpen
from drct.degradation import condition as room
from drct.degradation.codecs import encode
from drct.degradation.condition import Condition, inspect
from drct.errors import DataError, Error, ImageError
from drct.imaging import Picture, from_tensor, is_image_file, read, read_bytes, resize, to_tensor

SEEDS = 2
CLEAN, DEGRADED, BETWEEN = "clean", "degraded", "in between"


@dataclasses.dataclass(frozen=True)
class Case:
    image: int
    kind: str
    truth: str
    condition: Condition


def cases(files: list[Path]) -> Iterator[Case]:
    for number, path in enumerate(files):
        try:
            gt = read(path).pixels
        except ImageError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        height, width = (length - length % 4 for length in gt.shape[:2])
        gt = np.broadcast_to(gt[:height, :width], (height, width, 3)).copy()
        small = resize(gt, 1 / 4)
        made: list[tuple[str, str, np.ndarray]] = [
            ("as it is", CLEAN, gt),
            ("bicubic x1/2", CLEAN, resize(gt, 1 / 2)),
            ("bicubic x1/4", CLEAN, small),
            ("x1/4, JPEG 95", CLEAN, jpeg(small, 95)),
        ]
        made += [(f"x1/4, JPEG {q}", BETWEEN if q > 70 else DEGRADED, jpeg(small, q)) for q in (90, 85, 80, 70, 50, 30)]
        made += [(f"x1/4, noise {s}", BETWEEN if s < 5 else DEGRADED, noisy(small, s, number)) for s in (2, 5, 10)]
        sharp = usm_sharpen(to_tensor(gt))
        for preset in PRESETS:
            for seed in range(SEEDS):
                generator = torch.Generator().manual_seed(1000 * seed + number)
                lq = degrade(sharp, DegradationOptions.preset(preset), generator=generator)
                made.append((f"preset {preset}", DEGRADED, from_tensor(lq, np.uint8)))
        # the pixels only: that a JPEG file tells its quality needs no experiment
        yield from (Case(number, kind, truth, inspect(Picture(pixels))) for kind, truth, pixels in made)


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    return read_bytes(encode(pixels, "jpeg", quality), "memory").pixels


def noisy(pixels: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, sigma, pixels.shape)
    return (pixels + noise).round().clip(0, 255).astype(np.uint8)


def fit(found: list[Case]) -> dict[str, tuple[float, float]]:
    """The bounds of defects with the least errors; kinds of images count the same, clean ones as a whole half as much again."""
    known = [case for case in found if case.truth != BETWEEN]
    kinds = {case.kind: case.truth for case in known}
    truth = np.array([case.truth == DEGRADED for case in known])
    weight = np.zeros(len(known))
    for kind, kind_truth in kinds.items():
        mine = np.array([case.kind == kind for case in known])
        weight[mine] = (1.0 if kind_truth == DEGRADED else 1.5) / mine.sum() / list(kinds.values()).count(kind_truth)
    values = {name: np.array([getattr(case.condition, name) for case in known]) for name in room.DEFECTS}

    def defects(name: str, begins: list[float], enough: list[float]) -> list[tuple[tuple[float, float], np.ndarray]]:
        measure = (lambda v: v) if name == "blockiness" else (lambda v: np.log(np.maximum(v, 1e-6)))
        return [
            ((b, e), np.maximum(0, (measure(values[name]) - measure(b)) / (measure(e) - measure(b))))
            for b, e in itertools.product(begins, enough)
        ]

    tried = itertools.product(
        defects("blockiness", [0.0, 0.01, 0.02], [0.06, 0.07, 0.08, 0.09, 0.1, 0.11]),
        defects("noise", [0.5, 0.7, 1.0], [1.6, 1.8, 2.0, 2.25, 2.5]),
        defects("sharpness", [0.5, 0.6, 0.7], [0.3, 0.325, 0.35, 0.375, 0.4]),
    )
    best = min(tried, key=lambda three: float(weight[(sum(defect for _, defect in three) > 1) != truth].sum()))
    return {name: bounds for name, (bounds, _) in zip(("blockiness", "noise", "sharpness"), best, strict=True)}


def table(found: list[Case], is_degraded: Callable[[Case], bool]) -> None:
    print(f"{'kind':<16} {'truth':<12} {'taken for degraded':>18}   medians of blockiness, noise, sharpness")
    for kind in dict.fromkeys(case.kind for case in found):
        of_kind = [case for case in found if case.kind == kind]
        share = sum(map(is_degraded, of_kind)) / len(of_kind)
        medians = [np.median([getattr(case.condition, name) for case in of_kind]) for name in ("blockiness", "noise", "sharpness")]
        print(f"{kind:<16} {of_kind[0].truth:<12} {share:>18.1%}   {medians[0]:.3f} {medians[1]:.2f} {medians[2]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of good images")
    parser.add_argument("--fit", action="store_true", help="fit the weights anew")
    arguments = parser.parse_args()
    if not arguments.data.is_dir():
        raise DataError(f"{arguments.data} is not a folder: --data names the folder of images")
    found = list(cases(sorted(path for path in arguments.data.iterdir() if is_image_file(path))))
    if not found:
        raise DataError(f"{arguments.data} holds no images that can be read")
    print(f"{len({case.image for case in found})} images, {len(found)} versions of them")
    print("bounds in use:", room.DEFECTS)
    table(found, lambda case: case.condition.degraded)
    if not arguments.fit:
        return
    room.DEFECTS = fit([case for case in found if case.image % 2 == 0])
    print("fitted on every other image:", room.DEFECTS)
    table([case for case in found if case.image % 2], lambda case: case.condition.degraded)
    print("fitted on all:", fit(found))


if __name__ == "__main__":
    try:
        main()
    except Error as error:
        sys.exit(f"condition: {error}")

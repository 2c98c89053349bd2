"""How often ``drct upscale --model auto`` takes clean images for degraded ones, and the other way round.

    python benchmarks/condition.py --data valid/ [--fit]

Clean: the images themselves, and made smaller by MATLAB's bicubic, also saved as JPEG of high quality. Degraded: the presets of
``drct degrade``, and plain JPEG and noise of several strengths on the bicubic images. With --fit the weights of
``drct.degradation.condition`` are fitted anew; errors are then those of five-fold cross-validation by image.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from drct.degradation import PRESETS, DegradationOptions, degrade, usm_sharpen
from drct.degradation import condition as room
from drct.degradation.codecs import encode
from drct.degradation.condition import Condition, inspect
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
        gt = read(path).pixels
        height, width = (length - length % 4 for length in gt.shape[:2])
        gt = np.broadcast_to(gt[:height, :width], (height, width, 3))
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


def row(condition: Condition) -> list[float]:
    """What the weights belong to."""
    measures = dataclasses.asdict(condition)
    low = {name: room._within(name, measures[name]) for name in room.BOUNDS}
    return [1.0, low["blockiness"], math.log(low["sharpness"]), math.log(low["noise"])]


def fit(found: list[Case]) -> np.ndarray:
    """Weights by logistic regression, clean and degraded counting the same as a whole."""
    known = [case for case in found if case.truth != BETWEEN]
    x = np.array([row(case.condition) for case in known])
    y = np.array([case.truth == DEGRADED for case in known], float)
    weight = np.where(y == 1, 1 / y.sum(), 1 / (1 - y).sum()) / 2
    w = np.zeros(x.shape[1])
    for _ in range(50):  # Newton's method with a little damping
        p = 1 / (1 + np.exp(-x @ w))
        gradient = x.T @ ((p - y) * weight) + 1e-4 * w
        hessian = (x * (p * (1 - p) * weight)[:, None]).T @ x + 1e-4 * np.eye(len(w))
        w -= np.linalg.solve(hessian, gradient)
    return w


def table(found: list[Case], is_degraded: Callable[[Case], bool]) -> None:
    print(f"{'kind':<16} {'truth':<12} {'taken for degraded':>18}   median blockiness, noise, sharpness")
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
    files = sorted(path for path in arguments.data.iterdir() if is_image_file(path))
    found = list(cases(files))
    print(f"{len(files)} images, {len(found)} versions of them")
    if not arguments.fit:
        table(found, lambda case: case.condition.degraded)
        return
    folds = [fit([case for case in found if case.image % 5 != fold]) for fold in range(5)]
    table(found, lambda case: float(np.dot(folds[case.image % 5], row(case.condition))) > 0)
    print("WEIGHTS =", tuple(round(float(w), 2) for w in fit(found)))


if __name__ == "__main__":
    main()

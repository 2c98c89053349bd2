"""Which patch comes when: a function of the seed and the number of the sample, and of nothing else.

Sample k of a run is the same whether it is drawn by one loader process or by eight, in one go or after a crash: the order of the
images is a permutation per epoch, and position and orientation of the patch come from a counter-based generator keyed by (seed, k).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Patch:
    """Where to cut sample k: image, top-left corner in LR pixels, and which of the eight orientations."""

    image: int
    top: int
    left: int
    flip: bool
    rotations: int


def generator(seed: int, stream: int, counter: int) -> np.random.Generator:
    """An independent generator for each (seed, stream, counter)."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, counter]))


class PatchSampler:
    """Draws patches from images.

    Args:
        count: number of images.
        size: function from the number of an image to its ``(height, width)`` in LR pixels, each at least ``patch``. Asked for an
            image when a patch is cut from it, so that a folder of a million files need not be opened first.
        patch: side of a patch in LR pixels.
        seed: seed of the run.
        by_area: draw an image as often as its area deserves, so that every pixel is seen equally often; otherwise once per epoch.
        hflip: mirror half of the patches.
        rotate: turn by a quarter for half of them, and flip upside down for half, as the published training does.
    """

    def __init__(
        self,
        count: int,
        size: Callable[[int], tuple[int, int]],
        patch: int,
        seed: int,
        *,
        by_area: bool = False,
        hflip: bool = True,
        rotate: bool = True,
    ) -> None:
        self.size = size
        self.patch = patch
        self.seed = seed
        self.hflip = hflip
        self.rotate = rotate
        repeats = np.ones(count, np.int64)
        if by_area:
            areas = np.array([h * w for h, w in map(size, range(count))], np.float64)
            repeats = np.ceil(areas / areas.min()).astype(np.int64)
        self._epoch = np.repeat(np.arange(count), repeats)
        self._permutation: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Samples of one epoch."""
        return len(self._epoch)

    def __getitem__(self, k: int) -> Patch:
        epoch, position = divmod(k, len(self._epoch))
        order = self._permutation  # read once: loader threads at the turn of an epoch may replace it
        if order is None or order[0] != epoch:
            order = self._permutation = (epoch, generator(self.seed, 0, epoch).permutation(self._epoch))
        image = int(order[1][position])
        h, w = self.size(image)
        rng = generator(self.seed, 1, k)
        top, left = int(rng.integers(h - self.patch + 1)), int(rng.integers(w - self.patch + 1))
        flip = bool(rng.integers(2)) and self.hflip
        # a vertical flip is a horizontal one and half a turn: the published flips and transposition are these eight cases
        rotations = int(rng.integers(4)) if self.rotate else 0
        return Patch(image, top, left, flip, rotations)


def orient(image: np.ndarray, patch: Patch) -> np.ndarray:
    """Flip and turn H x W x C as the patch says; a view."""
    if patch.flip:
        image = image[:, ::-1]
    return np.rot90(image, patch.rotations)

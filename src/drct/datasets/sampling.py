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
    """Where to cut sample k: image, top-left corner in LR pixels, which of the eight orientations, and what its tones become."""

    image: int
    top: int
    left: int
    flip: bool
    rotations: int
    tones: Tones | None = None


@dataclasses.dataclass(frozen=True)
class Tones:
    """All values of a patch moved towards one colour (RGB, 0..255), so that ``contrast`` of their distance to it remains.

    Photographs hold little that is almost black, almost white or almost of one colour, and a patch of it hardly counts in a loss.
    A network that has seen too few of them may paint blotches on white paper, or darken the corners of a red sign.
    """

    colour: tuple[float, float, float]
    contrast: float

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """``H x W x 3`` uint8, rounded: the loss compares with what a file could hold."""
        values = np.arange(256, dtype=np.float64)
        moved = [np.rint(c + self.contrast * (values - c)).astype(np.uint8) for c in self.colour]
        return np.stack([table[image[..., i]] for i, table in enumerate(moved)], -1)


# what remains of the contrast: of 255 levels 13 at the least, in equal parts of a logarithmic scale
CONTRASTS = (0.05, 1.0)


def draw_tones(rng: np.random.Generator) -> Tones:
    """Towards black or white for half of them, else towards any colour, or one of the eight whose channels are each 0 or 255."""
    kind, contrast = int(rng.integers(4)), float(np.exp(rng.uniform(*np.log(CONTRASTS))))
    colour = rng.uniform(0, 255, 3)
    if kind < 2:
        colour[:] = 255 * kind
    elif kind == 3:
        colour = np.where(colour < 127.5, 0.0, 255.0)
    return Tones((float(colour[0]), float(colour[1]), float(colour[2])), contrast)


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
        by_area: draw images in proportion to their areas, so that pixels of large and small ones are seen equally often: in each
            epoch, in which the smallest comes about once, each is drawn one of the two whole numbers of times nearest to that.
            Otherwise each image comes once per epoch.
        hflip: mirror half of the patches.
        rotate: transpose half of them, and flip half upside down, as the published training does.
        tone_share: how many of all patches, 0..1, have their tones moved (:class:`Tones`).
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
        tone_share: float = 0.0,
    ) -> None:
        self.size = size
        self.patch = patch
        self.seed = seed
        self.hflip = hflip
        self.rotate = rotate
        self.tone_share = tone_share
        self._ends: np.ndarray | None = None  # of the images' shares of an epoch, laid one after another
        self._length = count
        if by_area:
            areas = np.array([h * w for h, w in map(size, range(count))], np.float64)
            self._length = round(areas.sum() / areas.min())
            self._ends = areas.cumsum() / areas.sum() * self._length
        self._epoch: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Samples of one epoch."""
        return self._length

    def __getitem__(self, k: int) -> Patch:
        number, position = divmod(k, self._length)
        epoch = self._epoch  # read once: loader threads at the turn of an epoch may replace it
        if epoch is None or epoch[0] != number:
            epoch = self._epoch = (number, self._order(number))
        image = int(epoch[1][position])
        h, w = self.size(image)
        rng = generator(self.seed, 1, k)
        top, left = int(rng.integers(h - self.patch + 1)), int(rng.integers(w - self.patch + 1))
        # the published flips and transposition are these eight cases
        flip = bool(rng.integers(2))
        rotations = int(rng.integers(4)) if self.rotate else 0
        if not self.hflip:
            flip = rotations in (1, 2)  # the four that need no horizontal flip: as it is, transposed, upside down, and both
        # drawn last, so that where patches lie does not depend on it
        tones = draw_tones(rng) if rng.random() < self.tone_share else None
        return Patch(image, top, left, flip, rotations, tones)

    def _order(self, epoch: int) -> np.ndarray:
        """The images of an epoch, in turn."""
        rng = generator(self.seed, 0, epoch)
        order = rng.permutation(self._length)
        if self._ends is None:
            return order
        # one sample in each part of the same area, all at the same place in it, which is another one in each epoch
        images = np.searchsorted(self._ends, order + rng.random(), side="right")
        return np.minimum(images, len(self._ends) - 1)

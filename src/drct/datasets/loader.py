"""Batches of training patches, prepared ahead by threads, in an order that depends on the seed alone."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from drct.datasets.sampling import Patch, PatchSampler
from drct.datasets.sources import ImageSource
from drct.errors import DataError
from drct.imaging import resize


@dataclasses.dataclass
class RawBatch:
    """What threads prepare: uint8 pixels still as they stand in the files.

    ``gt``: ``(N, P + 2m, P + 2m, 3)`` with a margin of m around each patch when LR is still to be made, else m = 0.
    ``lq``: ``(N, p, p, 3)`` or None.
    """

    gt: Tensor
    lq: Tensor | None
    patches: list[Patch]

    def pinned(self) -> RawBatch:
        """In memory that a GPU reads by itself, while its program goes on."""
        return RawBatch(self.gt.pin_memory(), None if self.lq is None else self.lq.pin_memory(), self.patches)


class PatchSet:
    """GT patches with their LR patches, read or made.

    Args:
        gt: ground truth images.
        lq: LR images in the same order, or None to make them from ``gt`` by the MATLAB bicubic.
        scale: magnification.
        gt_size: side of a GT patch in pixels.
        tone_share: how many of all patches, 0..1, have their tones moved (:class:`~drct.datasets.sampling.Tones`); not with ``lq``.
        gt_only: no LR at all: :meth:`ground_truth` hands out the patches. Smaller images are mirrored to the size of a patch.
    """

    def __init__(
        self,
        gt: ImageSource,
        lq: ImageSource | None,
        scale: int,
        gt_size: int,
        seed: int,
        *,
        by_area: bool = False,
        hflip: bool = True,
        rotate: bool = True,
        tone_share: float = 0.0,
        gt_only: bool = False,
    ) -> None:
        if tone_share and lq is not None:
            raise ValueError("tones of LR files cannot be moved: they are rounded already")
        self.gt, self.lq, self.scale, self.gt_size, self.gt_only = gt, lq, scale, gt_size, gt_only
        patch = gt_size // scale
        # the kernel of the bicubic reaches 2 LR pixels to each side
        self.margin = 2 * scale if lq is None and not gt_only else 0
        self.sampler = PatchSampler(
            len(gt), self._lr_size, patch, seed, by_area=by_area, hflip=hflip, rotate=rotate, tone_share=tone_share
        )

    def _lr_size(self, i: int) -> tuple[int, int]:
        h, w = self.gt.shape(i)
        if self.gt_only:
            h, w = max(h, self.gt_size), max(w, self.gt_size)
        if min(h, w) < self.gt_size:
            raise DataError(
                f"{self.gt.name(i)} is {w} x {h}, smaller than a patch of gt_size {self.gt_size}: remove it or reduce gt_size"
            )
        return h // self.scale, w // self.scale

    def check(self) -> None:
        """Look at every image's size now, so that a run does not end on one hours later."""
        for i in range(len(self.gt)):
            self._lr_size(i)

    def raw_batch(self, samples: range) -> RawBatch:
        """Cut the patches of the given samples."""
        patches = [self.sampler[k] for k in samples]
        gt = np.stack([self._cut_gt(p) for p in patches])
        side = self.gt_size // self.scale
        lq = None
        if self.lq is not None:
            lq = np.stack([self.lq[p.image][p.top : p.top + side, p.left : p.left + side] for p in patches])
        return RawBatch(torch.from_numpy(gt), None if lq is None else torch.from_numpy(lq), patches)

    def _cut_gt(self, patch: Patch) -> np.ndarray:
        image = self.gt[patch.image]
        m, size = self.margin, self.gt_size
        top, left = patch.top * self.scale - m, patch.left * self.scale - m
        # LR is defined on the image cropped to a multiple of the scale; beyond its border it is mirrored, edge pixel included
        height, width = image.shape[:2] if self.gt_only else (n // self.scale * self.scale for n in image.shape[:2])
        rows, columns = mirror(top, size + 2 * m, height), mirror(left, size + 2 * m, width)
        if rows[0] + len(rows) - 1 == rows[-1] and columns[0] + len(columns) - 1 == columns[-1]:
            cut = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        else:
            cut = image[rows[:, None], columns[None, :]]
        return cut if patch.tones is None else patch.tones(cut)

    def finish(self, batch: RawBatch, device: torch.device) -> tuple[Tensor, Tensor]:
        """Move a batch to the device, make what LR is missing there, and orient: ``(lq, gt)``, float32 ``(N, 3, ., .)`` in 0..1."""
        gt = batch.gt.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
        if batch.lq is not None:
            lq = batch.lq.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
        else:
            m = self.margin
            lq = resize(gt, scale=1 / self.scale, rounding="uint8_per_pass")
            border = m // self.scale
            lq = lq[..., border:-border, border:-border]
            gt = gt[..., m:-m, m:-m]
        return self._orient(lq, batch.patches) / 255, self._orient(gt, batch.patches) / 255

    def ground_truth(self, batch: RawBatch, device: torch.device) -> Tensor:
        """Move the patches of a set without LR to the device and orient them: float32 ``(N, 3, P, P)`` in 0..1."""
        gt = batch.gt.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
        return self._orient(gt, batch.patches) / 255

    @staticmethod
    def _orient(x: Tensor, patches: list[Patch]) -> Tensor:
        turned = []
        for image, patch in zip(x, patches, strict=True):
            if patch.flip:
                image = image.flip(-1)
            turned.append(image.rot90(patch.rotations, (-2, -1)))
        return torch.stack(turned)


def mirror(start: int, length: int, size: int) -> np.ndarray:
    """Indices ``start .. start + length`` of an axis of ``size`` pixels that is mirrored beyond both ends, edge pixel repeated."""
    i = np.arange(start, start + length) % (2 * size)
    return np.where(i < size, i, 2 * size - 1 - i)


def batches(
    patch_set: PatchSet,
    first: int,
    batch_size: int,
    *,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 2,
    pin: bool = False,
) -> Generator[RawBatch, None, None]:
    """Endless batches from batch number ``first`` on, for one process of several; ``pin`` them for a GPU.

    Batch n of all processes together holds samples ``n * world_size * batch_size`` and the following. How many threads work and
    how far they are ahead does not change what comes out.
    """

    def batch(n: int) -> RawBatch:
        start = (n * world_size + rank) * batch_size
        raw = patch_set.raw_batch(range(start, start + batch_size))
        return raw.pinned() if pin else raw

    if workers == 0:
        n = first
        while True:
            yield batch(n)
            n += 1
    with ThreadPoolExecutor(workers, thread_name_prefix="drct-loader") as pool:
        ahead: deque[Future[RawBatch]] = deque()
        n = first
        try:
            while True:
                while len(ahead) < workers + 2:
                    ahead.append(pool.submit(batch, n))
                    n += 1
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

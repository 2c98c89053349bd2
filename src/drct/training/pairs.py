"""What the losses see: low-quality images, and the ground truth they are compared with, made from the patches of the loader."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from drct.datasets.loader import PatchSet, RawBatch
from drct.datasets.sources import EnlargedSource, at_option, check_pairs, listed_names, open_source, pair_up
from drct.degradation import DegradationOptions, PairPool, degrade, usm_sharpen
from drct.imaging import resize
from drct.training.dead_leaves import add_leaves, add_leaves_to_degrade
from drct.training.faults import add_faults
from drct.training.options import TrainOptions


@dataclasses.dataclass(frozen=True)
class Batch:
    """One batch on the device; all are float32 ``(N, 3, ., .)`` in 0..1.

    Attributes:
        lq: what the network is given.
        gt: ground truth as it stands in the files.
        sharp: ground truth sharpened by USM where the recipe asks for it, else ``gt`` itself.
    """

    lq: Tensor
    gt: Tensor
    sharp: Tensor


class Pairs(Protocol):
    """Makes batches. The same arguments give the same batch, apart from what a pool holds.

    Attributes:
        patches: where they are cut from.
        keep_nothing: whether there is no such pool, so that batches may be made before they are due.
    """

    patches: PatchSet
    keep_nothing: bool

    def __call__(self, raw: RawBatch, device: torch.device, seed: tuple[int, ...]) -> Batch: ...

    def state(self) -> dict[str, Any]:
        """What a resumed run needs beside the seed."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


class CleanPairs:
    """LR as it stands in the files, or made by the MATLAB bicubic.

    Args:
        patches: LR and ground truth.
        fault_share: how many pairs, 0..1, may get faults (:mod:`.faults`).
        leaves_share: how many pairs, 0..1, give way to dead leaves (:mod:`.dead_leaves`).
    """

    keep_nothing = True

    def __init__(self, patches: PatchSet, fault_share: float = 0.0, leaves_share: float = 0.0) -> None:
        self.patches = patches
        self.fault_share = fault_share
        self.leaves_share = leaves_share

    @torch.no_grad()
    def __call__(self, raw: RawBatch, device: torch.device, seed: tuple[int, ...]) -> Batch:
        lq, gt = self.patches.finish(raw, device)
        generator = seeded(*seed)
        if self.fault_share:
            lq, gt = add_faults(lq, gt, self.fault_share, generator)
        if self.leaves_share:
            lq, gt = add_leaves(lq, gt, self.leaves_share, generator)
        return Batch(lq, gt, gt)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to take over."""


class RealPairs:
    """LQ by the second-order degradation of the ground truth, mixed across batches by a pool (arXiv 2107.10833, section 3).

    Patches are degraded at the size they were cut (400 in the published training) and cropped to ``gt_size`` afterwards, so that
    borders of blur kernels fall away. A batch shares the modes that are drawn once per batch; the pool hands out pairs of many
    batches instead.

    Args:
        patches: ground truth, larger than ``gt_size``.
        degradation: ranges and probabilities.
        gt_size: side of the patches that come out, in GT pixels.
        pool: number of pairs to mix, a multiple of the batch.
        sharpen_source: degrade the sharpened ground truth instead of the one in the files.
        sharpen_target: compute :attr:`Batch.sharp`.
        clean_share: how many pairs, 0..1, are reduced by the bicubic alone. Noise is clipped at white, so degraded pale surfaces
            are darker than they were, and a network that has seen no clean ones brightens those, too.
        leaves_share: how many images, 0..1, give way to dead leaves (:mod:`.dead_leaves`).
    """

    keep_nothing = False

    def __init__(
        self,
        patches: PatchSet,
        degradation: DegradationOptions,
        gt_size: int,
        pool: int,
        *,
        sharpen_source: bool = True,
        sharpen_target: bool = True,
        clean_share: float = 0.0,
        leaves_share: float = 0.0,
    ) -> None:
        self.patches = patches
        self.degradation = degradation
        self.gt_size = gt_size
        self.pool = PairPool(pool)
        self.sharpen_source, self.sharpen_target = sharpen_source, sharpen_target
        self.clean_share = clean_share
        self.leaves_share = leaves_share

    @torch.no_grad()
    def __call__(self, raw: RawBatch, device: torch.device, seed: tuple[int, ...]) -> Batch:
        generator = seeded(*seed)  # a GPU would be waited for at every number that is drawn
        gt = self.patches.ground_truth(raw, device)
        if self.leaves_share:
            gt = add_leaves_to_degrade(gt, self.leaves_share, generator)
        scale = self.patches.scale
        source = usm_sharpen(gt) if self.sharpen_source else gt
        lq = degrade(source, self.degradation, scale=scale, generator=generator)
        if self.clean_share:
            reduced = resize(255 * source, scale=1 / scale, rounding="uint8_per_pass") / 255
            clean = torch.rand(len(lq), 1, 1, 1, generator=generator) < self.clean_share
            lq = torch.where(clean.to(device), reduced, lq)
        side = self.gt_size // scale
        room = lq.shape[-1] - side + 1
        top, left = torch.randint(room, (2,), generator=generator).tolist()
        lq = lq[..., top : top + side, left : left + side]
        gt = gt[..., top * scale :, left * scale :][..., : self.gt_size, : self.gt_size]
        lq, gt = self.pool.exchange(lq.contiguous(), gt.contiguous(), generator)
        # the pool holds the ground truth of the files, whose 256 values are exact; its sharpened version is made anew
        return Batch(lq, gt, usm_sharpen(gt) if self.sharpen_target else gt)

    def state(self) -> dict[str, Any]:
        return self.pool.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        self.pool.load_state_dict(state)


def seeded(*numbers: int) -> torch.Generator:
    """A generator that is a function of some whole numbers; near numbers give unrelated generators, of 2**32 that there are."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def open_pairs(options: TrainOptions) -> Pairs:
    """Open the training set of an option file and look at its sizes.

    Raises:
        DataError: it is missing, empty or incomplete, or an image is smaller than a patch.
    """
    data = options.train_set
    names = lq = None
    if data.meta_info_file is not None:
        with at_option("datasets.train.meta_info_file"):
            names = listed_names(data.meta_info_file)
    with at_option("datasets.train.dataroot_gt"):
        gt = open_source(data.dataroot_gt, names)
    if data.dataroot_lq is not None:
        with at_option("datasets.train.dataroot_lq"):
            lq = open_source(data.dataroot_lq)
        with at_option("datasets.train"):
            lq = pair_up(gt, lq, options.scale, data.filename_tmpl, subset=names is not None)
            check_pairs(gt, lq, options.scale)
    if data.type == "ImageNetPairedDataset":
        gt = EnlargedSource(gt, data.gt_size)
    real = options.degradation
    with at_option("datasets.train"):
        patches = PatchSet(
            gt,
            lq,
            options.scale,
            data.gt_size if real is None else max(data.crop_size, options.patch_size),
            options.manual_seed,
            by_area=data.by_area,
            hflip=data.use_hflip,
            rotate=data.use_rot,
            tone_share=data.tone_share,
            gt_only=real is not None,
        )
    if data.type == "ImageNetPairedDataset" or real is not None:
        return CleanPairs(patches, data.fault_share, data.leaves_share) if real is None else _real_pairs(patches, options, real)
    with at_option("datasets.train"):
        patches.check()
    return CleanPairs(patches, data.fault_share, data.leaves_share)


def _real_pairs(patches: PatchSet, options: TrainOptions, degradation: DegradationOptions) -> RealPairs:
    gan = options.train.gan_opt is not None
    return RealPairs(
        patches,
        degradation,
        options.patch_size,
        options.queue_size,
        # the GAN stage degrades the sharpened image whatever its losses look at; stage one only with gt_usm
        sharpen_source=gan or options.gt_usm,
        sharpen_target=options.l1_gt_usm or options.percep_gt_usm or options.gan_gt_usm if gan else options.gt_usm,
        clean_share=options.train_set.clean_share,
        leaves_share=options.train_set.leaves_share,
    )

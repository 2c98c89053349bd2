"""Validation during training: PSNR, SSIM and LPIPS by the convention of the option file, and a sheet of crops to look at."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from drct.datasets.sources import ImageSource, at_option, check_pairs, open_source, pair_up
from drct.degradation import degrade
from drct.errors import OptionError
from drct.evaluation.metrics import SSIM_WINDOW, psnr, ssim
from drct.evaluation.perceptual import lpips
from drct.imaging import resize
from drct.networks.base import SuperResolutionNetwork
from drct.training.options import Metric, ValSet
from drct.training.pairs import seeded

# sides that the metrics need
SMALLEST = {"calculate_psnr": 1, "calculate_ssim": SSIM_WINDOW, "calculate_lpips": 32}

BEST_PSNR = 100.0  # dB


@dataclasses.dataclass
class Sample:
    """A validation image: ``lq`` and, unless nobody knows it, ``gt`` as ``(1, 3, H, W)`` float32 in 0..1."""

    name: str
    lq: Tensor
    gt: Tensor | None


class ValidationSet:
    """The images of one ``datasets.val`` entry.

    LR images that are not there are made from GT, by the MATLAB bicubic or by the degradation that the entry names; the latter is a
    function of the entry's seed and the number of the image, so every validation sees the same. A set of LR images
    alone has no scores. Errors name ``section``, where the entry stands in the option file.
    """

    def __init__(self, options: ValSet, scale: int, section: str | None = None) -> None:
        self.name = options.name
        self.scale = scale
        self.gt, self.lq = (self._open(options, key, section) for key in ("dataroot_gt", "dataroot_lq"))
        if self.gt is not None and self.lq is not None:
            with at_option(section):
                self.lq = pair_up(self.gt, self.lq, scale, options.filename_tmpl)
                check_pairs(self.gt, self.lq, scale)
        images = self.gt if self.gt is not None else self.lq
        assert images is not None
        self.count = min(len(images), options.max_images or len(images))
        self.degradation, self.seed = options.degradation, options.seed
        self._degraded: dict[int, Tensor] = {}  # uint8, a sixteenth of the ground truth at x4: cheaper to keep than to make again

    @staticmethod
    def _open(options: ValSet, key: str, section: str | None) -> ImageSource | None:
        with at_option(section and f"{section}.{key}"):
            return None if (root := getattr(options, key)) is None else open_source(root)

    def __len__(self) -> int:
        return self.count

    def name_of(self, i: int) -> str:
        """Of an image, without decoding it."""
        source = self.lq if self.gt is None else self.gt
        assert source is not None
        return source.name(i)

    def lq_shape(self, i: int) -> tuple[int, int]:
        """Height and width of what the network is given, without decoding it."""
        if self.lq is not None:
            return self.lq.shape(i)
        assert self.gt is not None
        h, w = self.gt.shape(i)
        return h // self.scale, w // self.scale

    def __getitem__(self, i: int) -> Sample:
        if self.gt is None:
            assert self.lq is not None
            return Sample(self.lq.name(i), _tensor(self.lq[i]) / 255, None)
        image = self.gt[i]
        h, w = (side // self.scale * self.scale for side in image.shape[:2])
        gt = _tensor(image[:h, :w])
        if self.lq is not None:
            lq = _tensor(self.lq[i])
        elif self.degradation is not None:
            if i not in self._degraded:
                made = degrade(gt / 255, self.degradation, scale=self.scale, generator=seeded(self.seed, i))
                self._degraded[i] = (made * 255).round().byte()
            lq = self._degraded[i].float()
        else:
            lq = resize(gt, scale=1 / self.scale, rounding="uint8_per_pass")
        return Sample(self.gt.name(i), lq / 255, gt / 255)


def _tensor(image: np.ndarray) -> Tensor:
    """H x W x 3 uint8 as ``(1, 3, H, W)`` float32 in 0..255."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()


def check_metrics(metrics: dict[str, Metric]) -> None:
    """Make sure that the weights that a metric needs are at hand.

    Raises:
        CheckpointError, DownloadError: they are not.
    """
    if any(metric.type == "calculate_lpips" for metric in metrics.values()):
        blank = torch.zeros(1, 3, 64, 64)
        lpips(blank, blank)


def check_borders(metrics: dict[str, Metric], sets: list[ValidationSet]) -> None:
    """Make sure that every image has pixels left inside of the borders that are not counted.

    Raises:
        OptionError: naming the metric and the first image that has not.
    """
    for dataset in sets:
        for i in range(len(dataset) if dataset.gt is not None else 0):
            assert dataset.gt is not None
            h, w = (side // dataset.scale * dataset.scale for side in dataset.gt.shape(i))
            if min(h, w) == 0:
                raise OptionError(f"{dataset.gt.name(i)} of {dataset.name} is smaller than the scale {dataset.scale}: remove it")
            for name, metric in metrics.items():
                crop = dataset.scale if metric.crop_border is None else metric.crop_border
                needed = SMALLEST[metric.type]
                if min(h, w) - 2 * crop < needed:
                    raise OptionError(
                        f"val.metrics.{name}: {dataset.gt.name(i)} of {dataset.name} is {w} x {h}, but {needed} x {needed} pixels "
                        f"are needed inside of a crop_border of {crop}: reduce it or remove the image"
                    )


def check_positions(network: SuperResolutionNetwork, patch: int, sets: list[ValidationSet]) -> None:
    """Make sure that a network with absolute position embeddings (``ape``), which has one size, gets images of this size.

    Args:
        patch: side of the training patches, LR pixels.

    Raises:
        OptionError: naming the first image of another size.
    """
    if not getattr(network.options, "ape", False):
        return
    wanted = network.options.img_size
    sizes = [("the patches of training", patch, patch)]
    for dataset in sets:
        sizes += [(f"{dataset.name_of(i)} of {dataset.name}", *dataset.lq_shape(i)) for i in range(len(dataset))]
    for name, h, w in sizes:
        if {-(-side // network.pad_multiple) * network.pad_multiple for side in (h, w)} != {wanted}:
            raise OptionError(
                f"network_g: with ape LR images must be {wanted} x {wanted}, as img_size says, but {name} are {w} x {h}"
            )


@torch.inference_mode()
def validate(
    network: nn.Module, dataset: ValidationSet, metrics: dict[str, Metric], device: torch.device, bf16: bool = False
) -> dict[str, float]:
    """Mean of each metric over the set, none without ground truth. SR is rounded to 8 bits first, as a saved image would be.

    PSNR counts up to 100 dB: of one image without any error the mean would be infinite, and no later weights better.
    """
    if dataset.gt is None or not metrics:
        return {}
    sums = dict.fromkeys(metrics, 0.0)
    for i in range(len(dataset)):
        sample = dataset[i]
        assert sample.gt is not None
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            sr = network(sample.lq.to(device))
        sr = (sr.float().clamp(0, 1) * 255).round().cpu() / 255
        for name, metric in metrics.items():
            crop = dataset.scale if metric.crop_border is None else metric.crop_border
            if metric.type == "calculate_lpips":
                sums[name] += float(lpips(sr, sample.gt, crop=crop))
            else:
                function = psnr if metric.type == "calculate_psnr" else ssim
                value = float(function(sr, sample.gt, y=metric.test_y_channel, crop=crop))
                sums[name] += BEST_PSNR if value > BEST_PSNR else value
    return {name: value / len(dataset) for name, value in sums.items()}


@torch.inference_mode()
def save_sheet(
    network: nn.Module, dataset: ValidationSet, path: Path, device: torch.device, iteration: int, side: int = 48, rows: int = 4
) -> None:
    """Write a labelled PNG with LR (enlarged pixel by pixel), SR and HR (if known) of a few fixed crops of ``side`` LR pixels.

    The labels name the image, its size, the iteration and the PSNR on Y of the crop.
    """
    from drct.imaging import Picture, side_by_side, write

    scale = dataset.scale
    panels, labels = [], []
    for i in np.linspace(0, len(dataset) - 1, min(rows, len(dataset))).astype(int):
        sample = dataset[int(i)]
        h, w = sample.lq.shape[-2:]
        top, left = max(0, (h - side) // 2), max(0, (w - side) // 2)
        lq = sample.lq[..., top : top + side, left : left + side]
        sr = (network(lq.to(device)).float().clamp(0, 1).cpu() * 255).round() / 255
        row = [lq.repeat_interleave(scale, -1).repeat_interleave(scale, -2), sr]
        labels += [f"LR {lq.shape[-1]}x{lq.shape[-2]} {sample.name}", f"SR x{scale} it {iteration}"]
        if sample.gt is not None:
            gt = sample.gt[..., top * scale :, left * scale :][..., : sr.shape[-2], : sr.shape[-1]]
            quality = float(psnr(sr, gt, y=True, crop=scale)) if min(sr.shape[-2:]) > 2 * scale else float("nan")
            row.append(gt)
            labels[-1] += f" {quality:.2f} dB"
            labels.append("HR")
        panels += [np.ascontiguousarray((t[0].permute(1, 2, 0) * 255).round().byte().numpy()) for t in row]
    write(path, Picture(pixels=side_by_side(panels, labels, columns=2 if dataset.gt is None else 3)))

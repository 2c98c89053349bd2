"""Look at a data set before a long training: every file decoded, every pair compared, every fault named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from drct.datasets.sources import FolderSource, ImageSource, find_partners, open_source
from drct.errors import DataError, ImageError


@dataclasses.dataclass
class VerifyReport:
    """What was looked at, and one line per fault."""

    images: int
    pixels: int
    faults: list[str]


def verify(gt: str | Path, lq: str | Path | None = None, scale: int | None = None, minimum: int = 1) -> VerifyReport:
    """Decode all images of a set, or of a set of pairs.

    Pairs are found as in training, by their names without suffix; ``x4`` at the end of an LR name is ignored.

    Args:
        gt: folder or pack of GT images.
        lq: folder or pack of their LR images.
        scale: how many times larger GT is; needed with ``lq``.
        minimum: sides below this are faults, for example the patch size of a training.

    Raises:
        DataError: a folder is missing or empty, or ``lq`` was given without ``scale``.
    """
    if lq is not None and scale is None:
        raise DataError("pairs can be verified only when the scale is known: give scale")
    report = VerifyReport(0, 0, [])
    high = open_source(gt)
    sizes = _decode_all(high, report)
    for i, (h, w) in sizes.items():
        if min(h, w) < minimum:
            report.faults.append(f"{high.name(i)} is {w} x {h}, smaller than {minimum} pixels")
    if lq is None or scale is None:
        return report
    low = open_source(lq)
    low_sizes = _decode_all(low, report)
    alone = dict.fromkeys(range(len(low)))
    for i, (found, _) in enumerate(find_partners(high, low, scale)):
        for partner in found:
            alone.pop(partner, None)
        if len(found) > 1:
            report.faults.append(f"{high.name(i)} has LR images {low.name(found[0])} and {low.name(found[1])}")
        elif not found and i in sizes:
            report.faults.append(f"{high.name(i)} has no LR image")
        elif found and i in sizes and found[0] in low_sizes:
            (h, w), (lh, lw) = sizes[i], low_sizes[found[0]]
            if (h // scale, w // scale) != (lh, lw):
                report.faults.append(
                    f"{high.name(i)} is {w} x {h}, but its LR {low.name(found[0])} is {lw} x {lh}: not 1/{scale} of it"
                )
    report.faults += [f"{low.name(i)} has no GT image" for i in alone]
    return report


def _decode_all(source: ImageSource, report: VerifyReport) -> dict[int, tuple[int, int]]:
    sizes = {}
    for i in range(len(source)):
        try:
            image = source[i]
        except (ImageError, DataError) as error:
            report.faults.append(str(error))
            continue
        if isinstance(source, FolderSource) and image.shape[:2] != source.shape(i):
            report.faults.append(f"{source.name(i)} decodes to another size than its header says")
        report.images += 1
        report.pixels += image.shape[0] * image.shape[1]
        sizes[i] = (image.shape[0], image.shape[1])
    return sizes

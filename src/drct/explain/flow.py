"""Feature flow: how strong features are after every group, the curve of the "information bottleneck" (DRCT paper, section 3.1).

In networks that lose information towards their end the intensity of features falls there.
"""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from drct.errors import OptionError
from drct.explain.features import group_features
from drct.explain.subjects import Subject
from drct.imaging.replacing import replacing_text

# key of a measure: its title in figures
MEASURES = {
    "maximum": "maximum",
    "mean_absolute": "mean absolute value",
    "deviation": "standard deviation over channels",
}
COLUMNS = ("model", "group", "images")
HEAD = ",".join(COLUMNS).encode()  # how tables begin


@dataclasses.dataclass(frozen=True)
class Flow:
    """Feature intensity of one network, averaged over images.

    Attributes:
        groups: names of the groups in order of depth.
        measures: for each key of :data:`MEASURES` one value per group.
        images: how many images were averaged.
    """

    groups: tuple[str, ...]
    measures: dict[str, np.ndarray]
    images: int


def intensity(feature: Tensor) -> tuple[float, float, float]:
    """Largest value, mean absolute value, and standard deviation over channels averaged over pixels, of ``(h, w, C)``."""
    return float(feature.max()), float(feature.abs().mean()), float(feature.std(-1, correction=0).mean())


def feature_flow(subject: Subject, images: Iterable[np.ndarray], advance: Callable[[int], None] | None = None) -> Flow:
    """Feature intensity after every group of a network.

    Args:
        subject: network in eval mode.
        images: LR images ``(h, w, 3)``, at least one; one at a time is in memory.
        advance: called with the number of images done.

    Raises:
        OptionError: the network has no named groups, or there is no image.
    """
    values = []
    groups: tuple[str, ...] = ()
    for pixels in images:
        features = group_features(subject, pixels)
        groups = tuple(features)
        values.append([intensity(feature) for feature in features.values()])
        if advance is not None:
            advance(len(values))
    if not values:
        raise OptionError(f"{subject.name}: there is no image to show its features of: give at least one")
    mean = np.mean(values, axis=0)  # (groups, measures)
    return Flow(groups, {key: mean[:, i] for i, key in enumerate(MEASURES)}, len(values))


def check_csv(file: Path) -> None:
    """Raise OptionError where :func:`write_csv` would replace a file that it has not written."""
    if not file.exists():
        return
    try:
        with file.open("rb") as table:
            ours = table.read(len(HEAD)) == HEAD
    except OSError:
        ours = False
    if not ours:
        raise OptionError(f"{file} exists and is no table of this command, which goes beside the figure: choose another output")


def write_csv(file: Path, names: Sequence[str], flows: Sequence[Flow]) -> None:
    """The numbers of a figure: a row for each network and group.

    Raises:
        OSError: the file cannot be written.
    """
    with replacing_text(file) as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow([*COLUMNS, *MEASURES])
        for name, flow in zip(names, flows, strict=True):
            for i, group in enumerate(flow.groups):
                writer.writerow([name, group, flow.images, *(f"{flow.measures[key][i]:.6g}" for key in MEASURES)])

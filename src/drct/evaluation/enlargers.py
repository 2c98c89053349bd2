"""What can be tested: networks by name or file, and the plain interpolations ``bicubic`` and ``nearest``."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from drct.engine import resolve_device
from drct.errors import OptionError
from drct.evaluation.options import OVERLAP
from drct.imaging import resize
from drct.networks import SuperResolutionNetwork
from drct.networks.cost import Cost, count_cost
from drct.upscaling import Upscaler
from drct.weights import find_model, list_models, load_network, weights_sha256
from drct.weights.models import family, same_name

INTERPOLATIONS = ("bicubic", "nearest")
Tile = int | Literal["auto", "off"]


@dataclasses.dataclass
class Enlarger:
    """Something that makes images larger by one whole factor.

    Attributes:
        label: what tables call it.
        scale: the factor.
        cost: parameters and multiply-adds; None for interpolation.
        identity: settings and weights that decide its results, for recognizing an interrupted run.
    """

    label: str
    scale: int
    upscaler: Upscaler | None
    cost: Cost | None
    identity: Mapping[str, Any]

    def __call__(self, lr: np.ndarray) -> np.ndarray:
        """Enlarge ``(h, w, 3)`` uint8 or uint16 to ``(scale * h, scale * w, 3)``, rounded once to the same type."""
        if self.upscaler is not None:
            return self.upscaler.upscale(lr, scale=self.scale).pixels
        if self.identity["model"] == "nearest":
            return lr.repeat(self.scale, 0).repeat(self.scale, 1)
        return resize(lr, scale=self.scale)

    def warm_up(self, lr: np.ndarray) -> None:
        """Enlarge a corner of an image, so that what happens only once is not timed with the first image."""
        if self.upscaler is not None:
            self(np.ascontiguousarray(lr[:64, :64]))


def locate(model: str, scale: int) -> str | Path:
    """What a user's name of a model stands for: ``"bicubic"``, ``"nearest"``, or a weight file, downloaded if need be.

    ``"drct-light"`` stands for ``"drct-light-x4"`` when the scale is 4.

    Raises:
        ModelNotFoundError, DownloadError: the model cannot be had.
        OptionError: it has no network of this scale.
    """
    if model in INTERPOLATIONS:
        return model
    members = {} if os.path.isfile(model) else family(model)
    if not members or any(same_name(card.name, model) for card in list_models()):
        return find_model(model)
    if scale not in members:
        raise OptionError(f"{model} has networks for {', '.join(f'x{s}' for s in sorted(members))}, not for x{scale}")
    return find_model(members[scale].name)


def open_enlarger(
    model: str | os.PathLike[str] | SuperResolutionNetwork,
    scale: int,
    *,
    label: str | None = None,
    device: str = "auto",
    precision: str = "fp32",
    tile: Tile = "off",
    overlap: int = OVERLAP,
    ensemble: bool = False,
) -> Enlarger:
    """Load a model for testing.

    Args:
        model: what :func:`locate` knows, or a network.
        scale: the factor to test at; the model must have it.
        label: name in tables; default is the model's.
        device, precision, tile, overlap, ensemble: as for :class:`drct.Upscaler`; published figures were made with the defaults.

    Raises:
        ModelNotFoundError, CheckpointError, DownloadError: the model cannot be had, or has another scale.
        DeviceError, OptionError: device, precision or tile are not possible.
    """
    if isinstance(model, SuperResolutionNetwork):
        network, label = model, label or model.architecture
    else:
        found = locate(str(model), scale)
        if found in INTERPOLATIONS:
            return Enlarger(label or str(found), scale, None, None, {"model": found})
        network, label = load_network(found, scale=scale), label or Path(found).stem
    if network.scale != scale:
        raise OptionError(f"model '{label}' upscales x{network.scale}, but the test is x{scale}")
    upscaler = Upscaler(network, device=device, precision=precision, tile=tile, overlap=overlap, ensemble=ensemble)
    identity = {
        "model": weights_sha256({key: value.detach().cpu() for key, value in network.state_dict().items()}),
        "options": network.option_dict,
        "device": upscaler.device.type,
        "precision": upscaler.precision,
        "tile": [tile, overlap],
        "ensemble": ensemble,
    }
    return Enlarger(label, scale, upscaler, count_cost(network), identity)


class PeakMemory:
    """The most memory in use since the object was made, in bytes.

    On a GPU it is what torch had allocated there; on a CPU it is the resident memory of this process, torch itself included.
    """

    def __init__(self, device: str | torch.device) -> None:
        self.device = resolve_device(device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            # Linux forgets the process's high-water mark on request; where that is forbidden it stays that of the whole run
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def read(self) -> int | None:
        """Bytes, or None where the system does not tell."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        status = Path("/proc/self/status")
        if status.is_file():
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        if sys.platform == "darwin":
            import resource

            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return None


def timed(enlarger: Enlarger, lr: np.ndarray) -> tuple[np.ndarray, float]:
    """Enlarge an image; returns it and the seconds it took, from pixels to pixels."""
    start = time.perf_counter()
    sr = enlarger(lr)
    return sr, time.perf_counter() - start

"""What is explained: networks with a short name for figures, and images as they are fed to them."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from drct.engine.devices import resolve_device
from drct.errors import OptionError, OutOfMemoryError, is_out_of_memory
from drct.imaging import Picture, is_image_file, read, to_depth
from drct.networks import SuperResolutionNetwork, create_network, list_networks
from drct.weights import load_network


@dataclasses.dataclass(frozen=True)
class Subject:
    """A network and what figures call it."""

    name: str
    network: SuperResolutionNetwork


@contextlib.contextmanager
def enough_memory(lr: Tensor, remedy: str = "use a smaller one, or --crop") -> Iterator[None]:
    """Inside, a network runs on images ``(N, C, h, w)``; that memory ran out is said in one line, with what to do.

    Raises:
        OutOfMemoryError: it did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        h, w = lr.shape[-2:]
        raise OutOfMemoryError(f"not enough memory for an LR image of {w} x {h} pixels: {remedy}") from error


def load_subjects(models: Sequence[str | os.PathLike[str]], device: str | torch.device = "auto") -> list[Subject]:
    """Load models by file or name, in eval mode on a device.

    Raises:
        OptionError: no model was given, or one that does not work on RGB images.
        CheckpointError, ModelNotFoundError, DownloadError, DeviceError: as :func:`drct.load_network`.
    """
    if not models:
        raise OptionError("no model was given: add --model FILE or NAME")
    target = resolve_device(device)
    names = unique_names(models)
    subjects = [Subject(name, load_network(model).to(target)) for name, model in zip(names, models, strict=True)]
    for model, subject in zip(models, subjects, strict=True):
        if subject.network.in_chans != 3:
            raise OptionError(f"model '{model}' takes {subject.network.in_chans} channels: only networks for RGB are explained")
    return subjects


def load_or_create(model: str | os.PathLike[str], scale: int | None = None) -> SuperResolutionNetwork:
    """A model by file or name, or a network with fresh weights by the name of its architecture (``"drct_l"``)."""
    if str(model) in list_networks() and not os.path.isfile(model):  # a folder hides no name
        return create_network(str(model), scale=scale).eval()
    return load_network(model, scale=scale)


def unique_names(models: Sequence[str | os.PathLike[str]]) -> list[str]:
    """File names without suffix, numbered where two would be the same."""
    stems = [Path(m).stem if Path(m).suffix in (".pth", ".pt", ".safetensors") else Path(m).name for m in models]
    taken = {stem for stem in stems if stems.count(stem) == 1}
    names = []
    for stem in stems:
        numbered = (f"{stem} ({number})" for number in itertools.count(1))
        name = stem if stems.count(stem) == 1 else next(name for name in numbered if name not in taken)
        taken.add(name)
        names.append(name)
    return names


def rgb8(picture: Picture) -> np.ndarray:
    """Pixels ``(H, W, 3)`` uint8; grey is repeated, transparency left out."""
    pixels = to_depth(picture.pixels, "uint8")
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def device_of(network: nn.Module) -> torch.device:
    """Where a network's weights are."""
    return next(network.parameters()).device


def find_images(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Image files; a folder stands for all images directly in it, in order of their names.

    Raises:
        OptionError: a path does not exist, a folder holds no images, or nothing was given.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file() and is_image_file(p))
            if not inside:
                raise OptionError(f"{path} holds no images: give a folder with image files in it")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise OptionError(f"{path} does not exist: give an image or a folder of images")
    if not found:
        raise OptionError("no image was given")
    return found


def read_input(path: str | os.PathLike[str], crop: int) -> np.ndarray:
    """The middle of an image, at most ``crop`` pixels a side; ``(h, w, 3)`` uint8."""
    return centre(rgb8(read(path)), crop)


def centre(pixels: np.ndarray, crop: int) -> np.ndarray:
    """The middle of ``(H, W, ...)``, at most ``crop`` a side.

    Raises:
        OptionError: ``crop`` is below 1.
    """
    if crop < 1:
        raise OptionError(f"crop is {crop}, but must be at least 1")
    h, w = pixels.shape[:2]
    top, left = max(0, (h - crop) // 2), max(0, (w - crop) // 2)
    return pixels[top : top + crop, left : left + crop]

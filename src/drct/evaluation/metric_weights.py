"""Where the metrics find what they were trained with: a local folder, the cache, or the authors' public addresses.

``DRCT_WEIGHTS`` names a folder with any of the files of :data:`ASSETS`. What is not there is taken from the cache, and what is not
in the cache is downloaded, checked against its SHA-256, stripped to what the metric needs, and kept there under the same name.
"""

from __future__ import annotations

import dataclasses
import os
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from drct.errors import CheckpointError, DownloadError
from drct.places import cache_folder
from drct.weights import ModelCard, read_weights
from drct.weights.downloads import download, locked


@dataclasses.dataclass(frozen=True)
class Asset:
    """A public file and the tensors that a metric takes from it.

    Attributes:
        url: address of the original.
        sha256: of the original.
        shapes: names and shapes of the tensors that are needed.
    """

    url: str
    sha256: str
    shapes: dict[str, tuple[int, ...]]


def _convolutions(*layers: tuple[int, int, int, int]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for position, out, inputs, side in layers:
        shapes[f"features.{position}.weight"] = (out, inputs, side, side)
        shapes[f"features.{position}.bias"] = (out,)
    return shapes


def _linear(*channels: int) -> dict[str, tuple[int, ...]]:
    return {f"lin{i}.model.1.weight": (1, c, 1, 1) for i, c in enumerate(channels)}


_LPIPS = (
    "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/"
)
_VGG16 = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128), 10: (256, 128), 12: (256, 256), 14: (256, 256)}
_VGG16 |= {17: (512, 256), 19: (512, 512), 21: (512, 512), 24: (512, 512), 26: (512, 512), 28: (512, 512)}

ASSETS: dict[str, Asset] = {
    "alexnet_features.safetensors": Asset(
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        _convolutions((0, 64, 3, 11), (3, 192, 64, 5), (6, 384, 192, 3), (8, 256, 384, 3), (10, 256, 256, 3)),
    ),
    "vgg16_features.safetensors": Asset(
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        _convolutions(*((position, *channels, 3) for position, channels in _VGG16.items())),
    ),
    "lpips_alex_linear.safetensors": Asset(
        _LPIPS + "alex.pth",
        "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0",
        _linear(64, 192, 384, 256, 256),
    ),
    "lpips_vgg_linear.safetensors": Asset(
        _LPIPS + "vgg.pth",
        "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
        _linear(64, 128, 256, 512, 512),
    ),
    "dists_weights.safetensors": Asset(
        "https://raw.githubusercontent.com/dingkeyan93/DISTS/1267d8cb626c98706db3697422701c56a85ebf2e/DISTS_pytorch/weights.pt",
        "f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
        {"alpha": (1, 1475, 1, 1), "beta": (1, 1475, 1, 1)},
    ),
    "niqe_pris_params.npz": Asset(
        "https://raw.githubusercontent.com/XPixelGroup/BasicSR/8d56e3a045f9fb3e1d8872f92ee4a4f07f886b0a/basicsr/metrics/niqe_pris_params.npz",
        "2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296",
        {"mu_pris_param": (1, 36), "cov_pris_param": (36, 36), "gaussian_window": (7, 7)},
    ),
}


def load_metric_weights(name: str) -> dict[str, Tensor]:
    """Tensors of one file of :data:`ASSETS`, in the type they are stored in.

    Raises:
        CheckpointError: the file in ``DRCT_WEIGHTS`` or the cache is broken or lacks a tensor.
        DownloadError: it is in neither place and the public address does not answer or serves something else.
    """
    asset = ASSETS[name]
    original = asset.url.rsplit("/", 1)[-1]
    local = os.environ.get("DRCT_WEIGHTS")
    if local:
        folder = Path(local).expanduser()
        if not folder.is_dir():
            raise CheckpointError(f"DRCT_WEIGHTS names {folder}, which is not a folder: correct or unset it")
        for path in (folder / name, folder / original):
            if path.is_file():
                return _read(path, asset)
    cached = cache_folder("metrics") / name
    if not cached.is_file():
        _download(name, asset, cached)
    return _read(cached, asset)


def _download(name: str, asset: Asset, target: Path) -> None:
    original = asset.url.rsplit("/", 1)[-1]
    names = " or ".join(dict.fromkeys((name, original)))
    advice = f"or put {names} into a folder and name it in DRCT_WEIGHTS"
    card = ModelCard(name=name, source=asset.url, url=asset.url, file=original, sha256=asset.sha256)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # not the lock of the download itself, which is held inside: an original may have this very name
        with locked(target.with_name(f".{name}.ready.lock")):
            if target.is_file():  # another process was faster
                return
            path = download(card, folder=target.parent, what="metric weights")
            if path == target:
                return
            ready = target.with_name(f".{name}.part")
            save_file({key: value.contiguous() for key, value in _read(path, asset).items()}, ready)
            ready.replace(target)
            path.unlink()  # nine tenths of the classifiers are fully connected layers that no metric uses
    except DownloadError as error:
        raise DownloadError(f"{error}; {advice}") from error
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DownloadError(f"{target} cannot be written ({reason}): set DRCT_CACHE to another folder, {advice}") from error


def _read(path: Path, asset: Asset) -> dict[str, Tensor]:
    tensors = _read_npz(path) if path.suffix == ".npz" else read_weights(path).tensors
    for key, shape in asset.shapes.items():
        if key not in tensors or tensors[key].shape != shape:
            raise CheckpointError(f"metric weights {path} lack '{key}' of shape {shape}: get the file again from {asset.url}")
    return {key: tensors[key] for key in asset.shapes}


def _read_npz(path: Path) -> dict[str, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}
    except (OSError, EOFError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"metric weights {path} cannot be read ({error}): get the file again") from error

"""Image super-resolution by DRCT, the Dense Residual Connected Transformer (arXiv 2404.00722).

    import drct

    upscaler = drct.Upscaler("drct-light-x4")
    upscaler.file("in.jpg", "out.png")
    sr = upscaler(rgb)                                   # numpy H x W x 3, uint8, uint16 or float32

    net = drct.create_network("drct", scale=4)           # a fresh network
    net = drct.load_network("DRCT-L_X4.pth")             # architecture and sizes found from the file
    fast = drct.engine.compile(net, device="cpu")        # the same values, faster

The names are imported when they are first used, so that ``import drct`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from drct.errors import (
    CheckpointError,
    DataError,
    DeviceError,
    DownloadError,
    Error,
    ImageError,
    ManifestError,
    MissingDependencyError,
    ModelNotFoundError,
    OptionError,
    OutOfMemoryError,
    VideoError,
)

if TYPE_CHECKING:
    from drct import engine
    from drct.networks import create_network, list_networks
    from drct.upscaling import AutoUpscaler, UpscaleOptions, Upscaler, upscale
    from drct.weights import list_models, load_network

__version__ = "0.1.0"

_HOME = {
    "create_network": "drct.networks",
    "list_networks": "drct.networks",
    "load_network": "drct.weights",
    "list_models": "drct.weights",
    "AutoUpscaler": "drct.upscaling",
    "Upscaler": "drct.upscaling",
    "UpscaleOptions": "drct.upscaling",
    "upscale": "drct.upscaling",
}

__all__ = [
    "AutoUpscaler",
    "CheckpointError",
    "DataError",
    "DeviceError",
    "DownloadError",
    "Error",
    "ImageError",
    "ManifestError",
    "MissingDependencyError",
    "ModelNotFoundError",
    "OptionError",
    "OutOfMemoryError",
    "UpscaleOptions",
    "Upscaler",
    "VideoError",
    "create_network",
    "engine",
    "list_models",
    "list_networks",
    "load_network",
    "upscale",
]


if not TYPE_CHECKING:  # to type checkers every misspelled name would be Any

    def __getattr__(name: str) -> Any:
        if name == "engine":
            return importlib.import_module("drct.engine")
        if name in _HOME:
            value = getattr(importlib.import_module(_HOME[name]), name)
            globals()[name] = value
            return value
        raise AttributeError(f"module 'drct' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

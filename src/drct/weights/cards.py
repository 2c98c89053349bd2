"""What is known of a model, and where downloads and the user's own models lie."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from drct.errors import CheckpointError
from drct.places import platform_caches

CHECKSUMS = "checksums.json"  # in the models folder: what each download turned out to be


class ModelCard(BaseModel):
    """What is known of a model.

    Attributes:
        name: the name users type.
        architecture: a name for :func:`drct.create_network`.
        scale: magnification.
        parameters: number of weights.
        licence: terms of use of the weights.
        source: public page of the authors.
        url: address of the file itself; None if only the page is known, or if nothing needs to be downloaded.
        file: file name.
        size: bytes of the file, if known.
        sha256: hash of the file (not of the weights), if known; that of a download is recorded when it first arrives.
        location: ``"bundled"``, ``"downloadable"`` or ``"local"``.
        training: one line on how it was made.
        scores: PSNR in dB on the Y channel at this scale, by benchmark, as published or as measured for bundled models.
        lpips: LPIPS (AlexNet, lower is better), by set, of networks that were trained for degraded images.
        path: where the file lies on this machine, if it does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    architecture: str | None = None
    scale: int | None = Field(default=None, ge=1)
    parameters: int | None = None
    licence: str = ""
    source: str = ""
    url: str | None = None
    file: str
    size: int | None = None
    sha256: str | None = None
    location: Literal["bundled", "downloadable", "local"] = "local"
    training: str = ""
    scores: dict[str, float] = {}
    lpips: dict[str, float] = {}
    path: Path | None = None

    @property
    def state(self) -> str:
        """``"bundled"``, ``"local"``, ``"downloaded"``, ``"downloadable"``, or ``"by hand"`` if only the page is known."""
        if self.location != "downloadable":
            return self.location
        if self.path is not None:
            return "downloaded"
        return "downloadable" if self.url else "by hand"


def models_folder() -> Path:
    """Where downloads and the user's own models lie: ``DRCT_MODELS``, else ``drct/models`` in the platform's cache folder."""
    if chosen := os.environ.get("DRCT_MODELS"):
        return Path(os.path.expanduser(chosen))
    return platform_caches() / "drct" / "models"


def recorded_checksums(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and sha256 of earlier downloads by model name."""
    path = folder / CHECKSUMS
    if not os.path.isfile(path):  # also where it may not be looked at
        return {}
    try:
        return {name: (int(entry["size"]), str(entry["sha256"])) for name, entry in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged: delete it and it is made anew by the next download") from error

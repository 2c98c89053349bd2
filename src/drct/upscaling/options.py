"""What ``drct upscale`` can be told."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from drct.checking import first_problem, several
from drct.errors import OptionError
from drct.imaging.writing import Encoding

AUTO = "auto"  # looks at each picture
FIDELITY_MODEL, REAL_MODEL = "drct-light", "drct-real-light"  # what it chooses from: for clean and for degraded pictures
LARGEST_SCALE = 16.0
OVERLAP = 32  # input pixels that neighbouring tiles share
TIME = "must be seconds {}, or H:MM:SS"
EXPECTED = {
    "tile": "must be 'auto', 'off' or a number of pixels",
    "start": TIME.format("from 0 to 10 million"),
    "duration": TIME.format("above 0"),
}


def _seconds(value: Any) -> Any:
    """``90``, ``"90"``, ``"1:30"`` and ``"0:01:30.0"`` as seconds."""
    if isinstance(value, str) and re.fullmatch(r"\d+(:[0-5]?\d){1,2}(\.\d*)?", value.strip()):
        return sum(float(part) * 60**i for i, part in enumerate(reversed(value.split(":"))))
    return value


def _inputs(values: Any) -> Any:
    """One name or path, or several in any collection but bytes, which would be one of numbers."""
    values = several(values)
    if isinstance(values, Iterable) and not isinstance(values, (bytes, bytearray, dict)):
        values = tuple(values)
        if values and all(isinstance(value, (str, os.PathLike)) for value in values):
            return values
    raise ValueError("must be the names of image files and folders, at least one")


def _named(path: Any) -> Any:
    if path == "":  # which would mean the current folder
        raise ValueError("the name is empty")
    return path


Named = BeforeValidator(_named)
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, allow_inf_nan=False)]


class UpscaleOptions(BaseModel):
    """Options of :func:`drct.upscale`.

    Raises:
        OptionError: an unknown option (the nearest valid one is named) or a value that is not possible.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: Annotated[tuple[Annotated[Path, Named], ...], BeforeValidator(_inputs)] = Field(description="image files and folders")
    output: Annotated[str | Path | None, Named] = Field(None, description="file for a single image, else folder; default beside it")
    model: str | Path = Field(AUTO, description="name of a model, weight file, or 'auto': what suits each picture")
    strength: float | None = Field(None, ge=0, le=1, description="mix both networks of 'auto': 0 for clean, 1 for degraded ones")
    scale: float | None = Field(None, gt=0, le=LARGEST_SCALE, description="magnification; default is the model's own")
    width: int | None = Field(None, ge=1, description="exact width of the result in pixels")
    height: int | None = Field(None, ge=1, description="exact height of the result in pixels")
    tile: Annotated[int, Field(ge=1)] | Literal["auto", "off"] = Field("auto", description="side of the tiles in input pixels")
    overlap: int = Field(OVERLAP, ge=0, description="input pixels that neighbouring tiles share")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:N or mps")
    precision: str = Field("auto", description="auto (fp32 on CPUs, bf16 on newer GPUs), fp32, bf16 or fp16")
    ensemble: bool = Field(False, description="average over eight flips and rotations")
    alpha: Literal["network", "resize"] = Field("network", description="how transparency is enlarged")
    recursive: bool = Field(False, description="take the folders inside of folders too")
    overwrite: bool = Field(False, description="replace results that exist")
    format: Literal["same", "png", "jpg", "webp", "avif", "tiff", "gif", "jxl", "dzi"] | None = Field(
        None, description="of the results; default png, but what only the input's own format holds stays in it"
    )
    quality: int | None = Field(None, ge=1, le=100, description="of JPEG, WebP, AVIF, JPEG XL and DeepZoom")
    lossless: bool = Field(False, description="WebP, AVIF and JPEG XL without loss")
    pyramid: bool = Field(False, description="tiled TIFF with smaller copies, for viewers of huge images")
    strip: bool = Field(False, description="leave out EXIF, XMP, IPTC, text, resolution and tags of videos; the profile stays")
    strips: Literal["auto", "on", "off"] = Field("auto", description="hold images in strips; auto follows the memory")
    verify_tiles: bool = Field(False, description="measure the difference between tiled and whole")
    codec: str | None = Field(None, description="of videos: h264, h265, av1, vp9 or ffv1; default by format, depth and size")
    crf: int | None = Field(None, ge=0, description="of videos: constant rate factor, smaller is better; default by codec")
    preset: str | None = Field(None, description="of videos: speed of the encoder, by its own names")
    start: Seconds | None = Field(None, le=1e7, description="of videos: first second, or H:MM:SS, of the part that is made larger")
    duration: Seconds | None = Field(None, gt=0, description="of videos: seconds, or H:MM:SS, that are made larger from there")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise OptionError(first_problem(error, UpscaleOptions.model_fields, depth=1, expected=EXPECTED)) from None

    @property
    def encoding(self) -> Encoding:
        """How results are encoded."""
        return Encoding(quality=self.quality, lossless=self.lossless, pyramid=self.pyramid, strip=self.strip)

    @model_validator(mode="after")
    def _fits_together(self) -> UpscaleOptions:
        if self.scale is not None and (self.width is not None or self.height is not None):
            raise ValueError("give either scale or width and height, not both")
        if self.lossless and self.quality is not None:
            raise ValueError("quality and lossless do not go together: leave out one of them")
        if self.pyramid and self.format not in (None, "tiff", "dzi"):
            raise ValueError(f"a pyramid is a TIFF or a DeepZoom (dzi), but format is {self.format!r}: leave out one of them")
        if self.strength is not None and str(self.model) != AUTO:
            raise ValueError(
                f"strength mixes the two networks of model 'auto', but model is {str(self.model)!r}: leave out one of them"
            )
        return self

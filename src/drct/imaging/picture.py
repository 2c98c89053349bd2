"""A picture with all that its file carried."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

RESOLUTIONS = (0.0, 1e6)  # pixels per millimetre that libvips takes; what claims more is damaged


@dataclass
class PictureInfo:
    """A picture without its pixels: what is known of it before they are read, and needed before they are written.

    Attributes:
        height, width: in pixels.
        channels: 1 (grey) or 3 (RGB), without alpha.
        depth: ``"uint8"``, ``"uint16"`` or ``"float32"``.
        has_alpha: whether it has transparency.
        delays: of an animation, how long each frame stands, in milliseconds.
        loop: of an animation, how often it plays; 0 for ever.

    The other attributes are those of :class:`Picture`.
    """

    height: int
    width: int
    channels: int = 3
    depth: str = "uint8"
    has_alpha: bool = False
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    resolution: tuple[float, float] | None = None
    source_format: str = ""
    frames: int = 1
    delays: tuple[int, ...] = ()
    loop: int = 0
    path: Path | None = None
    notices: list[str] = field(default_factory=list)
    iptc: bytes | None = None
    png_colours: bytes = b""
    png_texts: bytes = b""
    jpeg_comments: tuple[bytes, ...] = ()
    tiff_tags: bytes | None = None
    told_size: tuple[int, int] | None = None

    @property
    def is_grey(self) -> bool:
        return self.channels == 1

    @property
    def writable_resolution(self) -> tuple[float, float] | None:
        """The resolution, unless it is one that no file can hold: damaged, or grown too large with the picture."""
        low, high = RESOLUTIONS
        return self.resolution if self.resolution is not None and all(low < side <= high for side in self.resolution) else None

    @property
    def several(self) -> bool:
        """Whether the file is an animation or has pages, as files that are read picture by picture do."""
        return self.frames > 1 and self.source_format in ("tiff", "gif", "webp")


@dataclass
class Picture:
    """Pixels and what came with them.

    Attributes:
        pixels: ``(H, W, C)``, C = 1 (grey) or 3 (RGB), in their own depth: uint8 (0..255), uint16 (0..65535) or float32 (0..1 by
            convention; values beyond are allowed and kept). Encoded as ``icc`` says, as sRGB without it. A plain ``(H, W)`` is
            taken as grey.
        alpha: opacity ``(H, W)`` in the same type and range, not premultiplied; None when the picture has none.
        icc: ICC profile of the pixels.
        exif: EXIF data, beginning with its TIFF header (``II*`` or ``MM*``). The orientation is already applied to the pixels and
            reads 1.
        xmp: XMP packet.
        resolution: pixels per millimetre, horizontal and vertical; None when the file said nothing.
        source_format: name of the format that was read, a key of ``FORMATS``; "" for a picture that came from no file.
        frames: frames or pages in the file; ``pixels`` is one of them, the first unless another was asked for.
        path: where the picture was read from.
        notices: what a user should know about how it was read, one short sentence each.
        iptc: records of IPTC captions.
        png_colours: chunks by which a PNG says what its colours are, where no ICC profile does; also of files that say the same in
            their own way.
        png_texts: chunks of text of a PNG.
        jpeg_comments: comments of a JPEG.
        tiff_tags: georeferencing and private tags of a TIFF, as the directory of a TIFF.
        told_size: height and width to which what EXIF, XMP and georeferencing tell of pixels refers: those of the file, upright.
            None means those of ``pixels``. Whoever crops a picture sets this and ``tiff_tags`` to None.

    Arrays of another byte order than the machine's are brought to that.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    resolution: tuple[float, float] | None = None
    source_format: str = ""
    frames: int = 1
    path: Path | None = None
    notices: list[str] = field(default_factory=list)
    iptc: bytes | None = None
    png_colours: bytes = b""
    png_texts: bytes = b""
    jpeg_comments: tuple[bytes, ...] = ()
    tiff_tags: bytes | None = None
    told_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        # what they may be is checked where they are used
        if isinstance(self.pixels, np.ndarray):
            self.pixels = native(self.pixels)
        if isinstance(self.alpha, np.ndarray):
            self.alpha = native(self.alpha)
        if self.pixels.ndim == 2:
            self.pixels = self.pixels[:, :, None]

    @property
    def height(self) -> int:
        return int(self.pixels.shape[0])

    @property
    def width(self) -> int:
        return int(self.pixels.shape[1])

    @property
    def is_grey(self) -> bool:
        return int(self.pixels.shape[2]) == 1

    @property
    def info(self) -> PictureInfo:
        """All but the pixels."""
        return PictureInfo(
            self.height,
            self.width,
            int(self.pixels.shape[2]),
            self.pixels.dtype.name,
            self.alpha is not None,
            self.icc,
            self.exif,
            self.xmp,
            self.resolution,
            self.source_format,
            self.frames,
            path=self.path,
            notices=self.notices,
            iptc=self.iptc,
            png_colours=self.png_colours,
            png_texts=self.png_texts,
            jpeg_comments=self.jpeg_comments,
            tiff_tags=self.tiff_tags,
            told_size=self.told_size,
        )


def native(values: np.ndarray) -> np.ndarray:
    """Values in the machine's order of bytes; the same array if they are."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def visible_range(pixels: np.ndarray, alpha: np.ndarray | None) -> tuple[float, float]:
    """Lowest and highest value of the pixels ``(H, W, C)`` that can be seen; of all of them where alpha ``(H, W)`` hides all.

    What lies under full transparency is arbitrary and must not decide about the rest.
    """
    visible = np.True_ if alpha is None or not (alpha > 0).any() else (alpha > 0)[:, :, None]
    return float(pixels.min(where=visible, initial=np.inf)), float(pixels.max(where=visible, initial=-np.inf))

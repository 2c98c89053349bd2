"""Writing image files: whole or not at all, the same pixels always as the same bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import mmap
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from drct.errors import ImageError, OptionError, did_you_mean
from drct.imaging import deepzoom, exif, iptc, jpeg_segments, png_chunks, tiff_directories
from drct.imaging._vips import cause, enter, has_operation, pyvips
from drct.imaging.carrier import Carrier
from drct.imaging.formats import ALIASES, FORMATS, Format, format_of
from drct.imaging.picture import Picture, PictureInfo
from drct.imaging.replacing import Part, replacing

SCREEN_RESOLUTION = (72 / 25.4, 72 / 25.4)  # libvips always writes one; where a picture has none, it is taken out again
CLASSIC_TIFF_BYTES = 3 << 30  # of pixels; what is larger becomes a BigTIFF
JPEG_OPTIMIZED = 1 << 26  # pixels up to which JPEG's tables are fitted to the picture, for which all of it is held in memory
TILE = 256  # side of the tiles of a pyramid
EXIF_BYTES = 60000  # that libvips writes into AVIF
XMP_BYTES = 60000  # that libvips writes into JPEG
JPEG_BYTES = 65533  # of a JPEG's marker
_MARK = b"here stands the EXIF data of the picture"


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How a file is encoded.

    Attributes:
        quality: 1..100 for JPEG (default 95), WebP (90), AVIF (85), JPEG XL (90) and DeepZoom (90).
        lossless: WebP, AVIF and JPEG XL without loss.
        compression: deflate level 0..9 of PNG and TIFF.
        pyramid: a tiled TIFF with smaller copies, for viewers of huge images; always a BigTIFF.
        strip: leave EXIF, XMP, IPTC, text, comments, georeferencing, private tags and resolution out. The colour profile stays,
            because without it the colours would be wrong.

    Raises:
        OptionError: a value out of range or of another type.
    """

    quality: int | None = None
    lossless: bool = False
    compression: int = 6
    pyramid: bool = False
    strip: bool = False

    def __post_init__(self) -> None:
        numbers = {"compression": self.compression} | ({} if self.quality is None else {"quality": self.quality})
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise OptionError(f"{name} must be a whole number, not {value!r}")
        for name in ("lossless", "pyramid", "strip"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name} must be True or False, not {getattr(self, name)!r}")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise OptionError(f"quality must be 1 to 100, not {self.quality}")
        if not 0 <= self.compression <= 9:
            raise OptionError(f"compression must be 0 to 9, not {self.compression}")
        if self.lossless and self.quality is not None:
            raise OptionError("quality and lossless do not go together")


def write(
    path: str | os.PathLike[str],
    picture: Picture | np.ndarray,
    format: str | None = None,
    *,
    quality: int | None = None,
    lossless: bool = False,
    compression: int = 6,
    pyramid: bool = False,
    strip: bool = False,
) -> list[str]:
    """Write an image file in one step: it appears complete, or not at all.

    The bytes depend on picture and options only. Alpha, ICC profile, EXIF, XMP, IPTC and resolution go along where the format holds
    them, text from PNG to PNG, comments from JPEG to JPEG, georeferencing and private tags from TIFF to TIFF; EXIF loses its
    thumbnail and gets the new dimensions, and what it tells in pixels grows with the picture. What the format cannot hold is
    converted: 16 bits and floats (0..1) are rounded to the nearest level of the deepest type it has, transparency is laid on white
    in JPEG, colours become sRGB in GIF.

    Args:
        path: file to write; an existing one is replaced.
        picture: a :class:`Picture`, or pixels ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)``, of which uint8, uint16 and float32 are
            taken.
        format: ``png``, ``jpeg`` (``jpg``), ``webp``, ``avif``, ``tiff``, ``gif``, ``jxl`` where libvips has it, or ``dzi``;
            default by the suffix of ``path``. ``NAME.dzi`` is a DeepZoom pyramid, whose tiles lie in the folder ``NAME_files``.
        quality, lossless, compression, pyramid, strip: see :class:`Encoding`.

    Returns:
        Notices: what was converted or left out, one short sentence each.

    Raises:
        OptionError: an unknown format or a value out of range.
        ImageError: the file cannot be written, or the picture does not fit the format; nothing is left behind.
    """
    path = Path(path)
    enter(path)
    if isinstance(picture, np.ndarray):
        picture = Picture(picture)
    _check_arrays(path, picture)
    job = _Job(path, picture.info, format, Encoding(quality, lossless, compression, pyramid, strip))
    image = pyvips.Image.new_from_array(job.samples(picture.pixels, picture.alpha))
    with replacing(path) as part:
        job.save(image, part)
    return job.notices


class StripWriter:
    """Takes the rows of a picture from top to bottom; made by :func:`write_strips`."""

    def __init__(self, job: _Job, carrier: Carrier) -> None:
        self._job = job
        self._carrier = carrier
        self._rows = 0

    def write(self, pixels: np.ndarray, alpha: np.ndarray | None = None) -> None:
        """Add rows ``(h, W, C)`` and their alpha ``(h, W)``, in the depth that was announced.

        Waits while the encoder is still busy with the rows before.

        Raises:
            ValueError: the rows are of another width, or have other channels, than was announced.
        """
        rows = self._job.samples(pixels, alpha)
        announced = self._job.info.width, self._job.bands
        if rows.shape[1:] != announced:  # the encoder would wait for the rest for ever
            raise ValueError(f"rows of the shape {rows.shape[1:]}, but {announced} was announced: pixels, and channels with alpha")
        self._rows += len(pixels)
        if not self._carrier.put(rows):
            raise _Stopped

    @property
    def complete(self) -> bool:
        return self._rows == self._job.info.height


class _Stopped(Exception):
    """The encoder takes no more rows, because it failed; its own exception tells why."""


@contextlib.contextmanager
def write_strips(
    path: str | os.PathLike[str],
    info: PictureInfo,
    format: str | None = None,
    encoding: Encoding | None = None,
    notices: list[str] | None = None,
) -> Iterator[StripWriter]:
    """Write an image file strip by strip, with the same bytes as :func:`write`: it appears when the block ends well.

    An encoder runs in a thread of its own beside the block. What is held in memory is the strip that it works on; WebP and AVIF are
    encoded as a whole and take the memory of the whole.

    Args:
        path, format: as in :func:`write`.
        info: what the picture is and carries.
        encoding: how to encode it.
        notices: filled when the block has ended.

    Raises:
        OptionError, ImageError: as :func:`write`, on the way and at the end.
    """
    path = Path(path)
    enter(path)
    job = _Job(path, info, format, encoding or Encoding())
    with replacing(path) as part, _encoder(job, part) as writer:
        yield writer
        if not writer.complete:
            raise ValueError(f"{path}: fewer rows were written than announced")
    if notices is not None:
        notices += job.notices


@contextlib.contextmanager
def _encoder(job: _Job, part: Part) -> Iterator[StripWriter]:
    """A thread that saves what the block writes; its exception ends the block."""
    carrier = Carrier(job.info.height, job.info.width, job.bands, job.depth)
    failure: list[BaseException] = []

    def encode() -> None:
        try:
            job.save(carrier.image(), part)
        except BaseException as error:  # handed to the thread that waits for this one
            failure.append(error)
        finally:
            carrier.close()

    thread = threading.Thread(target=encode, name="drct-encode")
    thread.start()
    try:
        yield StripWriter(job, carrier)
    except _Stopped:
        pass
    except BaseException:
        carrier.close()
        thread.join()
        raise
    thread.join()
    if failure:
        raise failure.pop()  # kept in no variable: the frames that it refers to hold the encoder's copy of the descriptor


def write_pages(
    path: str | os.PathLike[str],
    info: PictureInfo,
    pictures: Iterable[Picture],
    format: str | None = None,
    encoding: Encoding | None = None,
) -> list[str]:
    """Write several pictures into one file: pages of a TIFF, which may differ, or frames of an animated GIF or WebP, which may not.

    Args:
        path, format, encoding: as in :func:`write_strips`.
        info: of the first picture; ``frames`` says how many come, ``delays`` and ``loop`` how an animation plays.
        pictures: as many as announced; one at a time is in memory.

    Returns, raises: as :func:`write`; besides, the format may hold only one picture.
    """
    path = Path(path)
    enter(path)
    encoding = encoding or Encoding()
    target = writable_format(path, format)
    if not target.sequence or encoding.pyramid:
        what = "a pyramid" if encoding.pyramid else target.title
        raise ImageError(f"{path}: {what} holds one picture, not {info.frames}: use TIFF for pages, WebP or GIF for animations")
    if target.sequence == "page":
        return _write_tiff_pages(path, info, pictures, target.name, encoding)
    tall = dataclasses.replace(info, height=info.height * info.frames)
    job = _Job(path, tall, target.name, encoding, page_height=info.height)
    with replacing(path) as part, _encoder(job, part) as writer:
        for picture in pictures:
            if (picture.height, picture.width) != (info.height, info.width):
                raise ImageError(f"{path}: frames of different sizes cannot be one animation")
            writer.write(*_alike(picture, info))
        if not writer.complete:
            raise ImageError(f"{path}: cannot be written: the input has fewer frames than it announced")
    return job.notices


def _alike(picture: Picture, info: PictureInfo) -> tuple[np.ndarray, np.ndarray | None]:
    """A frame in the kind of the first: animations may begin opaque and become transparent, but files say it once for all."""
    pixels = to_depth(picture.pixels, info.depth)
    if info.channels == 3 and picture.is_grey:
        pixels = pixels.repeat(3, axis=2)
    alpha = picture.alpha
    if alpha is None and info.has_alpha:
        alpha = np.full(pixels.shape[:2], _PEAK[info.depth], info.depth)
    return pixels, None if alpha is None else to_depth(alpha, info.depth)


def _write_tiff_pages(path: Path, info: PictureInfo, pictures: Iterable[Picture], format: str, encoding: Encoding) -> list[str]:
    notices: list[str] = []
    big = info.frames * _pixel_bytes(info) > CLASSIC_TIFF_BYTES
    with replacing(path) as part:
        pages = tiff_directories.Pages(part)
        for picture in pictures:
            _check_arrays(path, picture)
            job = _Job(path, picture.info, format, encoding, big=big)
            # without a name, so that nothing is left behind however the process ends
            with tempfile.TemporaryFile(dir=path.parent) as file:
                page = Part(os.dup(file.fileno()), "r+")
                with contextlib.closing(page):
                    job.save(pyvips.Image.new_from_array(job.samples(picture.pixels, picture.alpha)), page)
                    if not big and part.seek(0, io.SEEK_END) + page.seek(0, io.SEEK_END) >= 1 << 32:
                        raise ImageError(f"{path}: cannot be written: the pages grow beyond the 4 GB of a TIFF; split the input")
                    pages.add(page)
            notices += [notice for notice in job.notices if notice not in notices]
    return notices


def writable_formats() -> list[Format]:
    """The formats that are written here, which depends on the installed libvips."""
    return [f for f in FORMATS.values() if f.saver and has_operation(f.saver)]


def writable_format(path: str | os.PathLike[str], format: str | None = None) -> Format:
    """The format that a file will have.

    Raises:
        OptionError: the suffix, or the name ``format``, stands for none that is written here.
    """
    path = Path(path)
    writable = [f.name for f in writable_formats()]
    titles = ", ".join(FORMATS[name].title for name in writable)
    name = format_of(path) if format is None else ALIASES.get(format.lower().lstrip("."), format.lower().lstrip("."))
    if name in FORMATS and FORMATS[name].saver and name not in writable:
        raise OptionError(f"{path}: the installed libvips cannot write {FORMATS[name].title}; it writes {titles}")
    if name not in writable:
        what = f"the suffix {path.suffix!r}" if format is None else f"the format {format!r}"
        raise OptionError(
            f"{path}: {what} stands for none that is written: {', '.join(writable)}{did_you_mean(str(name), writable)}"
        )
    return FORMATS[name]


def check_output(
    path: str | os.PathLike[str], height: int, width: int, format: str | None = None, encoding: Encoding | None = None
) -> None:
    """Refuse early what would only fail when it is written.

    Raises:
        OptionError: an unknown format, or an encoding that it does not have.
        ImageError: the format does not hold so many pixels; the message proposes one that does. Or the folder that a DeepZoom's
            tiles would replace holds something else.
    """
    target = writable_format(path, format)
    if encoding is not None and encoding.lossless and target.lossless == "never":
        raise OptionError(f"{path}: {target.title} has no lossless mode: use PNG, WebP or AVIF")
    if encoding is not None and encoding.pyramid and target.name not in ("tiff", "dzi"):
        raise OptionError(f"{path}: a pyramid is a TIFF or a DeepZoom (.dzi), not {target.title}")
    if target.longest and max(height, width) > target.longest:
        raise ImageError(
            f"{path}: cannot be written: {width} x {height} pixels, {target.title} holds {target.longest} a side: "
            "use TIFF (--format tiff, or --pyramid for viewers) or PNG"
        )
    if target.name == "dzi":
        deepzoom.check_tiles(deepzoom.tiles_of(Path(path)))


def _check_arrays(path: Path, picture: Picture) -> None:
    pixels, alpha = picture.pixels, picture.alpha
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or pixels.size == 0:
        raise ImageError(f"{path}: pixels of shape {pixels.shape} are neither H x W x 3 nor grey")
    if pixels.dtype.name not in ("uint8", "uint16", "float32"):
        raise ImageError(f"{path}: pixels of type {pixels.dtype} are not supported: use uint8, uint16 or float32")
    if alpha is not None and (alpha.shape != pixels.shape[:2] or alpha.dtype != pixels.dtype):
        raise ImageError(f"{path}: alpha {alpha.shape} {alpha.dtype} does not fit pixels {pixels.shape} {pixels.dtype}")
    if pixels.dtype.kind == "f" and not (np.isfinite(pixels).all() and (alpha is None or np.isfinite(alpha).all())):
        raise ImageError(f"{path}: cannot be written: the pixels hold NaN or infinite values")


class _Metadata(NamedTuple):
    """What a picture carries, as its file will hold it."""

    exif: bytes | None
    xmp: bytes | None
    iptc: bytes | None
    png_colours: bytes
    png_texts: bytes
    jpeg_comments: tuple[bytes, ...]
    tiff_tags: bytes | None


class _Job:
    """One file to be written: what a picture becomes in its format.

    Attributes:
        info: the picture.
        depth, bands: of the samples that are saved.
        notices: what was converted or left out; complete after saving.
    """

    def __init__(
        self,
        path: Path,
        info: PictureInfo,
        format: str | None,
        encoding: Encoding,
        *,
        page_height: int = 0,
        big: bool = False,
    ) -> None:
        self._path = path
        self._target = target = writable_format(path, format)
        self._encoding = encoding
        self._page_height = page_height
        self._big = big
        check_output(path, page_height or info.height, info.width, target.name, encoding)
        if encoding.strip:
            info = dataclasses.replace(info, exif=None, xmp=None, iptc=None, resolution=None, png_texts=b"", jpeg_comments=())
            info = dataclasses.replace(info, tiff_tags=None)
        self.info = info
        self.notices: list[str] = []
        self.depth = info.depth
        if self.depth not in target.depths:
            self.depth = target.depths[-1]
            self.notices.append(f"{info.depth} rounded to {self.depth}: {target.title} holds no more")
        elif target.name == "avif" and self.depth == "uint16":
            self.notices.append("uint16 rounded to 12 bits: AVIF holds no more")
        self._has_alpha = info.has_alpha and target.alpha
        self.bands = info.channels + self._has_alpha
        self._clipped = self._values = 0  # of floats that are rounded to integers
        height, width = page_height or info.height, info.width
        told_height, told_width = info.told_size or (height, width)
        factors = (width / told_width, height / told_height)
        self._moved = None if factors == (1.0, 1.0) else exif.Moved(told_width, told_height, factors=factors)
        # here and not when saving, so that the notices have one order, whichever thread saves
        common = self._exif(), self._xmp(), self._iptc()
        self._metadata = _Metadata(*common, self._colours(), self._texts(), self._comments(), self._tiff_tags())
        self._icc = self._profile()

    def samples(self, pixels: np.ndarray, alpha: np.ndarray | None) -> np.ndarray:
        """Pixels and alpha ``(h, W, bands)`` in the depth of the file."""
        if alpha is not None and not self._has_alpha:
            if int(alpha.min()) < _PEAK[alpha.dtype.name]:
                pixels = on_white(pixels, alpha)
                self._note(f"{self._target.title} holds no transparency: laid on white")
            alpha = None
        if self._target.name == "gif" and alpha is not None and bool(((alpha > 0) & (alpha < _PEAK[alpha.dtype.name])).any()):
            self._note("GIF holds no half transparency: it is either visible or not")
        if pixels.dtype == np.float32 and self.depth != "float32":
            # what no level is near to; under full transparency values are arbitrary
            half = 0.5 / _PEAK[self.depth]
            beyond = (pixels < -half) | (pixels > 1 + half)
            self._clipped += int((beyond if alpha is None else beyond & (alpha > 0)[:, :, None]).sum())
            self._values += beyond.size
        pixels = to_depth(pixels, self.depth)
        samples = np.ascontiguousarray(pixels) if alpha is None else np.dstack([pixels, to_depth(alpha, self.depth)])
        if self._target.name == "avif" and self.depth == "uint16":  # libvips drops the lower bits
            return ((samples.astype(np.uint32) * 4095 + 32767) // 65535 << 4).astype(np.uint16)
        return samples

    def _note(self, notice: str) -> None:
        if notice not in self.notices:
            self.notices.append(notice)

    def save(self, image: pyvips.Image, part: Part) -> None:
        """Encode into a temporary file.

        Raises:
            ImageError: libvips cannot.
            OSError: the file system cannot.
        """
        options = self._options()
        try:
            image = self._dressed(image)
            if self._target.name == "dzi":
                deepzoom.save_tiles(image, self._path, part, options)
            else:
                _save(image, self._target, part, options, self._metadata, self.info.writable_resolution)
        except pyvips.Error as error:
            raise ImageError(f"{self._path}: cannot be written: {cause(error, 'encoded')}") from None
        if self._clipped:
            share = 100 * self._clipped / self._values
            percent = f"{share:.1f}" if share >= 0.1 else "less than 0.1"
            self._note(f"{percent} % of the values lay beyond 0..1 and are clipped to it: TIFF keeps them")

    def _dressed(self, image: pyvips.Image) -> pyvips.Image:
        """The image with all metadata but EXIF."""
        info, target = self.info, self._target
        image = image.copy(interpretation=_INTERPRETATION[info.is_grey, self.depth])
        resolution = info.writable_resolution or SCREEN_RESOLUTION
        image = image.copy(xres=resolution[0], yres=resolution[1])
        if target.name == "tiff":
            image.set_type(pyvips.GValue.gstr_type, "resolution-unit", "in")
        if self._page_height:
            image.set_type(pyvips.GValue.gint_type, "page-height", self._page_height)
            image.set_type(pyvips.GValue.array_int_type, "delay", list(info.delays) or [100] * info.frames)
            image.set_type(pyvips.GValue.gint_type, "loop", info.loop)
        if self._icc and target.name == "gif":
            image.set_type(pyvips.GValue.blob_type, "icc-profile-data", self._icc)
            return image.icc_transform("srgb", embedded=True, intent="relative")
        captions = self._metadata.iptc if target.name == "jpeg" else None
        for name, data in (("icc-profile-data", self._icc), ("xmp-data", self._metadata.xmp), ("iptc-data", captions)):
            if data:
                image.set_type(pyvips.GValue.blob_type, name, data)
        return image

    def _profile(self) -> bytes | None:
        if self.info.icc and self._target.name in ("webp", "avif") and self.info.is_grey:
            self._note(f"grey colour profile left out: {self._target.title} stores grey as RGB")
            return None
        if self.info.icc and self._target.name == "gif":
            self._note("colours converted to sRGB: GIF holds no colour profile")
        return self.info.icc

    def _colours(self) -> bytes:
        """Chunks by which a PNG says what its colours are."""
        colours = self.info.png_colours
        if colours and self._target.name != "png":
            names, title = ", ".join(png_chunks.names(colours)), self._target.title
            self._note(f"colour space ({names}) left out: {title} does not hold it, and the colours may look different")
            return b""
        return colours

    def _texts(self) -> bytes:
        """Chunks of a PNG that came from a PNG."""
        texts = self.info.png_texts
        if texts and self._target.name != "png":
            self._note(f"text of the PNG ({png_chunks.keywords(texts)}) left out: {self._target.title} does not hold it")
            return b""
        return texts

    def _comments(self) -> tuple[bytes, ...]:
        comments = self.info.jpeg_comments
        if comments and self._target.name != "jpeg":
            self._note(f"comment of the JPEG left out: {self._target.title} does not hold it")
            return ()
        return comments

    def _tiff_tags(self) -> bytes | None:
        tags = self.info.tiff_tags
        if not tags:
            return None
        if self._target.name != "tiff":
            self._note(f"{tiff_directories.named(tags)} left out: {self._target.title} does not hold them")
            return None
        if self._moved is None:
            return tags
        tags, whole = tiff_directories.enlarged(tags, self._moved.factors)
        if not whole:
            self._note("georeferencing left out: it is damaged, or of a kind that does not grow with the picture")
        return tags

    def _xmp(self) -> bytes | None:
        info, target = self.info, self._target
        if not info.xmp:
            return None
        data = exif.corrected_xmp(info.xmp, info.width, self._page_height or info.height, info.writable_resolution, self._moved)
        return self._fitting("XMP data", data, {"gif": 0, "dzi": 0, "jpeg": XMP_BYTES}.get(target.name))

    def _iptc(self) -> bytes | None:
        captions, name = self.info.iptc, self._target.name
        if not captions:
            return None
        data = iptc.for_jpeg(captions) if name == "jpeg" else captions
        return self._fitting("IPTC captions", data, {"jpeg": JPEG_BYTES, "tiff": None}.get(name, 0))

    def _fitting(self, what: str, data: bytes, longest: int | None) -> bytes | None:
        """Metadata if the format holds so much of it."""
        if longest is None or len(data) <= longest:
            return data
        title = self._target.title
        self._note(f"{what} left out: " + (f"too long for {title}" if longest else f"{title} holds none"))
        return None

    def _exif(self) -> bytes | None:
        info, target = self.info, self._target
        only_here = info.writable_resolution if target.name in ("webp", "avif", "jxl") else None  # no other place for it
        if not info.exif:
            return exif.of_resolution(only_here) if only_here else None
        try:
            height = self._page_height or info.height
            data = exif.corrected(info.exif, info.width, height, info.writable_resolution, self._moved)
            if only_here and exif.resolution(data) is None:
                data = exif.with_resolution(data, only_here)
        except ValueError:
            self._note("damaged EXIF data left out")
            return None
        return self._fitting("EXIF data", data, {"gif": 0, "dzi": 0, "jpeg": JPEG_BYTES - 6, "avif": EXIF_BYTES}.get(target.name))

    def _options(self) -> dict[str, Any]:
        name, encoding, info = self._target.name, self._encoding, self.info
        quality = {"Q": encoding.quality or self._target.quality}
        if name == "png":
            return {"compression": encoding.compression}
        if name == "jpeg":
            return {**quality, "optimize_coding": info.height * info.width <= JPEG_OPTIMIZED}
        if name == "webp":
            return {"lossless": True, "exact": True} if encoding.lossless else {**quality, "smart_subsample": True}
        if name == "avif":
            depth = {"compression": "av1", "bitdepth": 8 if self.depth == "uint8" else 12}
            return {**depth, "lossless": True} if encoding.lossless else {**depth, **quality}
        if name == "jxl":
            return {"lossless": True} if encoding.lossless else quality
        if name == "gif":
            return {}
        if name == "dzi":
            return {"tile_size": deepzoom.TILE, "suffix": ".png" if self._has_alpha else f".jpg[Q={quality['Q']}]"}
        big = self._big or encoding.pyramid or _pixel_bytes(info, self.depth, self.bands) > CLASSIC_TIFF_BYTES
        predictor = "float" if self.depth == "float32" else "horizontal"
        options = {"compression": "deflate", "level": max(1, encoding.compression), "predictor": predictor, "bigtiff": big}
        if encoding.pyramid:
            options |= {"tile": True, "pyramid": True, "tile_width": TILE, "tile_height": TILE}
        return options


_PEAK = {"uint8": 255, "uint16": 65535, "float32": 1}
_BYTES = {"uint8": 1, "uint16": 2, "float32": 4}
_INTERPRETATION = {
    (True, "uint8"): "b-w",
    (True, "uint16"): "grey16",
    (True, "float32"): "b-w",
    (False, "uint8"): "srgb",
    (False, "uint16"): "rgb16",
    (False, "float32"): "scrgb",
}


def _pixel_bytes(info: PictureInfo, depth: str = "", bands: int = 0) -> int:
    return info.height * info.width * (bands or info.channels + info.has_alpha) * _BYTES[depth or info.depth]


def to_depth(values: np.ndarray, depth: str) -> np.ndarray:
    """Round uint8, uint16 or float32 (0..1) values to the nearest level of another of these types, clipped to its range; in the
    machine's order of bytes."""
    if values.dtype.name == depth:
        return values.astype(depth, copy=False)
    if depth == "float32":
        return np.divide(values, _PEAK[values.dtype.name], dtype=np.float32)
    if values.dtype == np.uint8:
        return values.astype(np.uint16) * np.uint16(257)
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return np.floor(np.clip(values, 0, 1) * np.float32(_PEAK[depth]) + np.float32(0.5)).astype(depth)


def on_white(pixels: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    peak = _PEAK[pixels.dtype.name]
    opacity = alpha[:, :, None].astype(np.float32) / peak
    mixed = pixels * opacity + peak * (1 - opacity)
    return mixed.astype(np.float32) if pixels.dtype == np.float32 else np.floor(mixed + 0.5).clip(0, peak).astype(pixels.dtype)


def _save(
    image: pyvips.Image,
    target: Format,
    part: Part,
    options: dict[str, Any],
    carried: _Metadata,
    resolution: tuple[float, float] | None,
) -> None:
    metadata, colours, captions = carried.exif, carried.png_colours, carried.iptc
    # EXIF is put in by this module: libvips would rebuild it, add tags of its own and break the offsets in maker notes.
    options = {**options, "keep": "icc|xmp|iptc"}
    resolved = resolution is not None
    if metadata and target.name in ("avif", "jxl"):
        _save_with_libvips_exif(image, target, part, options, metadata)
    elif target.name == "png" and (metadata or colours or carried.png_texts or not resolved):
        insert = colours + (png_chunks.chunk(b"eXIf", metadata) if metadata else b"") + carried.png_texts
        _save_edited(image, target, part, options, functools.partial(png_chunks.dressed, insert, resolved))
    elif target.name == "jpeg":
        # libvips writes no header of JFIF unless it keeps all it knows; without EXIF nothing else tells the resolution
        segments = jpeg_segments.segment(0xE0, b"JFIF\0\1\1" + _density(resolution) + b"\0\0")
        if metadata:
            segments += jpeg_segments.segment(0xE1, b"Exif\0\0" + metadata)
        segments += b"".join(jpeg_segments.segment(jpeg_segments.COMMENT, comment) for comment in carried.jpeg_comments)
        _save_edited(image, target, part, options, functools.partial(jpeg_segments.dressed, segments))
    elif metadata is None or target.name == "tiff":
        getattr(image, target.saver)(pyvips.Target.new_to_descriptor(part.fileno()), **options)
        if target.name == "tiff" and (metadata or captions or carried.tiff_tags):
            tiff_directories.insert(part, metadata, captions, carried.tiff_tags)
        if target.name == "tiff" and not resolved:
            tiff_directories.forget_resolution(part)
    else:
        assert target.name == "webp"
        part.write(_webp_with_exif(image.webpsave_buffer(**options), metadata, image))


def _density(resolution: tuple[float, float] | None) -> bytes:
    """Unit and density of a JFIF header, from pixels per millimetre: dots per inch, or per centimetre where those are too many."""
    for unit, length in ((1, 25.4), (2, 10.0)):
        if resolution is not None and all(1 <= round(length * side) <= 0xFFFF for side in resolution):
            return struct.pack(">BHH", unit, *(round(length * side) for side in resolution))
    return struct.pack(">BHH", 0, 1, 1)  # square pixels of no known size


def _save_with_libvips_exif(image: pyvips.Image, target: Format, part: Part, options: dict[str, Any], metadata: bytes) -> None:
    """Let libvips write EXIF data of its own that is long enough, and put the picture's into its place."""
    described = _MARK + b" " * len(metadata)
    entry = struct.pack("<HHII", 0x010E, 2, len(described), 26)  # an image description
    placeholder = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4) + described
    image = image.copy()
    image.set_type(pyvips.GValue.blob_type, "exif-data", metadata if target.name == "jxl" else placeholder)
    getattr(image, target.saver)(pyvips.Target.new_to_descriptor(part.fileno()), **{**options, "keep": "icc|xmp|exif"})
    if target.name == "jxl":
        return  # boxes there may be packed; libvips' version of the data has to do
    with mmap.mmap(part.fileno(), 0) as data:
        mark = data.find(_MARK)
        begin = max(data.rfind(b"II*\0", 0, mark), data.rfind(b"MM\0*", 0, mark))
        if mark < 0 or begin < 0:
            raise ImageError("libvips wrote no EXIF data")
        end = mark + len(described)
        data[begin:end] = metadata.ljust(end - begin, b"\0")


def _save_edited(
    image: pyvips.Image, target: Format, part: io.FileIO, options: dict[str, Any], edit: Callable[[bytes], bytes | None]
) -> None:
    """Save with another beginning, by what ``edit`` makes of it; while it gives None, it is asked again with more."""
    beginning: bytes | None = b""
    failure: OSError | None = None

    def on_write(chunk: Any) -> int:
        nonlocal beginning, failure
        data = bytes(chunk)
        written: bytes | None = data
        if beginning is not None:
            beginning += data
            written = edit(beginning)
            if written is not None:
                beginning = None
        try:
            if written is not None:
                part.write(written)
        except OSError as error:  # must not leave a callback of C
            failure = error
            return -1
        return len(data)

    custom = pyvips.TargetCustom()
    custom.on_write(on_write)
    try:
        getattr(image, target.saver)(custom, **options)
    except pyvips.Error:
        if failure is not None:
            raise failure from None
        raise


def _webp_with_exif(data: bytes, metadata: bytes, image: pyvips.Image) -> bytes:
    """Add an EXIF chunk (WebP container specification: extended format)."""
    chunks = list(_webp_chunks(data))
    header = next((payload for name, payload in chunks if name == b"VP8X"), b"")
    chunks = [c for c in chunks if c[0] != b"VP8X"]
    flags = 0x08 | (header[0] if header else 0)
    for name, _ in chunks:
        transparent = (name == b"ALPH") or (name == b"VP8L" and image.bands in (2, 4))
        flags |= {b"ICCP": 0x20, b"XMP ": 0x04}.get(name, 0) | (0x10 if transparent else 0)
    canvas = header[4:10] or struct.pack("<I", image.width - 1)[:3] + struct.pack("<I", image.height - 1)[:3]
    xmp = [c for c in chunks if c[0] == b"XMP "]
    ordered = [(b"VP8X", bytes([flags, 0, 0, 0]) + canvas), *(c for c in chunks if c not in xmp), (b"EXIF", metadata), *xmp]
    body = b"".join(name + struct.pack("<I", len(p)) + p + b"\0" * (len(p) % 2) for name, p in ordered)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(data):
        length = struct.unpack_from("<I", data, at + 4)[0]
        yield data[at : at + 4], data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2

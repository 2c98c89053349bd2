"""Reading image files, bounded in memory and suspicious of what they claim."""

from __future__ import annotations

import functools
import io
import os
import re
import stat
import struct
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from drct.errors import ImageError
from drct.imaging import exif, gif_blocks, heic, heif_boxes, iptc, jpeg_segments, png_chunks, tiff_directories, xmp_container
from drct.imaging._vips import cause, enter, has_operation, pyvips
from drct.imaging.formats import FORMATS, VIDEO_SUFFIXES, sniff
from drct.imaging.picture import Picture, PictureInfo, visible_range

MAX_PIXELS = 500_000_000
STRIP_PIXELS = 32 * MAX_PIXELS  # of a picture that is never held as a whole
KEPT_ROWS = 64  # rows that a reader of strips keeps above those that were asked for
FETCH_BYTES = 16 << 20
MAX_SIDE = 100_000_000  # what libvips allows
HEAD_BYTES = 16384

# Fewest bytes in which a file can hold a pixel. Deflate packs at most 1032 bytes into one; a JPEG needs a bit for the DC
# coefficient of each 8 x 8 block of the full-size channel. A header that claims more lies, and is found out before memory is
# asked for.
_LEAST_BYTES_PER_PIXEL = {"png": 1 / 8 / 1032, "jpeg": 1 / 512}

TYPES = {"uchar": np.uint8, "ushort": np.uint16, "float": np.float32}
_MOST_DELAY = 60_000  # milliseconds; a longer stand of a frame is damage


class Header(NamedTuple):
    """An image file whose header was read and checked, nothing decoded yet.

    Attributes:
        name: key of ``FORMATS``.
        image: the page, or all frames of an animation below each other.
        exif: EXIF data as it stands in the file.
        frames: pages or frames in the file.
        xmp: XMP packet, without what it told of things behind the picture.
        iptc, png_colours, png_texts, jpeg_comments: see :class:`Picture`.
        notices: what is left out.
        resolved: the file states a resolution in a unit of length, outside of EXIF data.
        extra, ycbcr: of a TIFF, see :class:`drct.imaging.tiff_directories.Inspection`.
        tiff_tags: see :class:`Picture`.
    """

    name: str
    image: pyvips.Image
    exif: bytes | None
    frames: int
    xmp: bytes | None
    iptc: bytes | None
    png_colours: bytes
    png_texts: bytes
    jpeg_comments: tuple[bytes, ...]
    notices: tuple[str, ...]
    resolved: bool
    extra: tuple[int, ...] | None
    ycbcr: bool
    tiff_tags: bytes | None


def read(path: str | os.PathLike[str], max_pixels: int | None = None, page: int = 0) -> Picture:
    """Read one picture of an image file, the first by default, with all that it carries.

    The format is told by content, not by name. Palettes and 1-bit images become 8-bit RGB and grey, CMYK becomes sRGB through its
    profile, Lab becomes sRGB; 8 and 16 bits and float32 stay, and so do the values of RGB and grey pixels and their ICC profile.
    The EXIF orientation is applied and reset. Whatever was converted or left out stands in ``notices``.

    Args:
        path: file to read.
        max_pixels: larger images are refused before they are decoded; default 500 million, or the environment variable
            ``DRCT_MAX_PIXELS``.
        page: of a TIFF with several pages, which one, counted from 0.

    Raises:
        ImageError: the file is missing, no image of a supported kind, damaged, cut off or too large; the message names file and
            cause.
    """
    path = Path(path)
    with opened(path) as file:
        picture = _picture(path, open_image(path, file, max_pixels, page))
    picture.path = path
    return picture


def read_bytes(data: bytes | bytearray | memoryview, name: str, max_pixels: int | None = None) -> Picture:
    """Read an image file that lies in memory, as :func:`read` does; ``name`` stands for it in messages."""
    # Named here, so that it is there until all is decoded: libvips reads from it later and does not hold it.
    content = data if isinstance(data, bytes) else bytes(memoryview(data))
    file = io.BytesIO(content)
    return _picture(name, open_image(name, file, max_pixels))


def read_pages(path: str | os.PathLike[str], max_pixels: int | None = None) -> Iterator[Picture]:
    """Read all pages of a TIFF, or all frames of an animated GIF or WebP, one after the other; of other files their one picture.

    Pages may differ in size and depth. Frames come as they are seen, composed with those before; how long they stand is told by
    :func:`read_info`. One picture at a time is in memory (libvips holds a decoded animation's canvas besides).

    Args:
        path, max_pixels: as in :func:`read`; the limit holds for each page, and for all frames together.

    Raises:
        ImageError: as :func:`read`, also on the way.
    """
    path = Path(path)
    info = read_info(path, max_pixels)
    kind = FORMATS[info.source_format].sequence
    if info.frames == 1 or not kind:
        yield read(path, max_pixels)
    elif kind == "page":
        for page in range(info.frames):
            picture = read(path, max_pixels, page)
            picture.notices = [notice for notice in picture.notices if not notice.startswith("only the ")]
            yield picture
    else:
        yield from _frames(path, max_pixels)


def read_info(path: str | os.PathLike[str], max_pixels: int | None = None, page: int = 0) -> PictureInfo:
    """All that :func:`read` would return but the pixels, from the header alone; arguments and errors as there, except for damage
    behind the header."""
    path = Path(path)
    with opened(path) as file:
        try:
            info, _, _ = upright(path, open_image(path, file, max_pixels, page, decode=False))
        except pyvips.Error as error:
            raise ImageError(f"{path}: {cause(error)}") from None
    info.path = path
    return info


def read_size(path: str | os.PathLike[str], max_pixels: int | None = None) -> tuple[int, int]:
    """Height and width of an image as :func:`read` would return it (upright), from its header alone.

    Raises:
        ImageError: as :func:`read`, except for damage behind the header.
    """
    path = Path(path)
    with opened(path) as file:
        image = open_image(path, file, max_pixels, decode=False).image
        turned = _field(image, "orientation", 1) in (5, 6, 7, 8)
        return (image.width, image.height) if turned else (image.height, image.width)


def opened(path: Path) -> BinaryIO:
    try:
        # Looked at before it is opened: opening a pipe would wait for ever.
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{path}: is a folder, not an image file")
        if not stat.S_ISREG(mode):
            raise ImageError(f"{path}: is not a regular file")
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error})") from None


def open_image(
    path: Path | str,
    file: BinaryIO,
    max_pixels: int | None,
    page: int = 0,
    *,
    access: str = "sequential",
    all_frames: bool = False,
    decode: bool = True,
) -> Header:
    """Read and check the header of an open file.

    Args:
        access: ``"sequential"`` from top to bottom, or ``"random"``: then what is large is decoded to a temporary file.
        all_frames: the frames of an animation instead of one of them.
        decode: False where pixels will not be asked for; it spares HEIC's, which are decoded at once.
    """
    enter(path)
    lies = False
    try:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(HEAD_BYTES)
        name, what = sniff(head[:64])
        tiff = tiff_directories.inspect(file, page) if name == "tiff" else tiff_directories.Inspection()
        if name == "gif":
            lies = gif_blocks.is_cut_off(file)
        png = png_chunks.inspect(file) if name == "png" else png_chunks.Inspection()
        jpeg = jpeg_segments.inspect(file) if name == "jpeg" else jpeg_segments.Inspection()
        heif = heif_boxes.inspect(head) if name in ("avif", "heic") else heif_boxes.Inspection()
        file.seek(0)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        raise ImageError(f"{path}: the file is empty")
    if lies or tiff.lies:
        raise ImageError(f"{path}: the file is cut off or damaged")
    if tiff.is_raw:
        name, what = None, "a camera raw file or another TIFF that begins with a preview"
    if name is None:
        if what in VIDEO_SUFFIXES:
            video = Path(path).stem + VIDEO_SUFFIXES[what]
            raise ImageError(f"{path}: {what}; only drct upscale reads videos, which it knows by their names, such as {video}")
        raise ImageError(f"{path}: {what}; {_readable()} are read")
    if tiff.foreign:
        raise ImageError(f"{path}: a TIFF of {tiff.foreign} is not supported: convert it to RGB first")
    through_pi_heif = name == "heic" and heic.is_installed()
    loader = FORMATS[name].loader
    if not through_pi_heif and not has_operation(loader):
        raise ImageError(f"{path}: the installed libvips cannot read {FORMATS[name].title}: {_readable()} are read")
    for width, height in _claims(name, head):
        _check_claim(path, name, size, width, height, max_pixels)
    options: dict[str, Any] = {"access": access, "fail_on": "error"}
    if page:
        if page >= max(1, len(tiff.pages)):
            raise ImageError(f"{path}: there is no page {page + 1}")
        options["page"] = tiff.pages[page]
    if all_frames:
        options["n"] = -1
    beside: tuple[str, ...] = ()
    if through_pi_heif:
        check = functools.partial(_check_claim, path, name, size, max_pixels=max_pixels)
        image, beside = heic.load(path, _content(path, file), decode, check)
    else:
        image = _loaded(path, name, file, options)
    _check_claim(path, name, size, image.width, image.height, max_pixels)
    frames = len(tiff.pages) or max(1, png.frames, heif.frames, int(_field(image, "n-pages", 1)))
    exif_data = tiff.exif if name == "tiff" else _field(image, "exif-data", png.exif)
    if exif_data is png.exif is not None:
        image = _turning(image, png.exif)
    captions = tiff.iptc if name == "tiff" else _field(image, "iptc-data", None)
    xmp, told = xmp_container.without_container(_field(image, "xmp-data", png.xmp or b""))
    tags_lost = [f"{tiff.lost} left out: damaged or too long"] if tiff.lost else []
    return Header(
        name,
        image,
        exif_data,
        frames,
        xmp or None,
        iptc.records(captions),
        png.colours or (b"" if image.get_typeof("icc-profile-data") else heif.colours),
        png.texts,
        jpeg.comments,
        # the gain map of HEIC may be told twice
        tuple(
            dict.fromkeys(
                (*_behind(jpeg, told if name == "jpeg" else set()), *heif.notices, *beside, *jpeg.notices, *png.notices, *tags_lost)
            )
        ),
        {"png": png.resolved, "jpeg": jpeg.resolved, "tiff": tiff.resolved}.get(name, True),
        tiff.extra,
        tiff.ycbcr,
        tiff.tags,
    )


def _loaded(path: Path | str, name: str, file: BinaryIO, options: dict[str, Any]) -> pyvips.Image:
    """The image by libvips."""
    try:
        # From the open file and not from the name: names may hold bytes or brackets that libvips would read in its own way.
        if isinstance(file, io.BytesIO):
            source = pyvips.Source.new_from_memory(file.getvalue())
        else:
            source = pyvips.Source.new_from_descriptor(file.fileno())
        return getattr(pyvips.Image, FORMATS[name].loader)(source, **options)
    except pyvips.Error as error:
        raise _undecodable(path, name, error) from None


def _content(path: Path | str, file: BinaryIO) -> bytes:
    try:
        return file.read()
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror})") from None


def _turning(image: pyvips.Image, exif_data: bytes) -> pyvips.Image:
    """The image with the orientation that its EXIF data tells, as libvips notes it down for data that it finds by itself."""
    try:
        turn = exif.orientation(exif_data)
    except ValueError:  # told where it is corrected
        return image
    image = image.copy()
    image.set_type(pyvips.GValue.gint_type, "orientation", turn)
    return image


def _behind(jpeg: jpeg_segments.Inspection, told: Set[str]) -> Iterator[str]:
    """What stands behind the picture of a JPEG and is left out, by the file's own list and by what its XMP packet told."""
    gain_map = jpeg.gain_map or "gain map" in told
    if gain_map:
        yield heif_boxes.GAIN_MAP
    if jpeg.pictures > gain_map or "picture" in told:  # the gain map is one of them
        yield "the further pictures in the file are left out"
    if "video" in told:
        yield "the video of the motion photo is left out"


def _undecodable(path: Path | str, name: str, error: pyvips.Error) -> ImageError:
    if name == "heic":  # libvips calls it damaged when it only misses a decoder
        return ImageError(f"{path}: a HEIC image, which the installed libvips cannot read: pip install 'drct[heic]'")
    return ImageError(f"{path}: {cause(error)}")


def _claims(name: str, head: bytes) -> Iterator[tuple[int, int]]:
    """Widths and heights in the first bytes of a file whose decoder would complain on stderr about impossible ones, or make room
    for them at once."""
    if name == "webp":  # RFC 9649, sections 2.5 to 2.7
        kind, number = head[12:16], int.from_bytes(head[21:25], "little")
        if kind == b"VP8X":
            yield int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
        elif kind == b"VP8L":
            yield (number & 0x3FFF) + 1, (number >> 14 & 0x3FFF) + 1
    if name in ("avif", "heic"):  # image spatial extents (ISO/IEC 23008-12, 6.5.3)
        for match in re.finditer(rb"ispe\0\0\0\0(.{4})(.{4})", head, re.DOTALL):
            yield int.from_bytes(match[1], "big"), int.from_bytes(match[2], "big")


def _check_claim(path: Path | str, name: str, size: int, width: int, height: int, max_pixels: int | None) -> None:
    limit = _limit(max_pixels)
    if width * height * _LEAST_BYTES_PER_PIXEL.get(name, 0) > size:
        raise ImageError(f"{path}: the header claims {width} x {height} pixels, but the file has only {size} bytes")
    if width * height > limit or max(width, height) > MAX_SIDE:
        raise ImageError(f"{path}: {width} x {height} pixels are more than the limit of {limit} (DRCT_MAX_PIXELS raises it)")


def _limit(max_pixels: int | None) -> int:
    if max_pixels is not None:
        return max_pixels
    text = os.environ.get("DRCT_MAX_PIXELS", "")
    if not text:
        return MAX_PIXELS
    try:
        return int(text)
    except ValueError:
        raise ImageError(f"DRCT_MAX_PIXELS={text!r} is not a whole number") from None


def _readable() -> str:
    names = [
        f.title for f in FORMATS.values() if f.loader and (heic.is_installed() if f.name == "heic" else has_operation(f.loader))
    ]
    return ", ".join(names[:-1]) + " and " + names[-1]


def _field(image: pyvips.Image, name: str, default: Any) -> Any:
    return image.get(name) if image.get_typeof(name) else default


def _picture(path: Path | str, header: Header) -> Picture:
    try:
        return _decoded(path, header)
    except pyvips.Error as error:
        raise _undecodable(path, header.name, error) from None
    except MemoryError:
        image = header.image
        raise ImageError(f"{path}: not enough memory for {image.width} x {image.height} pixels") from None


def _decoded(path: Path | str, header: Header) -> Picture:
    info, image, turn = upright(path, header)
    pixels, alpha = _split(_turned(_samples(image), turn), info.channels)
    if pixels.dtype == np.float32:
        _check_floats(path, pixels, alpha, info.notices)
    return _with_pixels(info, pixels, alpha)


def _with_pixels(info: PictureInfo, pixels: np.ndarray, alpha: np.ndarray | None) -> Picture:
    return Picture(
        pixels,
        alpha,
        info.icc,
        info.exif,
        info.xmp,
        info.resolution,
        info.source_format,
        info.frames,
        notices=info.notices,
        iptc=info.iptc,
        png_colours=info.png_colours,
        png_texts=info.png_texts,
        jpeg_comments=info.jpeg_comments,
        tiff_tags=info.tiff_tags,
        told_size=info.told_size,
    )


def upright(path: Path | str, header: Header) -> tuple[PictureInfo, pyvips.Image, int]:
    """What a picture will be when it stands upright, its image in RGB or grey still to be turned, and the orientation to apply."""
    name, image, exif_data, frames = header.name, header.image, header.exif, header.frames
    notices: list[str] = []
    if frames > 1:
        kind = {"tiff": "first of {} pages", "heic": "main one of {} pictures"}.get(name, "first of {} frames")
        notices.append(f"only the {kind.format(frames)} is used")
    notices += header.notices
    turn = int(_field(image, "orientation", 1))
    # of an animation, of which all frames may stand below each other, one of them
    frame_height = int(_field(image, "page-height", image.height)) if frames > 1 else image.height
    moved = exif.Moved(image.width, frame_height, turn) if turn != 1 else None
    exif_data = _upright_exif(exif_data, moved, notices)
    # 1 pixel per millimetre is how libvips says that the file gave none; or it takes one of a screen, or numbers without a unit.
    stated = header.resolved and (image.xres, image.yres) != (1.0, 1.0)
    resolution = (float(image.xres), float(image.yres)) if stated else None
    if resolution is None and exif_data:  # WebP and AVIF have no other place for it
        resolution = exif.resolution(exif_data)
    xmp, tags = header.xmp, header.tiff_tags
    if moved is not None and tags:
        tags, lost = tiff_directories.without_georeference(tags)
        notices += ["georeferencing left out: the picture is turned"] * lost
    if moved is not None and xmp:
        xmp, lost_regions = exif.without_regions(xmp)
        notices += lost_regions
    xmp = exif.corrected_xmp(xmp, moved=moved) if xmp else None

    if header.ycbcr:
        image = _from_ycbcr(image)
    image = _to_rgb_or_grey(path, _filled(image), header.extra, notices)
    icc = _fitting_profile(_field(image, "icc-profile-data", None), image, notices)
    sides, told_size = (image.width, image.height), (frame_height, image.width)
    if turn in (5, 6, 7, 8):
        sides, told_size = sides[::-1], told_size[::-1]
        resolution = resolution[::-1] if resolution else None
    colours = 1 if image.bands < 3 else 3
    depth = np.dtype(TYPES[image.format]).name
    delays = [min(max(0, delay), _MOST_DELAY) for delay in _field(image, "delay", [])] if frames > 1 else []
    loop = int(_field(image, "loop", 0))
    info = PictureInfo(
        height=sides[1],
        width=sides[0],
        channels=colours,
        depth=depth,
        has_alpha=image.bands > colours,
        icc=icc,
        exif=exif_data,
        xmp=xmp,
        resolution=resolution,
        source_format=name,
        frames=frames,
        delays=tuple(delays),
        loop=loop,
        notices=notices,
        iptc=header.iptc,
        png_colours=header.png_colours,
        png_texts=header.png_texts,
        jpeg_comments=header.jpeg_comments,
        tiff_tags=tags,
        told_size=told_size,
    )
    return info, image, turn


def _frames(path: Path, max_pixels: int | None) -> Iterator[Picture]:
    """All frames of an animation, which libvips decodes as one tall image."""
    with opened(path) as file:
        try:
            header = open_image(path, file, max_pixels, all_frames=True)
            info, image, turn = upright(path, header)
            height = int(_field(image, "page-height", image.height))
            frames = image.height // height
            region = pyvips.Region.new(image)
            for i in range(frames):
                data = region.fetch(0, i * height, image.width, height)
                samples = np.frombuffer(data, TYPES[image.format]).reshape(height, image.width, image.bands)
                picture = _with_pixels(info, *_split(_turned(samples, turn), info.channels))
                picture.notices, picture.path, picture.frames = [], path, frames
                yield picture
        except pyvips.Error as error:
            raise ImageError(f"{path}: {cause(error)}") from None


def _split(samples: np.ndarray, colours: int) -> tuple[np.ndarray, np.ndarray | None]:
    pixels = np.ascontiguousarray(samples[:, :, :colours])
    alpha = np.ascontiguousarray(samples[:, :, colours]) if samples.shape[2] > colours else None
    return pixels, alpha


class StripReader:
    """A picture that is read from top to bottom as it is wanted, so that images of any size take little memory.

    Memory holds the rows that were asked for last. Sequential files are decoded as they are read; those that a camera turned are
    first decoded to a temporary file. Progressive JPEG, interlaced PNG, WebP and AVIF can only be decoded as a whole, which takes
    the memory of the whole.

    Args:
        path, max_pixels, page: as in :func:`read`; but the default limit is 32 times as high, since a picture is never held.

    Attributes:
        info: what the file carries.

    Raises:
        ImageError: as :func:`read`, also on the way.
    """

    def __init__(self, path: str | os.PathLike[str], max_pixels: int | None = None, page: int = 0) -> None:
        self.path = Path(path)
        self._page = page
        self._max_pixels = self.limit() if max_pixels is None else max_pixels
        self._open()

    @staticmethod
    def limit() -> int | None:
        """The default limit of pixels; None if the environment variable decides."""
        return None if os.environ.get("DRCT_MAX_PIXELS") else STRIP_PIXELS

    def _open(self) -> None:
        self._file = opened(self.path)
        try:
            header = open_image(self.path, self._file, self._max_pixels, self._page)
            self.info, image, turn = upright(self.path, header)
            if turn in (3, 4, 5, 6, 7, 8):  # rows from below, or columns
                header = open_image(self.path, self._file, self._max_pixels, self._page, access="random")
                _, image, _ = upright(self.path, header)
            self._image = _turned_image(image, turn)
            self._region = pyvips.Region.new(self._image)
        except pyvips.Error as error:
            self._file.close()
            raise ImageError(f"{self.path}: {cause(error)}") from None
        except ImageError:
            self._file.close()
            raise
        self.info.path = self.path
        self._first = 0
        self._rows = np.empty((0, self._image.width, self._image.bands), TYPES[self._image.format])

    def rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Rows ``start:stop`` as pixels ``(h, W, C)`` and alpha ``(h, W)``, views that stay valid.

        Rows are cheap from ``KEPT_ROWS`` above the last ``start`` on; before them the file is read again from its beginning.
        """
        stop = min(stop, self.info.height)
        if start < self._first:
            self.close()
            self._open()
        end = self._first + len(self._rows)
        if stop > end:
            keep = min(max(start - KEPT_ROWS, self._first), end)
            rows = np.empty((stop - keep, *self._rows.shape[1:]), self._rows.dtype)
            rows[: end - keep] = self._rows[keep - self._first :]
            self._rows = rows[:0]  # the old ones may go
            self._fetch(rows[end - keep :], end)
            self._rows, self._first = rows, keep
        samples = self._rows[start - self._first : stop - self._first]
        colours = self.info.channels
        return samples[:, :, :colours], samples[:, :, colours] if self.info.has_alpha else None

    def _fetch(self, into: np.ndarray, row: int) -> None:
        step = max(1, FETCH_BYTES // max(1, into[:1].nbytes))
        try:
            for at in range(0, len(into), step):
                part = into[at : at + step]
                data = self._region.fetch(0, row + at, self._image.width, len(part))
                part[:] = np.frombuffer(data, into.dtype).reshape(part.shape)
        except pyvips.Error as error:
            raise ImageError(f"{self.path}: {cause(error)}") from None

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> StripReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _turned_image(image: pyvips.Image, turn: int) -> pyvips.Image:
    """As :func:`_turned`, computed when rows are asked for."""
    if turn in (5, 6, 7, 8):
        image = image.rot90().fliphor()  # rows become columns
    if turn in (2, 3, 6, 7):
        image = image.fliphor()
    return image.flipver() if turn in (3, 4, 7, 8) else image


def _upright_exif(data: bytes | None, moved: exif.Moved | None, notices: list[str]) -> bytes | None:
    if not data:
        return None
    try:
        return exif.corrected(data, moved=moved)
    except ValueError:
        notices.append("damaged EXIF data left out")
        return None


def _filled(image: pyvips.Image) -> pyvips.Image:
    """Samples of 9 to 15 bits, which libvips shifts into the upper ones of 16, so that white is white."""
    bits = int(_field(image, "heif-bitdepth", 16))
    if image.format != "ushort" or not 8 < bits < 16:
        return image
    interpretation = image.interpretation
    image = image.linear(65535 / ((1 << 16) - (1 << (16 - bits))), 0).rint().cast("ushort")
    return image.copy(interpretation=interpretation)


def _from_ycbcr(image: pyvips.Image) -> pyvips.Image:
    """RGB of YCbCr as JPEG has it (ITU-T T.871, section 7), which needs no notice: it is but another way to write RGB."""
    image, rest = _parted(image, 3)
    format, middle = image.format, 1 << (15 if image.format == "ushort" else 7)
    image = image.linear([1, 1, 1], [0, -middle, -middle])
    image = image.recomb([[1, 0, 1.402], [1, -0.114 * 1.772 / 0.587, -0.299 * 1.402 / 0.587], [1, 1.772, 0]]).rint().cast(format)
    return _joined(image.copy(interpretation="rgb16" if format == "ushort" else "srgb"), rest)


def _to_rgb_or_grey(path: Path | str, image: pyvips.Image, extra: tuple[int, ...] | None, notices: list[str]) -> pyvips.Image:
    """Bring the colour space to RGB or grey with at most one band of alpha, keeping the depth.

    Args:
        extra: kinds of the bands beyond the colours, if the file tells: 1 and 2 are alpha. Else the first of them is.
    """
    space = image.interpretation
    if image.format not in TYPES and space not in ("lab", "labs", "labq"):
        raise ImageError(f"{path}: samples of type {image.format} are not supported: convert it to 8 or 16 bits or float32")
    if space == "cmyk":
        own = _field(image, "icc-profile-data", None)
        damaged = own is not None and not _is_profile(own)
        own = own if own and not damaged and own[16:20] == b"CMYK" else None
        standard = f"a standard profile ({'its own is damaged' if damaged else 'it has none of its own'})"
        notices.append(f"CMYK converted to sRGB through {'its profile' if own else standard}")
        depth = 16 if image.format == "ushort" else 8
        image, rest = _parted(image, 4)
        image = image.icc_transform("srgb", embedded=own is not None, input_profile="cmyk", intent="relative", depth=depth)
        image = _joined(image, rest)
    elif space in ("lab", "labs", "labq", "lch", "xyz", "yxy", "cmc"):
        notices.append(f"{space.upper().rstrip('SQ')} converted to sRGB")
        image, rest = _parted(image, 3)
        image = _joined(image.colourspace("rgb16" if space == "labs" else "srgb"), rest)
        if image.get_typeof("icc-profile-data"):
            image = image.copy()
            image.remove("icc-profile-data")
    colours = 1 if image.bands < 3 else 3
    kinds = (2,) if extra is None else extra
    if colours == 3 and extra is not None and len(extra) == image.bands - 1:
        # one colour by the file's own count, as some programs write RGB with alpha; only an alpha second or third makes it grey
        if any(kind in (1, 2) for kind in extra[:2]):
            colours = 1
        else:
            kinds = extra[2:]
    further = image.bands - colours
    alpha = next((i for i, kind in enumerate(kinds[:further]) if kind in (1, 2)), None)
    left = further - (alpha is not None)
    if left:
        notices.append(f"{left} extra channel{'s' * (left > 1)} left out")
        rest = image
        image = image.extract_band(0, n=colours)
        if alpha is not None:
            image = image.bandjoin(rest.extract_band(colours + alpha))
    return image


def _parted(image: pyvips.Image, colours: int) -> tuple[pyvips.Image, pyvips.Image | None]:
    """The bands of colours, and those beyond: libvips' conversions of colours would scale an alpha of 16 bits once more."""
    if image.bands <= colours:
        return image, None
    return image.extract_band(0, n=colours), image.extract_band(colours, n=image.bands - colours)


def _joined(image: pyvips.Image, rest: pyvips.Image | None) -> pyvips.Image:
    if rest is None:
        return image
    if rest.format == "short":  # that of Lab of 16 bits, whose alpha has no sign
        rest = rest.cast("int").boolean_const("and", [0xFFFF])
    elif rest.format == "float" and image.format != "float":
        rest = rest.linear(65535 if image.format == "ushort" else 255, 0).rint()
    return image.bandjoin(rest.cast(image.format))


def _fitting_profile(icc: bytes | None, image: pyvips.Image, notices: list[str]) -> bytes | None:
    """The profile, unless it is made for another number of channels than the picture has: PNG forbids that, others misread it."""
    if not icc:
        return None
    if not _is_profile(icc):
        notices.append("damaged colour profile left out")
        return None
    if icc[16:20] != (b"GRAY" if image.bands < 3 else b"RGB "):
        notices.append("colour profile left out: it does not fit the kind of picture")
        return None
    return icc


def _is_profile(icc: bytes) -> bool:
    """Whether an ICC profile says that it is one, and its header and table of tags claim no more bytes than there are (ICC.1,
    sections 7.2 and 7.3)."""
    if len(icc) < 132 or icc[36:40] != b"acsp" or int.from_bytes(icc[:4], "big") > len(icc):
        return False
    tags = int.from_bytes(icc[128:132], "big")
    return 0 < tags <= (len(icc) - 132) // 12 and all(
        offset + size <= len(icc) for _, offset, size in struct.iter_unpack(">III", icc[132 : 132 + 12 * tags])
    )


def _samples(image: pyvips.Image) -> np.ndarray:
    dtype = TYPES[image.format]
    data = image.write_to_memory()
    return np.frombuffer(data, dtype=dtype).reshape(image.height, image.width, image.bands)


def _turned(samples: np.ndarray, turn: int) -> np.ndarray:
    """Apply an EXIF orientation: 2 and 4 mirror, 3 turns by 180 degrees, 5 to 8 swap the sides first."""
    if turn in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if turn in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    if turn in (3, 4, 7, 8):
        samples = samples[::-1]
    return samples


def _check_floats(path: Path | str, pixels: np.ndarray, alpha: np.ndarray | None, notices: list[str]) -> None:
    extremes = (pixels.min(), pixels.max(), 0.0 if alpha is None else alpha.min(), 0.0 if alpha is None else alpha.max())
    if not np.isfinite(extremes).all():  # minimum and maximum let NaN through
        raise ImageError(f"{path}: the pixels hold NaN or infinite values")
    low, high = visible_range(pixels, alpha)
    if low < 0 or high > 1:
        notices.append(f"float values from {low:.6g} to {high:.6g}, beyond 0..1")

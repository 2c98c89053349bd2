"""Image files in and out with all that they carry; the conversions to tensors; colour; the one bicubic resize."""

from drct.imaging.colour import rgb_to_y, rgb_to_ycbcr, ycbcr_to_rgb
from drct.imaging.conversion import from_tensor, to_tensor
from drct.imaging.formats import FORMATS, Format, format_of, is_image_file, supported_suffixes
from drct.imaging.picture import Picture, PictureInfo, visible_range
from drct.imaging.reading import MAX_PIXELS, StripReader, read, read_bytes, read_info, read_pages, read_size
from drct.imaging.replacing import part_path, remove_stale_parts, replacing_text
from drct.imaging.resizing import resize, resize_rows
from drct.imaging.sheet import side_by_side, text
from drct.imaging.writing import (
    Encoding,
    StripWriter,
    check_output,
    to_depth,
    writable_format,
    writable_formats,
    write,
    write_pages,
    write_strips,
)

__all__ = [
    "FORMATS",
    "MAX_PIXELS",
    "Encoding",
    "Format",
    "Picture",
    "PictureInfo",
    "StripReader",
    "StripWriter",
    "check_output",
    "format_of",
    "from_tensor",
    "is_image_file",
    "part_path",
    "read",
    "read_bytes",
    "read_info",
    "read_pages",
    "read_size",
    "remove_stale_parts",
    "replacing_text",
    "resize",
    "resize_rows",
    "rgb_to_y",
    "rgb_to_ycbcr",
    "side_by_side",
    "supported_suffixes",
    "text",
    "to_depth",
    "to_tensor",
    "visible_range",
    "writable_format",
    "writable_formats",
    "write",
    "write_pages",
    "write_strips",
    "ycbcr_to_rgb",
]

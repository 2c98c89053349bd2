"""Sheets of labelled panels side by side, for people to compare pictures."""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Sequence

import numpy as np

from drct.errors import ImageError
from drct.imaging._vips import enter, pyvips
from drct.imaging.picture import Picture
from drct.imaging.writing import on_white, to_depth

LINES = 3  # of a label at most: a sheet is there for its pictures

# Letters for machines without any font, where libvips would draw a row of boxes: 5 x 7 pixels, a byte per row; lower case is
# shown as upper case, and the last one stands for all that is missing.
_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:-_+/()%='*&#?!<>[]\N{REPLACEMENT CHARACTER}"
_ROWS = """
    0e11111f111111 1e11111e11111e 0e11101010110e 1e11111111111e 1f10101e10101f 1f10101e101010 0e11101711110f 1111111f111111
    0e04040404040e 0702020202120c 11121418141211 1010101010101f 111b1515111111 11191513111111 0e11111111110e 1e11111e101010
    0e11111115120d 1e11111e141211 0f10100e01011e 1f040404040404 1111111111110e 11111111110a04 11111115151b11 11110a040a1111
    11110a04040404 1f01020408101f 0e11131519110e 040c040404040e 0e11010608101f 1e01010e01011e 02060a121f0202 1f101e0101110e
    0608101e11110e 1f010204080808 0e11110e11110e 0e11110f01020c 00000000000000 00000000000c0c 000000000c0408 000c0c000c0c00
    0000001f000000 0000000000001f 0004041f040400 01010204081010 02040808080402 08040202020408 19190204081313 00001f001f0000
    04040800000000 00150e1f0e1500 0c12140815120d 0a0a1f0a1f0a0a 0e110102040004 04040404040004 02040810080402 08040201020408
    0e08080808080e 0e02020202020e 1f11111111111f
"""
_LETTERS = {char: bytes.fromhex(rows) for char, rows in zip(_CHARACTERS, _ROWS.split(), strict=True)}


def side_by_side(
    images: Sequence[Picture | np.ndarray],
    labels: Sequence[str],
    gap: int = 8,
    columns: int | None = None,
    text_height: int | None = None,
) -> np.ndarray:
    """Put pictures beside each other on white, each with its label above it.

    Args:
        images: pictures or pixels ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` in uint8, uint16 or float32 (0..1), of any sizes;
            transparent ones are laid on white. They are not resized: a smaller one stands in the top left corner of its panel.
        labels: one for each. Where it is longer than the panel is wide, it goes on in a second and third line; what does not fit
            in these gives way to three dots. Words joined by no-break spaces stay in one line.
        gap: pixels between and around the panels.
        columns: panels in a row; all in one by default.
        text_height: of the letters, in pixels; by default it follows the size of the panels.

    Returns:
        uint8 RGB ``(H, W, 3)``.

    Raises:
        ImageError: no images, or not one label for each.
    """
    if not images or len(images) != len(labels):
        raise ImageError(f"a sheet needs one label for each image, not {len(labels)} for {len(images)}")
    panels = [_rgb8(image) for image in images]
    height, width = max(p.shape[0] for p in panels), max(p.shape[1] for p in panels)
    text_height = text_height or min(28, max(12, width // 18))
    broken = [_lines(label, text_height, width) for label in labels]
    spacing = round(text_height * 1.25)
    band = round(text_height * 1.6) + spacing * (max(map(len, broken)) - 1)
    columns = min(columns or len(panels), len(panels))
    rows = -(-len(panels) // columns)
    sheet = np.full((rows * (height + band + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for i, (panel, lines) in enumerate(zip(panels, broken, strict=True)):
        top, left = gap + i // columns * (height + band + gap), gap + i % columns * (width + gap)
        sheet[top + band : top + band + panel.shape[0], left : left + panel.shape[1]] = panel
        room = round(text_height * 1.6)
        for j, line in enumerate(reversed(lines)):  # the last line stands on the panel, whatever the other labels need
            ink = text(line, text_height)[:room, :width]
            offset = top + band - room - j * spacing + (room - ink.shape[0]) // 2
            under = sheet[offset : offset + ink.shape[0], left : left + ink.shape[1]]
            under[:] = np.minimum(under, 255 - ink[:, :, None])  # high letters may reach into the line above
    return sheet


def _lines(label: str, height: int, width: int) -> list[str]:
    """A label broken into at most :data:`LINES` lines that are no wider than the panel: between words, and names that are too wide
    for a line where one of their parts ends."""
    lines, rest = [""], [word for word in re.split("[ \t\r\n]+", label) if word]  # a no-break space keeps words together
    while rest:
        if not lines[-1] and len(lines) < LINES:
            rest[:1] = _cut_to_width(rest[0], height, width)
        longer = f"{lines[-1]} {rest[0]}".lstrip()
        if not lines[-1] or _width(longer, height) <= width:
            lines[-1] = longer
            rest.pop(0)
        elif len(lines) < LINES:
            lines.append("")
        else:
            lines[-1] += "..."
            break
    return [_shortened(line, height, width) for line in lines]


def _cut_to_width(word: str, height: int, width: int) -> list[str]:
    """The word; or, if it is too wide for a line, as many of its parts as one holds, and the rest."""
    if _width(word, height) <= width:
        return [word]
    ends = [match.end() for match in re.finditer(r"[-_./]+", word)]
    fitting = [end for end in ends if _width(word[:end], height) <= width]
    return [word[: fitting[-1]], word[fitting[-1] :]] if fitting and fitting[-1] < len(word) else [word]


def _shortened(line: str, height: int, width: int) -> str:
    """As much of the line as the width holds; dots say that there was more."""
    kept = line.removesuffix("...")
    while kept and _width(line, height) > width:
        kept = kept[:-1].rstrip(" ,")
        line = kept + "..."
    return line


def _width(line: str, height: int) -> int:
    return text(line, height).shape[1]


def text(line: str, height: int) -> np.ndarray:
    """Ink of one line of text, uint8 ``(about height, W)``, 255 where a letter covers a pixel; nothing visible gives ``(height,
    0)``.

    Drawn with the system's sans-serif font, with built-in letters (ASCII only) where the system has no font.
    """
    line = " ".join(line.encode("utf-8", "backslashreplace").decode().split())
    if not line:
        return np.zeros((height, 0), np.uint8)
    enter("text")
    if not _has_fonts():
        return _plain_text(line, height)
    return _vips_text(line, height)


def _vips_text(line: str, height: int) -> np.ndarray:
    ink = pyvips.Image.text(html.escape(line, quote=False), font=f"sans {height}", dpi=72)
    return np.asarray(ink.numpy()).reshape(ink.height, ink.width)


@functools.cache
def _has_fonts() -> bool:
    """Whether there is a font at all: without one every letter is the same box."""
    try:
        return not np.array_equal(_vips_text("L", 16), _vips_text("T", 16))
    except pyvips.Error:
        return False


def _plain_text(line: str, height: int) -> np.ndarray:
    size = max(1, round(height / 9))
    cells = []
    for char in line.upper():
        rows = np.frombuffer(_LETTERS.get(char, _LETTERS["\N{REPLACEMENT CHARACTER}"]), np.uint8)
        cells.append(np.unpackbits(rows[:, None], axis=1)[:, 2:])  # a blank column, then the five of the letter
    return np.kron(np.concatenate(cells, axis=1) * np.uint8(255), np.ones((size, size), np.uint8))


def _rgb8(image: Picture | np.ndarray) -> np.ndarray:
    picture = image if isinstance(image, Picture) else Picture(image)
    pixels = picture.pixels if picture.alpha is None else on_white(picture.pixels, picture.alpha)
    return np.broadcast_to(to_depth(pixels, "uint8"), (*pixels.shape[:2], 3))

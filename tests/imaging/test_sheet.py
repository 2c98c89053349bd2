"""Sheets of labelled panels."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pictures import smooth

from drct.errors import ImageError
from drct.imaging import Picture, side_by_side, text
from drct.imaging.sheet import _LETTERS, _lines


def test_panels_stand_where_they_should() -> None:
    images = [smooth(50, 60, 3), smooth(50, 60, 1)[:, :, 0], smooth(40, 30, 3, "uint16"), smooth(50, 60, 3, "float32")]
    sheet = side_by_side(images, ["a", "b", "c", "d"], gap=8, columns=2, text_height=12)
    band = round(12 * 1.6)
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 * (50 + band + 8) + 8, 2 * 68 + 8, 3)
    np.testing.assert_array_equal(sheet[8 + band : 58 + band, 8:68], images[0])
    np.testing.assert_array_equal(sheet[8 + band : 58 + band, 76:136, 2], images[1])
    low = 8 + 50 + band + 8 + band
    assert np.abs(sheet[low : low + 40, 8:38].astype(float) - images[2] / 257).max() <= 0.5
    assert (sheet[low : low + 40, 38:68] == 255).all()
    labels = sheet[8 : 8 + band]
    assert labels[:, 8:68].min() < 100
    assert labels[:, 76:136].min() < 100


def test_transparency_is_laid_on_white() -> None:
    picture = Picture(np.zeros((20, 40, 3), np.uint8), np.tile(np.array([[0] * 20 + [255] * 20], np.uint8), (20, 1)))
    sheet = side_by_side([picture], ["a"], gap=0, text_height=12)
    panel = sheet[-20:]
    assert panel[:, :20].min() == 255
    assert panel[:, 20:].max() == 0


def test_labels_are_broken_into_lines_and_need_no_markup() -> None:
    inks = (text("<i>as long &", 12), text("longer</i>", 12))
    width = max(ink.shape[1] for ink in inks) + 1
    sheet = side_by_side([np.zeros((20, width), np.uint8)] * 2, ["<i>as long & longer</i>", "one"], gap=30, text_height=12)
    assert sheet.shape == (30 + 34 + 20 + 30, 30 + 2 * (width + 30), 3)
    for ink, top in zip(inks, (30, 45), strict=True):  # each line stands whole in a row of its own
        first = top + (19 - ink.shape[0]) // 2
        row = 255 - sheet[first : first + ink.shape[0], 30 : 30 + ink.shape[1], 0]
        assert (row >= ink).all()
        assert np.count_nonzero(row > ink) < 0.05 * ink.size  # where letters of the other line reach in
    assert (sheet[:45, 30 + width :] == 255).all()  # a shorter label stands on its panel
    assert sheet[45:64, 60 + width :].min() < 100
    assert (sheet[:64, 30 + width : 60 + width] == 255).all()


def test_labels_too_long_for_three_lines_end_in_dots() -> None:
    width = text("wwww...", 12).shape[1]
    assert _lines("wwww wwww wwww", 12, width) == ["wwww", "wwww", "wwww"]
    assert _lines("wwww wwww wwww wwww", 12, width) == ["wwww", "wwww", "wwww..."]
    assert _lines("wwwwwwwwwww and", 12, width) == ["wwww...", "and"]
    assert _lines("wwww ww\N{NO-BREAK SPACE}w", 12, width) == ["wwww", "ww\N{NO-BREAK SPACE}w"]
    assert _lines("www_www-wwww.wwwwww", 12, width) == ["www_", "www-", "wwww..."]
    assert _lines("a_file.jpg", 12, width) == ["a_file.", "jpg"]
    for side in (1, 20, 50):
        sheet = side_by_side([np.zeros((20, side), np.uint8)] * 2, ["long and longer " * 9, " "], gap=30, text_height=12)
        assert (sheet[:, 30 + side : 60 + side] == 255).all()
        assert (sheet[:-50, 60 + side :] == 255).all()


def test_misuse() -> None:
    for images, labels in (([], []), ([np.zeros((2, 2), np.uint8)], []), ([np.zeros((2, 2), np.uint8)], ["a", "b"])):
        with pytest.raises(ImageError):
            side_by_side(images, labels)


def test_text_without_any_font(tmp_path: Path) -> None:
    configuration = tmp_path / "fonts.conf"
    configuration.write_text('<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd"><fontconfig></fontconfig>')
    program = "import sys, numpy as np; from drct.imaging import text; np.save(sys.argv[1], text(sys.argv[2], 18))"
    environment = {**os.environ, "FONTCONFIG_FILE": str(configuration)}
    for line, columns in (("T.", 12), ("\u0416", 6)):
        out = tmp_path / "ink.npy"
        subprocess.run([sys.executable, "-c", program, out, line], check=True, timeout=300, env=environment)
        ink = np.load(out)
        assert ink.shape == (14, 2 * columns)
        letter = ink[::2, 2:12:2] > 0
        drawn = np.array(
            [[byte >> (4 - i) & 1 for i in range(5)] for byte in _LETTERS.get(line[0], _LETTERS["\N{REPLACEMENT CHARACTER}"])]
        )
        np.testing.assert_array_equal(letter, drawn)


def test_built_in_letters_are_all_different() -> None:
    shapes = [rows for char, rows in _LETTERS.items() if char != " "]
    assert len(set(shapes)) == len(shapes)
    assert all(len(rows) == 7 and max(rows) < 32 for rows in shapes)


def test_text_of_nothing() -> None:
    assert text("", 12).shape == (12, 0)
    assert text("a", 12).max() > 200


def test_names_that_are_not_text() -> None:
    assert text("a\udcff", 16).shape[1] > text("a", 16).shape[1]

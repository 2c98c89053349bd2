"""The page: everything in one file, pictures without loss, nothing that a name could break."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drct.errors import OptionError
from drct.evaluation.page import Figure, Layer, write_page
from drct.imaging import read

Picture = Callable[..., np.ndarray]
EVIL = "<!--<script></script><b>&\"'|"


def embedded(page: str) -> list[list[str]]:
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)]


def labelled(page: str) -> list[dict[str, object]]:
    return [json.loads(html.unescape(text)) for text in re.findall(r'data-labels="(.*?)"', page)]


@pytest.fixture
def page(tmp_path: Path, picture: Picture) -> str:
    layers = [
        Layer(label, lambda i=i: picture(30, 40, seed=i), values)
        for i, (label, values) in enumerate(  # type: ignore[misc]
            [("HR", ()), ("bicubic", ("28.43", "0.8113")), (EVIL, ("30.00", "0.9000"))]
        )
    ]
    figures = [Figure("Set5", "baby", layers, 0, ("PSNR", "SSIM")), Figure(EVIL, EVIL, layers[1:], None)]
    write_page(tmp_path / "sub" / "page.html", "A & B", ["heading\n\n| a | b\\|c |\n|---|--:|\n| 1 | 2 |"], [EVIL], figures)
    return (tmp_path / "sub" / "page.html").read_text(encoding="utf-8")


def test_pictures_are_embedded_without_loss(page: str, tmp_path: Path, picture: Picture) -> None:
    assert labelled(page) == [{"labels": ["HR", "bicubic", EVIL], "reference": 0}, {"labels": ["bicubic", EVIL], "reference": None}]
    pictures, _ = embedded(page)
    assert len(pictures) == 3
    for i, address in enumerate(pictures):
        head, body = address.split(",")
        assert head == "data:image/webp;base64"
        (tmp_path / "p.webp").write_bytes(base64.b64decode(body))
        assert np.array_equal(read(tmp_path / "p.webp").pixels, picture(30, 40, seed=i))


def test_nothing_is_fetched(page: str) -> None:
    assert not re.search(r"https?://|//cdn|@import|<link|src=", page)


def test_names_do_no_harm(page: str) -> None:
    assert '<b>&"' not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert page.count("<figure ") == 2
    assert "<!--" not in page  # with "<script" behind it, it would keep the element of the data from ending
    assert page.count("<script") == page.count("</script>") == 3
    assert "&lt;!--&lt;script&gt;&lt;/script&gt;&lt;b&gt;&amp;" in page


def test_tables(page: str) -> None:
    assert "<p>heading</p>" in page
    assert "<th scope=col>b|c</th>" in page
    assert "<td>28.43</td><td>0.8113</td>" in page


def test_16_bit_and_grey_pictures_are_shown(tmp_path: Path, picture: Picture) -> None:
    grey = picture(20, 20, channels=1)
    layers = [Layer("8", lambda: grey), Layer("16", lambda: grey.astype(np.uint16) * 257)]
    write_page(tmp_path / "p.html", "t", [], [], [Figure("", "x", layers, 0)])
    (pictures,) = embedded((tmp_path / "p.html").read_text())
    assert pictures[0] == pictures[1]


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot be written"):
        write_page(tmp_path / "file" / "p.html", "t", [], [], [])

"""Receptive fields, similarity of layers and pictures of features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from drct.cli import run
from drct.errors import OptionError
from drct.explain.cka import linear_cka, samples, similarity
from drct.explain.features import as_picture
from drct.explain.field import Field, receptive_field, side_of
from drct.explain.figures import features_figure
from drct.explain.subjects import Subject
from drct.networks.base import SuperResolutionNetwork
from drct.weights import load_network


class Blur(SuperResolutionNetwork):
    """A 5 x 5 mean: its receptive field is known."""

    def __init__(self) -> None:
        super().__init__(None, scale=1, in_chans=3, pad_multiple=1, img_range=1.0)
        self.blur = torch.nn.Conv2d(3, 3, 5, padding=2, groups=3, bias=False)
        torch.nn.init.constant_(self.blur.weight, 0.04)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blur(x)


def test_field_of_a_convolution_is_its_kernel() -> None:
    field = receptive_field(Subject("blur", Blur()), [np.random.default_rng(0).random((11, 13, 3), np.float32)] * 2)
    expected = np.zeros((11, 13))
    expected[3:8, 4:9] = 1
    np.testing.assert_allclose(field.map, expected, atol=1e-6)
    assert field.sides == {0.5: 5, 0.9: 5, 0.99: 5}


def test_side_counts_from_the_middle() -> None:
    values = np.zeros((9, 9))
    values[4, 4] = 8
    values[4, 7] = 2
    assert (side_of(values, 0.8), side_of(values, 0.9)) == (1, 7)


def test_squares_end_at_the_border() -> None:
    def squares(height: int, width: int) -> str:
        values = np.ones((height, width))
        return Field(values, {0.99: side_of(values, 0.99)}).square(0.99, "px")

    assert squares(8, 8) == "8 x 8 px (up to the border)"
    assert squares(4, 64) == "64 x 4 px (up to the border)"
    middle = np.zeros((9, 12))
    middle[3:6, 5:8] = 1
    assert Field(middle, {0.9: side_of(middle, 0.9)}).square(0.9, "pixels") == "3 x 3 pixels"


def test_images_of_different_sizes_have_no_common_field() -> None:
    images = [np.zeros((8, 8, 3), np.float32), np.zeros((9, 8, 3), np.float32)]
    with pytest.raises(OptionError, match="different sizes"):
        receptive_field(Subject("blur", Blur()), images)


def test_cka_sees_through_rotation_and_scale_only() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(500, 6, generator=generator), torch.randn(500, 4, generator=generator)
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator))[0]
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1, abs=1e-5)
    assert linear_cka(x, y) < 0.1
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x))
    assert np.isnan(linear_cka(x, torch.ones(500, 2)))


def test_similarity_of_a_network_to_itself(models: list[Path]) -> None:
    subject = Subject("net", load_network(models[0]))
    groups = samples(subject, [np.random.default_rng(i).random((16, 16, 3), np.float32) for i in range(2)])
    assert [tuple(g.shape) for g in groups] == [(512, 8)] * 2
    matrix = similarity(groups, groups)
    np.testing.assert_allclose(np.diag(matrix), 1)
    assert 0 < matrix[0, 1] == pytest.approx(matrix[1, 0])
    assert matrix[0, 1] < 1


def test_similarity_of_large_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last pixel of so many has a number that float32 cannot hold."""
    feature = torch.zeros(1, 1, 1).expand(4096, 6144, 1)
    monkeypatch.setattr("drct.explain.cka.group_features", lambda subject, pixels: {"layers.0": feature})
    (group,) = samples(Subject("blur", Blur()), [np.zeros((1, 1, 3), np.float32)])
    assert group.shape == (4096, 1)


def test_a_single_pixel_has_no_similarity(models: list[Path]) -> None:
    subject = Subject("net", load_network(models[0]))
    with pytest.raises(OptionError, match="more than one pixel"):
        samples(subject, [np.ones((1, 1, 3), np.float32)])


def test_groups_are_named_on_one_line_above_all_rows() -> None:
    """Also those that the network of the first row does not have."""
    figure = features_figure(["short", "long"], [[np.ones((8, 12))] * 2, [np.ones((8, 12))] * 4], "mean")
    figure.canvas.draw()
    titles = [ax.title for ax in figure.axes if ax.get_title()]
    assert [title.get_text() for title in titles] == [f"group {i}" for i in (1, 2, 3, 4)]
    heights = [title.get_window_extent().y0 for title in titles]
    np.testing.assert_allclose(heights, heights[0], atol=0.5)


def test_pictures_of_features() -> None:
    feature = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0))
    feature[..., 3] += 50 * torch.arange(5)
    np.testing.assert_allclose(as_picture(feature, "mean"), feature.abs().mean(-1))
    np.testing.assert_allclose(as_picture(feature, "3"), feature[..., 3])
    pca = as_picture(feature, "pca")
    assert pca.shape == (6, 5, 3)
    assert np.corrcoef(pca[..., 0].ravel(), feature[..., 3].numpy().ravel())[0, 1] > 0.99
    for show, message in (("8", "channels 0 to 7"), ("median", "mean, pca")):
        with pytest.raises(OptionError, match=message):
            as_picture(feature, show)


@pytest.mark.parametrize(
    ("verb", "said"),
    [(["features"], "->"), (["features", "--show", "pca"], "->"), (["field"], "90% in "), (["cka"], "first to last group")],
)
def test_verbs_write_their_figure(
    verb: list[str], said: str, image: Path, models: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figure.svg"
    args = ["explain", *verb, str(image), "--crop", "16", "--model", *map(str, models), "-o", str(out)]
    assert run(args) == 0
    assert said in capsys.readouterr().out
    drawn = out.read_text()
    assert "tiny-drct" in drawn
    assert "tiny-swinir" in drawn

"""Features between groups and their intensity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from drct.errors import OptionError
from drct.explain.features import group_features, groups_of
from drct.explain.figures import flow_figure
from drct.explain.flow import MEASURES, Flow, feature_flow, intensity
from drct.explain.subjects import Subject
from drct.networks.base import SuperResolutionNetwork
from drct.weights import load_network


def test_intensity_by_hand() -> None:
    feature = torch.zeros(2, 2, 4)
    feature[0, 0] = torch.tensor([3.0, -3.0, 3.0, -3.0])
    assert intensity(feature) == pytest.approx((3.0, 0.75, 0.75))


def test_features_are_those_of_the_forward_pass_without_padding(models: list[Path]) -> None:
    for model in models:
        subject = Subject(model.stem, load_network(model))
        pixels = np.random.default_rng(0).random((7, 9, 3), np.float32)
        features = group_features(subject, pixels)
        assert list(features) == ["layers.0", "layers.1"]
        assert all(f.shape == (7, 9, 8) for f in features.values())
        assert not any(module._forward_hooks for module in subject.network.modules())
    # what enters the last norm is what left the last group
    seen: list[torch.Tensor] = []
    subject.network.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    again = group_features(subject, pixels)
    assert torch.equal(seen[0][0, :7, :9], again["layers.1"])


def test_flow_averages_over_images(models: list[Path]) -> None:
    subject = Subject("net", load_network(models[0]))
    images = [np.random.default_rng(i).random((8, 8, 3), np.float32) for i in range(2)]
    both = feature_flow(subject, images)
    single = [feature_flow(subject, [image]) for image in images]
    assert both.images == 2
    for key, values in both.measures.items():
        np.testing.assert_allclose(values, (single[0].measures[key] + single[1].measures[key]) / 2)
        assert values.shape == (2,)


def test_no_image_and_empty_images_are_told(models: list[Path]) -> None:
    subject = Subject("tiny", load_network(models[0]).eval())
    with pytest.raises(OptionError, match="tiny: there is no image"):
        feature_flow(subject, [])
    with pytest.raises(OptionError, match="an image of 0 x 0 pixels has no features"):
        feature_flow(subject, [np.zeros((0, 0, 3), np.uint8)])


def test_curves_and_legend_of_many_long_names() -> None:
    """All is inside the figure, and no two curves look the same."""
    names = [f"2024_experiment_with_long_name_number_{i}" for i in range(8)]
    figure = flow_figure(names, [Flow(("layers.0",), {key: np.ones(1) for key in MEASURES}, 1)] * 8)
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert 0 <= legend.x0 < legend.x1 <= figure.bbox.width
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names
    assert len({(line.get_color(), line.get_marker()) for line in figure.axes[0].get_lines()}) == 8


def test_a_network_without_groups_is_named() -> None:
    network = SuperResolutionNetwork(None, scale=2, in_chans=3, pad_multiple=1, img_range=1.0)
    with pytest.raises(OptionError, match="plain has no groups"):
        groups_of(Subject("plain", network))

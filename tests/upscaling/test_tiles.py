"""Plans of tiles, and what tiles change."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from upscaling_helpers import smooth_image

from drct.engine import compile
from drct.engine.memory import LiveBytes
from drct.errors import OptionError
from drct.imaging import from_tensor, read, to_tensor
from drct.networks import SuperResolutionNetwork
from drct.upscaling.tiles import TilePlan, ladder, plan_tiles, smallest_tile, upscale_strips
from drct.weights import load_network


def assemble(program, image, plan, scale, dtype=np.float32):
    with torch.inference_mode():
        return np.concatenate(list(upscale_strips(program, image, plan, scale=scale, dtype=dtype)))


def nearest(scale):
    return lambda x: x.repeat_interleave(scale, -1).repeat_interleave(scale, -2)


sizes = st.integers(1, 700)
windows = st.sampled_from([1, 4, 7, 8, 16])


@settings(deadline=None)
@given(height=sizes, width=sizes, window=windows, tile=st.integers(4, 300), overlap=st.integers(0, 80), batch=st.integers(1, 5))
def test_plan_covers_the_image_on_the_window_grid(height, width, window, tile, overlap, batch):
    tile = max(tile, smallest_tile(window))
    plan = plan_tiles(height, width, tile=tile, pad_multiple=window, overlap=overlap, batch=batch)
    if plan.whole:
        assert (plan.tile_height, plan.tile_width) == (height, width)
        assert max(height, width) <= -(-tile // window) * window
        return
    for starts, side, size in ((plan.rows, plan.tile_height, height), (plan.columns, plan.tile_width, width)):
        padded = -(-size // window) * window
        assert starts[0] == 0
        assert starts[-1] + side == padded
        assert side <= -(-tile // window) * window
        assert all(start % window == 0 for start in starts)
        shared = [first + side - second for first, second in itertools.pairwise(starts)]
        assert all(plan.overlap <= pixels < side for pixels in shared)
        # each place is faded between two tiles at most
        assert all(first + side - plan.overlap <= third + plan.overlap for first, third in zip(starts, starts[2:], strict=False))
    assert 1 <= plan.batch <= min(batch, len(plan.columns))
    assert plan == plan_tiles(height, width, tile=tile, pad_multiple=window, overlap=overlap, batch=batch)
    assert TilePlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


@settings(deadline=None)
@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    window=st.sampled_from([1, 4, 8]),
    tile=st.integers(4, 40),
    overlap=st.integers(0, 16),
    batch=st.integers(1, 3),
    scale=st.integers(1, 3),
)
def test_a_program_without_context_gives_the_same_pixels_in_tiles(height, width, window, tile, overlap, batch, scale):
    """Whatever the plan, every output pixel comes from the right place, exactly once or faded with itself."""
    image = np.random.default_rng(height * width).integers(0, 65536, (height, width, 3), np.uint16)
    plan = plan_tiles(height, width, tile=max(tile, smallest_tile(window)), pad_multiple=window, overlap=overlap, batch=batch)
    result = assemble(nearest(scale), image, plan, scale, np.uint16)
    assert np.array_equal(result, image.repeat(scale, 0).repeat(scale, 1))


def test_grey_images_stay_grey():
    image = smooth_image(50, 70, 1)
    plan = plan_tiles(50, 70, tile=32, pad_multiple=8)
    assert np.array_equal(assemble(nearest(2), image, plan, 2, np.uint8), image.repeat(2, 0).repeat(2, 1))


@pytest.mark.parametrize("size", [(200, 150), (97, 203), (33, 250)])
def test_tiles_of_a_network_have_no_seams(network: SuperResolutionNetwork, size):
    image = smooth_image(*size)
    whole = assemble(network, image, plan_tiles(*size, tile=None, pad_multiple=4), 4)
    plan = plan_tiles(*size, tile=64, pad_multiple=4, overlap=16)
    assert plan.tiles > 1
    tiled = assemble(network, image, plan, 4)
    difference = np.abs(tiled - whole)
    assert difference.mean() < 1e-6
    assert difference.max() < 1e-4


def test_tiles_of_the_bundled_model_have_no_seams():
    """Below one step of 8 bits everywhere, and a thousandth of it on average."""
    program = compile(load_network("drct-light-x4"))
    image = read(Path(__file__).parents[2] / "examples" / "photo.png").pixels[:96]
    plan = plan_tiles(*image.shape[:2], tile=128, pad_multiple=program.pad_multiple)
    assert plan.tiles > 1
    whole = assemble(program, image, plan_tiles(*image.shape[:2], tile=None, pad_multiple=program.pad_multiple), 4)
    difference = np.abs(assemble(program, image, plan, 4) - whole)
    assert difference.mean() < 1e-5
    assert difference.max() < 1 / 255


@pytest.mark.parametrize("overlap", [1, 4])
def test_a_seam_would_be_seen(network: SuperResolutionNetwork, overlap):
    """With hardly any overlap the difference is there: the test above can fail."""
    image = smooth_image(97, 203)
    whole = assemble(network, image, plan_tiles(97, 203, tile=None, pad_multiple=4), 4)
    tiled = assemble(network, image, plan_tiles(97, 203, tile=64, pad_multiple=4, overlap=overlap), 4)
    assert np.abs(tiled - whole).max() > 0.05


def test_more_overlap_comes_closer_to_the_whole(network: SuperResolutionNetwork):
    image = smooth_image(160, 160)
    whole = assemble(network, image, plan_tiles(160, 160, tile=None, pad_multiple=4), 4)
    differences = [
        np.abs(assemble(network, image, plan_tiles(160, 160, tile=80, pad_multiple=4, overlap=overlap), 4) - whole).mean()
        for overlap in (4, 8, 20)
    ]
    assert differences[0] > differences[1] > differences[2]


def test_a_tile_as_large_as_the_image_is_the_whole_image(network: SuperResolutionNetwork):
    image = smooth_image(61, 47)
    assert plan_tiles(61, 47, tile=64, pad_multiple=4) == plan_tiles(61, 47, tile=None, pad_multiple=4)
    with torch.inference_mode():
        expected = from_tensor(network(to_tensor(image)), np.uint8)
    assert np.array_equal(assemble(network, image, plan_tiles(61, 47, tile=64, pad_multiple=4), 4, np.uint8), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 3), (5, 129)])
def test_odd_sizes(network: SuperResolutionNetwork, size):
    image = smooth_image(*size)
    tiled = assemble(network, image, plan_tiles(*size, tile=64, pad_multiple=4), 4)
    whole = assemble(network, image, plan_tiles(*size, tile=None, pad_multiple=4), 4)
    assert tiled.shape == (4 * size[0], 4 * size[1], 3)
    assert np.abs(tiled - whole).max() < 1e-4


def test_batches_do_not_change_the_result(network: SuperResolutionNetwork):
    image = smooth_image(100, 180)
    one, three = (plan_tiles(100, 180, tile=64, pad_multiple=4, batch=batch) for batch in (1, 3))
    assert three.batch > 1
    assert np.abs(assemble(network, image, one, 4) - assemble(network, image, three, 4)).max() < 1e-5


def test_batches_of_one_row_are_as_equal_as_they_can_be():
    plan = plan_tiles(64, 256, tile=64, pad_multiple=4, overlap=16, batch=4)
    assert len(plan.columns) == 5
    assert plan.batch == 3


def test_tiles_stay_below_the_largest_height():
    """A limit that is no multiple of the window is rounded down."""
    plan = plan_tiles(500, 500, tile=256, pad_multiple=16, overlap=16, most_rows=100)
    assert plan.tile_height == 96


def test_tiles_fade_into_each_other_in_even_steps_around_the_middle():
    values = iter((0.0, 1.0))
    plan = plan_tiles(8, 56, tile=32, pad_multiple=4, overlap=8)
    assert (plan.columns, plan.tile_width, plan.feather) == ((0, 24), 32, 2)
    result = assemble(lambda x: torch.full((1, 3, 16, 64), next(values)), smooth_image(8, 56), plan, 2)
    assert (result == np.array([0.0] * 54 + [0.125, 0.375, 0.625, 0.875] + [1.0] * 54)[:, None]).all()


def test_a_tile_below_four_windows_is_refused():
    with pytest.raises(OptionError, match="at least 64"):
        plan_tiles(500, 500, tile=32, pad_multiple=16)


def test_plans_from_numbers_of_numpy_can_be_written() -> None:
    sizes = {"tile": 64, "pad_multiple": 16, "overlap": 16, "batch": 2, "most_rows": 64}
    plan = plan_tiles(np.uint8(200), np.uint8(220), **{name: np.uint8(size) for name, size in sizes.items()})
    assert plan == plan_tiles(200, 220, **sizes)
    assert TilePlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_ladder_holds_multiples_of_the_window():
    assert ladder(16)[0] == 64
    assert all(size % 7 == 0 and size >= 28 for size in ladder(7))


class Rows:
    """An image that is never in memory as a whole."""

    def __init__(self, height: int, width: int) -> None:
        self.shape = (height, width, 3)

    def __getitem__(self, rows: slice) -> np.ndarray:
        height = len(range(*rows.indices(self.shape[0])))
        return np.full((height, self.shape[1], 3), 100, np.uint8)


def test_memory_grows_with_the_width_and_not_with_the_area():
    with LiveBytes():
        nearest(2)(torch.zeros(1, 3, 2, 2))  # what is imported on first use is not counted
    peaks = []
    for height in (640, 3200):  # smaller images have not all strips in flight yet
        plan = plan_tiles(height, 192, tile=64, pad_multiple=8)
        tracemalloc.start()
        rows = 0
        with LiveBytes() as tensors:
            for strip in upscale_strips(nearest(2), Rows(height, 192), plan, scale=2, dtype=np.uint8):
                rows += len(strip)
                assert strip.shape[1:] == (384, 3)
        peaks.append(tracemalloc.get_traced_memory()[1] + tensors.peak)
        tracemalloc.stop()
        assert rows == 2 * height
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < 1280 * 384 * 3  # a fifth of the result, which is nowhere held as a whole

"""Pictures of kept tokens: the right pixels are shown, the right ones are veiled."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest
from matplotlib.collections import LineCollection

from sf.errors import ConfigError
from sf.evaluation.layer_groups import group_names, keep_rates, layer_groups
from sf.report.overlay import cell_pixels, kept_picture, veiled

SIDE = 28


def noise(rows: int, cols: int, side: int = SIDE, seed: int = 0) -> np.ndarray:
    """A frame in which no pixel looks as if it were veiled."""
    rng = np.random.default_rng(seed)
    frame = rng.integers(200, 256, (rows * side, cols * side, 3), dtype=np.uint8)
    frame[..., 2] = 0
    return frame


def one_cell(layers: int, shape: tuple[int, int, int], cell: tuple[int, int, int]) -> np.ndarray:
    """Every layer keeps one cell."""
    kept = np.zeros((layers, *shape), dtype=bool)
    kept[:, *cell] = True
    return kept


def same(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Pixels of equal colour."""
    return (left == right).all(-1)


@pytest.mark.parametrize("side", [SIDE, 31])
def test_exactly_the_kept_cells_pixels_stay(side):
    frame = noise(3, 4, side)
    rate = np.zeros((3, 4))
    rate[1, 2] = 1.0
    expected = np.zeros(frame.shape[:2], dtype=bool)
    expected[side : 2 * side, 2 * side : 3 * side] = True
    assert np.array_equal(same(veiled(frame, rate), frame), expected)


def test_the_veil_is_the_thicker_the_more_layers_dropped_a_cell():
    frame = noise(1, 5)
    out = veiled(frame, np.array([[0.0, 0.25, 0.5, 0.75, 1.0]])).astype(float)
    away = np.abs(out - frame).mean((0, 2)).reshape(5, SIDE).mean(1)
    assert (np.diff(away) < 0).all()
    assert away[-1] == 0


def test_dropped_cells_lose_contrast_and_colour_on_dark_and_on_bright_frames():
    """A dropped black and a dropped white cell are both near middle grey, and grey."""
    frame = np.zeros((SIDE, 2 * SIDE, 3), dtype=np.uint8)
    frame[:, SIDE:, :2] = 255
    out = veiled(frame, np.zeros((1, 2))).astype(int)
    assert np.ptp(out, axis=-1).max() == 0
    assert out.min() > 90
    assert out.max() < 165


def test_frames_that_the_grid_does_not_divide_are_shared_out_evenly():
    pixels = cell_pixels(np.arange(6).reshape(2, 3), 5, 10)
    assert pixels.shape == (5, 10)
    assert set(pixels[0]) == {0, 1, 2}
    counts = np.bincount(pixels.ravel())
    assert counts.min() >= 6
    assert counts.max() <= 12


@pytest.mark.parametrize(
    ("layers", "sizes"), [(1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (28, [9, 10, 9]), (36, [12] * 3)]
)
def test_groups_cover_all_layers_in_order(layers, sizes):
    groups = layer_groups(layers)
    assert [len(group) for group in groups] == sizes
    assert [layer for group in groups for layer in group] == list(range(layers))
    assert len(set(group_names(groups))) == len(groups)


def test_group_names_count_from_one():
    assert group_names(layer_groups(28)) == (
        "first third (layers 1-9)",
        "middle third (layers 10-19)",
        "last third (layers 20-28)",
    )


def test_rates_are_shares_of_a_groups_layers():
    kept = np.zeros((4, 1, 1, 2), dtype=bool)
    kept[0, ..., 0] = kept[3, ..., 1] = True
    rates = keep_rates(kept, [range(2), range(2, 4)])
    assert rates[:, 0, 0].tolist() == [[0.5, 0.0], [0.0, 0.5]]


def test_an_image_shows_its_kept_cell_in_every_group():
    frame, cell = noise(3, 4), (0, 2, 1)
    fig = kept_picture([frame], one_cell(6, (1, 3, 4), cell), caption="What costs $_{$?")
    expected = np.zeros(frame.shape[:2], dtype=bool)
    expected[2 * SIDE : 3 * SIDE, SIDE : 2 * SIDE] = True
    groups = fig.axes[3:6]
    for panel in groups:
        assert np.array_equal(same(panel.images[0].get_array(), frame), expected)
        (line, _) = [part for part in panel.collections if isinstance(part, LineCollection)]
        corners = np.array(line.get_segments()).reshape(-1, 2) + 0.5
        assert corners.min(0).tolist() == [SIDE, 2 * SIDE]
        assert corners.max(0).tolist() == [2 * SIDE, 3 * SIDE]
        assert len(line.get_segments()) == 4
    heat = fig.axes[1].images[1].get_array()
    assert np.array_equal(heat == 1.0, expected)
    assert fig.get_supxlabel().startswith("What costs $_{$?\n")
    assert groups[0].get_title(loc="left") == "first third (layers 1-2): 8 % kept"
    fig.savefig(io.BytesIO(), format="png", dpi=30)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_video_shows_its_kept_cell_at_its_time_step_only(steps):
    frames = [noise(2, 3, seed=at) for at in range(steps)]
    step = steps - 1
    kept = one_cell(3, (steps, 2, 3), (step, 1, 0))
    fig = kept_picture(frames, kept, seconds=[0.5 * at for at in range(steps)])
    count = 0
    for panel in fig.axes:
        if not panel.images or len(panel.images) > 1:
            continue
        shown = np.asarray(panel.images[0].get_array())
        if any(np.array_equal(shown, frame) for frame in frames):
            continue  # the row of frames
        clear = [same(shown, frame) for frame in frames]
        if any(part.any() for part in clear):
            assert clear[step][SIDE:, :SIDE].all()
            assert clear[step].sum() == SIDE * SIDE
            count += 1
    assert count == 3
    fig.savefig(io.BytesIO(), format="png", dpi=30)


def test_a_long_video_shows_eight_time_steps_and_says_so():
    frames = [noise(1, 1, seed=at) for at in range(20)]
    fig = kept_picture(frames, np.ones((2, 20, 1, 1), dtype=bool), seconds=list(range(20)))
    shown = [panel for panel in fig.axes if panel.get_title(loc="left").endswith(" s")]
    assert len(shown) == 8
    assert shown[-1].get_title(loc="left") == "19.0 s"
    assert "8 of 20" in fig.axes[0].get_ylabel()


def test_a_large_image_is_drawn_no_larger_than_a_screen():
    frame = np.asarray(PIL.Image.new("RGB", (3000, 1500), "red"))
    fig = kept_picture([frame], np.ones((1, 1, 2, 4), dtype=bool))
    assert fig.axes[0].images[0].get_array().shape == (512, 1024, 3)


def test_frames_and_time_steps_must_fit():
    with pytest.raises(ConfigError, match="time"):
        kept_picture([noise(1, 1)], np.ones((1, 2, 1, 1), dtype=bool))

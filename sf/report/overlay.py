"""Drawings of the kept tokens over the image or the frames (arXiv 2504.18579, figure 7).

Cells fade to grey with the share of a group's layers that dropped them. The contrast is readable
without colour vision. A line surrounds the cells that at least half of the group's layers kept.

Shape suffixes: J layers, G groups of layers, T time steps, H rows and W columns of cells; frames
are uint8 [height, width, 3] of any size, which the grid of cells divides evenly.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from sf.errors import ConfigError
from sf.evaluation.layer_groups import MAJORITY, group_names, keep_rates, layer_groups
from sf.plotting import figure, percent

__all__ = ["cell_pixels", "kept_picture", "veiled"]

Rates = NDArray[np.float64]
Frame = NDArray[np.uint8]

VEIL = 128.0  # middle grey, distinct from kept content in bright and in dark pictures
OPACITY = 0.85
GREY = np.array([0.299, 0.587, 0.114])
LINE = "#F0E442"  # Okabe and Ito's yellow on black, visible on any picture
SHADES = "cividis"
MAX_COLUMNS = 8
SHORT = 3
MAX_SIDE = 1024
MAX_LINES = 6
KEY = (
    "Grey: dropped; the greyer, the more layers dropped it. Yellow line: surrounds the cells that "
    "at least half of the group's layers kept."
)


def cell_pixels(cells_HW: NDArray, height: int, width: int) -> NDArray:
    """Expand cell values to pixels (height, width)."""
    rows = np.arange(height) * cells_HW.shape[0] // height
    columns = np.arange(width) * cells_HW.shape[1] // width
    return cells_HW[rows[:, None], columns]


def veiled(frame: Frame, rate_HW: Rates) -> Frame:
    """The frame blended with grey: unchanged at rate 1, grey at rate 0."""
    faded = OPACITY * VEIL + (1 - OPACITY) * (frame @ GREY)[..., None]
    rate = cell_pixels(rate_HW, *frame.shape[:2])[..., None]
    return np.rint(rate * frame + (1 - rate) * faded).astype(np.uint8)


def kept_picture(
    frames: Sequence[Frame],
    kept_JTHW: NDArray[np.bool_],
    *,
    caption: str = "",
    seconds: Sequence[float] | None = None,
) -> Figure:
    """The media, the cells kept by each third of the layers, and each cell's share of layers.

    Args:
        frames: T frames, one per time step; an image is one frame.
        kept_JTHW: bool, the cells that each layer kept (`VisualSpan.cells`).
        caption: text below the drawing, for example question and reply.
        seconds: (T,) start of each time step. Of a video, at most `MAX_COLUMNS` evenly spaced time
            steps are drawn, with a remark.

    Returns:
        A figure for `sf.plotting.write_figure`.

    Raises:
        ConfigError: the number of frames is not T, or there are no layers.
    """
    kept = np.asarray(kept_JTHW, dtype=bool)
    if kept.ndim != 4 or len(frames) != kept.shape[1] or not len(kept):
        raise ConfigError(
            "frames",
            len(frames),
            f"kept cells of shape {kept.shape} (layers, time, rows, columns) need one frame per "
            "time step and at least one layer",
            "pass the first frame of each time step",
        )
    small = [_display(frame) for frame in frames]
    draw = _image_picture if len(small) == 1 and seconds is None else _video_picture
    fig = draw(small, kept, seconds)
    width = int(fig.get_figwidth() * 14)
    lines = [part for line in caption.splitlines() for part in wrap(line, width)]
    if len(lines) > MAX_LINES:
        lines[MAX_LINES - 1 :] = [lines[MAX_LINES - 1] + " …"]
    fig.supxlabel(
        "\n".join([*lines, *wrap(KEY, width)]), fontsize=9, color="#333333", parse_math=False
    )
    engine = fig.get_layout_engine()
    assert engine is not None
    engine.set(h_pad=0.08, w_pad=0.06)  # type: ignore[call-arg]
    return fig


def _display(frame: Frame) -> Frame:
    """The frame, reduced if its resolution exceeds that of a screen."""
    image = PIL.Image.fromarray(np.ascontiguousarray(frame))
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.asarray(image)


def _image_picture(frames: Sequence[Frame], kept: NDArray, _: object) -> Figure:
    (frame,) = frames
    groups = layer_groups(len(kept))
    rates = keep_rates(kept, groups)[:, 0]
    height = min(max(3.6 * frame.shape[0] / frame.shape[1], 1.6), 6.0)
    fig, axes = figure(12.0, 2 * (height + 0.5) + 0.6, columns=3, rows=2)
    _show(axes[0][0], frame)
    _title(axes[0][0], "image")
    _heat(axes[0][1], frame, kept.mean(0)[0])
    _title(axes[0][1], "share of the layers that keep a cell")
    _layers(axes[0][2], kept.mean((1, 2, 3)), groups)
    axes[0][2].set_box_aspect(frame.shape[0] / frame.shape[1])
    for panel, rate, name in zip(axes[1], rates, group_names(groups), strict=False):
        _veil(panel, frame, rate)
        _title(panel, f"{name}: {_percent(rate)} kept")
    for panel in axes[1][len(groups) :]:
        panel.set_axis_off()
    _colour_bar(axes[0][1], horizontal=True)
    return fig


def _video_picture(
    frames: Sequence[Frame], kept: NDArray, seconds: Sequence[float] | None
) -> Figure:
    groups = layer_groups(len(kept))
    rates = keep_rates(kept, groups)
    steps = len(frames)
    count = min(steps, MAX_COLUMNS)
    shown = [round(at) for at in np.linspace(0, steps - 1, count)]
    kinds = ["frames" if count == steps else f"frames ({count} of {steps} time steps)"]
    kinds += [
        f"{name}: {_percent(rate)} kept"
        for name, rate in zip(group_names(groups), rates, strict=True)
    ]
    kinds.append("share of the layers")
    grid, fig = _video_panels(len(kinds), count, frames[0].shape, long=count > SHORT)
    for column, step in enumerate(shown):
        _show(grid[0][column], frames[step])
        for panels, rate in zip(grid[1:], rates, strict=False):
            _veil(panels[column], frames[step], rate[step])
        _heat(grid[-1][column], frames[step], kept.mean(0)[step])
    times = [f"step {at + 1}" if seconds is None else f"{seconds[at]:.1f} s" for at in shown]
    down, across = (kinds, times) if count > SHORT else (times, kinds)
    table = grid if count > SHORT else grid.T
    for panel, label in zip(table[:, 0], down, strict=True):
        lines = label.replace(" (", "\n(").replace(": ", "\n")
        panel.set_ylabel(lines, rotation=0, ha="right", va="center", fontsize=9)
    for panel, label in zip(table[0], across, strict=True):
        _title(panel, label.replace(" (", "\n("))
    _colour_bar(grid[-1][-1], horizontal=count <= SHORT)
    return fig


def _video_panels(
    kinds: int, steps: int, shape: tuple[int, ...], *, long: bool
) -> tuple[NDArray, Figure]:
    """Panels by kind and time step; time runs to the right, or downwards for a short video."""
    columns, rows = (steps, kinds) if long else (kinds, steps)
    width = max(1.6, min(3.2, 13.0 / columns))
    height = min(max(width * shape[0] / shape[1], 0.7), 3.2)
    room = 2.4 if long else 0.8
    fig, axes = figure(width * columns + room, (height + 0.15) * rows + 1.3, columns, rows)
    return (axes if long else axes.T), fig


def _percent(rate: Rates) -> str:
    return f"{100 * float(rate.mean()):.0f} %"


def _bare(panel: Axes) -> None:
    panel.set(xticks=[], yticks=[])
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)


def _title(panel: Axes, title: str) -> None:
    panel.set_title(title, fontsize=10, fontweight="normal", loc="left", pad=4)


def _show(panel: Axes, frame: Frame) -> None:
    panel.imshow(frame)
    _bare(panel)


def _veil(panel: Axes, frame: Frame, rate_HW: Rates) -> None:
    panel.imshow(veiled(frame, rate_HW))
    _outline(panel, rate_HW >= MAJORITY, frame.shape)
    _bare(panel)


def _outline(panel: Axes, kept_HW: NDArray[np.bool_], shape: tuple[int, ...]) -> None:
    """Draw a line between kept and dropped cells, and along the edge of the picture."""
    inside = np.pad(kept_HW, 1)
    tall, wide = shape[0] / kept_HW.shape[0], shape[1] / kept_HW.shape[1]
    across = np.argwhere(inside[1:, 1:-1] != inside[:-1, 1:-1])  # an edge above cell (row, col)
    down = np.argwhere(inside[1:-1, 1:] != inside[1:-1, :-1])  # an edge left of it
    lines = [((c * wide, r * tall), ((c + 1) * wide, r * tall)) for r, c in across]
    lines += [((c * wide, r * tall), (c * wide, (r + 1) * tall)) for r, c in down]
    moved = [[(x - 0.5, y - 0.5) for x, y in line] for line in lines]  # pixel centres are integers
    for colour, size in (("black", 2.4), (LINE, 1.1)):
        panel.add_collection(
            LineCollection(moved, colors=colour, linewidths=size, capstyle="projecting")
        )


def _heat(panel: Axes, frame: Frame, rate_HW: Rates) -> None:
    panel.imshow(frame @ GREY, cmap="gray", vmin=0, vmax=255)
    pixels = cell_pixels(rate_HW, *frame.shape[:2])
    panel.imshow(pixels, cmap=SHADES, vmin=0.0, vmax=1.0, alpha=0.65)
    _bare(panel)


def _layers(panel: Axes, share_J: Rates, groups: Sequence[range]) -> None:
    """Draw the share of visual tokens that each layer kept."""
    layers = np.arange(1, len(share_J) + 1)
    panel.plot(
        layers, share_J, color="#0072B2", marker="o", markersize=3 if len(layers) > 12 else 6
    )
    for group in groups[1:]:
        panel.axvline(group[0] + 0.5, color="#999999", linewidth=0.8, linestyle=":")
    panel.set(xlabel="layer", ylim=(0, 1.03))
    _title(panel, "visual tokens kept by each layer (%)")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    percent(panel, "y")


def _colour_bar(panel: Axes, *, horizontal: bool) -> None:
    """Add a colour bar next to the heat map without shrinking it, so that panels stay aligned."""
    shades = ScalarMappable(Normalize(0.0, 1.0), SHADES)
    place = panel.inset_axes((0.0, -0.05, 1.0, 0.025) if horizontal else (1.05, 0.0, 0.05, 1.0))
    bar = panel.figure.colorbar(
        shades,
        cax=place,
        ticks=[0, 0.5, 1],
        format="%g",
        orientation="horizontal" if horizontal else "vertical",
    )
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)

"""The style and the output of all figures.

Colours are Okabe and Ito's, which colour-blind readers can distinguish; each row also has its own
marker and line style, so that figures remain readable in greyscale.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.category import StrCategoryFormatter
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, Formatter, FuncFormatter
from numpy.typing import ArrayLike

from sf.atomic_files import replacing
from sf.escaping import printable

__all__ = [
    "ROWS",
    "Look",
    "figure",
    "in_style",
    "look",
    "marks",
    "note",
    "rows_figure",
    "save",
    "write_figure",
]

GRID = "#d9d9d9"
INK = "#222222"

SETTINGS: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 10,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "svg.fonttype": "path",
    "svg.hashsalt": "sf",
    "text.parse_math": False,  # a dollar sign in a name is not a formula
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of a row."""

    colour: str
    marker: str
    line: str


ROWS: dict[str, Look] = {
    "full": Look("#000000", "s", "-"),
    "base": Look("#0072B2", "o", "-"),
    "zipvl": Look("#0072B2", "o", "-"),
    "sparsity_forcing": Look("#D55E00", "D", "-"),
}
OTHERS = (
    Look("#009E73", "^", "--"),
    Look("#CC79A7", "v", "--"),
    Look("#E69F00", "P", "-."),
    Look("#56B4E9", "X", "-."),
    Look("#7F7F7F", "h", ":"),
)


def look(row: str, others: list[str] | None = None) -> Look:
    """The look of a row; a row without a fixed look gets one by its position in `others`."""
    if row in ROWS:
        return ROWS[row]
    names = sorted(set(others or [row]) - set(ROWS))
    return OTHERS[names.index(row) % len(OTHERS)]


def marks(
    axes: Axes,
    x: ArrayLike,
    y: ArrayLike,
    interval: tuple[ArrayLike, ArrayLike],
    style: Look,
    label: str,
    joined: bool = True,
) -> None:
    """Draw values with error bars for their intervals (lowest, highest), joined by a line."""
    values, (low, high) = np.asarray(y), map(np.asarray, interval)
    axes.errorbar(
        x,
        values,
        yerr=[values - low, high - values],
        color=style.colour,
        marker=style.marker,
        linestyle=style.line if joined else "none",
        capsize=3,
        elinewidth=1,
        label=label,
    )


in_style = mpl.rc_context(SETTINGS)
"""Decorator that runs a drawing function in the common style."""


def figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, Any]:
    """An empty figure in the common style, without a display.

    Args:
        width: inches.
        height: inches.
        columns: axes side by side.
        rows: axes one above the other.

    Returns:
        The figure and an array (rows, columns) of its axes.
    """
    with mpl.rc_context(SETTINGS):
        fig = Figure(figsize=(width, height), layout="constrained")
        axes = fig.subplots(rows, columns, squeeze=False)
    return fig, axes


def rows_figure(names: Sequence[str], columns: int, width: float, row_height: float) -> Any:
    """A figure with a headed row of axes per name; call it inside `in_style`.

    Returns:
        The figure and, for each name, its `columns` axes.
    """
    fig = Figure(figsize=(width, row_height * len(names) + 0.3), layout="constrained")
    parts = fig.subfigures(len(names), 1, squeeze=False)[:, 0]
    axes = []
    for name, part in zip(names, parts, strict=True):
        part.suptitle(name, x=0.01, ha="left", fontsize=12, fontweight="bold")
        axes.append(part.subplots(1, columns, squeeze=False)[0])
    return fig, axes


def note(fig: Figure, text: str) -> None:
    """Write a note below a figure, wrapped at its width: sources, and the meaning of bars."""
    characters = int(16 * fig.get_figwidth())
    fig.supxlabel(textwrap.fill(text, characters), fontsize=8, color="#555555")


def percent(axes: Axes, axis: str) -> None:
    """Label the ticks of an axis of shares in percent."""
    getattr(axes, f"{axis}axis").set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * value:g}")
    )


def save(fig: Figure, folder: Path, name: str) -> None:
    """Write a figure as PNG and SVG, each atomically.

    Args:
        fig: the figure.
        folder: created if missing.
        name: file name without suffix.
    """
    for kind in ("png", "svg"):
        write_figure(fig, folder / f"{name}.{kind}")


def write_figure(fig: Figure, path: Path) -> None:
    """Write a figure in the format of the path's suffix (PNG without one).

    Text is drawn literally: control characters are escaped, and dollar signs start no formula.
    """
    kind = path.suffix.removeprefix(".").lower() or "png"
    metadata = {"Date": None} if kind == "svg" else {}
    with mpl.rc_context(SETTINGS), replacing(path) as part:
        _plain_texts(fig)
        fig.savefig(part, format=kind, metadata=metadata, facecolor="white")


def _plain_texts(fig: Figure) -> None:
    for text in fig.findobj(Text):
        text.set_parse_math(False)
        text.set_text(_drawable(text.get_text()))
    for axes in fig.findobj(Axes):
        for axis in (axes.xaxis, axes.yaxis):
            named = axis.get_major_formatter()
            if isinstance(named, FixedFormatter | FuncFormatter | StrCategoryFormatter):
                axis.set_major_formatter(FuncFormatter(_printable_labels(named)))


def _printable_labels(named: Formatter) -> Callable[[float, int | None], str]:
    return lambda value, position: _drawable(named(value, position))


def _drawable(text: str) -> str:
    """Printable text without tabs, for which fonts have no glyph."""
    return printable(text).replace("\t", "    ")

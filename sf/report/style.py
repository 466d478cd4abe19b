"""How every picture of a study looks, and how it is written.

Colours are Okabe and Ito's, told apart by colour-blind readers; each system also has a marker and
a line of its own, so that a picture survives grey printing.
"""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

__all__ = ["SYSTEMS", "Look", "figure", "in_style", "look", "note", "rows_figure", "save"]

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
}


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of a system."""

    colour: str
    marker: str
    line: str


SYSTEMS: dict[str, Look] = {
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


def look(system: str, others: list[str] | None = None) -> Look:
    """The look of a system; unnamed ones take theirs by their place in `others`."""
    if system in SYSTEMS:
        return SYSTEMS[system]
    names = sorted(set(others or [system]) - set(SYSTEMS))
    return OTHERS[names.index(system) % len(OTHERS)]


in_style = mpl.rc_context(SETTINGS)
"""Decorates a function that draws, so that all its artists are made in the house's look."""


def figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, Any]:
    """An empty figure in the house's look, without a display.

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
    """Under a figure: where its figures come from, what its bars mean; wrapped at its width."""
    characters = int(16 * fig.get_figwidth())
    fig.supxlabel(textwrap.fill(text, characters), fontsize=8, color="#555555")


def percent(axes: Axes, axis: str) -> None:
    """Write the ticks of an axis, whose values are shares, in percent."""
    getattr(axes, f"{axis}axis").set_major_formatter(
        FuncFormatter(lambda value, _: f"{100 * value:g}")
    )


def save(fig: Figure, folder: Path, name: str) -> None:
    """Write a figure as PNG and SVG, each beside its place first, then renamed.

    Args:
        fig: the figure.
        folder: made when it is not there.
        name: file name without suffix.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(SETTINGS):
        for kind, metadata in (("png", {}), ("svg", {"Date": None})):
            part = folder / f".{name}.{kind}.part"
            fig.savefig(part, format=kind, metadata=metadata, facecolor="white")
            os.replace(part, folder / f"{name}.{kind}")

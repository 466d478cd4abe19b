"""Figures of token ratio and accuracy over p."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from sf.plotting import figure, in_style, look, note, percent

__all__ = ["curve_picture", "layer_picture"]

TITLES = {
    "base": "base + top-p (ZipVL)",
    "full": "full attention",
    "zipvl": "base + top-p (ZipVL)",
    "sparsity_forcing": "Sparsity Forcing",
    "v1_range": "Sparsity Forcing, p from U(0, 1)",
    "distil": "distilled from full attention (ours)",
    "zipvl_sft": "SFT under ZipVL",
}


def title(row: str) -> str:
    """A row's display name."""
    return TITLES.get(row, row.replace("_", " "))


def _overall(curve: pd.DataFrame) -> pd.DataFrame:
    return curve[curve["media"] == "all"].sort_values("retention_p")


def _band(axes: Axes, curve: pd.DataFrame, x: str, y: str, low: str, high: str, row: str) -> None:
    style = look(row)
    axes.fill_between(
        curve[x], curve[low], curve[high], color=style.colour, alpha=0.15, linewidth=0
    )
    axes.plot(
        curve[x],
        curve[y],
        color=style.colour,
        marker=style.marker,
        linestyle=style.line,
        label=title(row),
    )


@in_style
def curve_picture(curves: Mapping[str, pd.DataFrame], where: str) -> Figure:
    """Threshold against ratio and accuracy, and accuracy against ratio, with 95 % intervals.

    Args:
        curves: `curve_table` of each row.
        where: the evaluated data, e.g. "calibration split, 200 questions".
    """
    fig, axes = figure(12.0, 3.9, columns=3)
    ratio, accuracy, trade_off = axes[0]
    for row, table in curves.items():
        curve = _overall(table)
        _band(ratio, curve, "retention_p", "token_ratio", "ratio_low", "ratio_high", row)
        _band(accuracy, curve, "retention_p", "accuracy", "low", "high", row)
        _band(trade_off, curve, "token_ratio", "accuracy", "low", "high", row)
    ratio.set(title="Kept tokens", xlabel="retention threshold p", ylabel="token ratio (%)")
    accuracy.set(title="Accuracy", xlabel="retention threshold p", ylabel="correct answers (%)")
    trade_off.set(
        title="Accuracy at a ratio", xlabel="token ratio (%)", ylabel="correct answers (%)"
    )
    for panel in (ratio, accuracy, trade_off):
        percent(panel, "y")
        panel.set_ylim(0, 1.03)
    percent(trade_off, "x")
    trade_off.set_xlim(0, 1.03)
    if len(curves) > 1:
        trade_off.legend(loc="lower right")
    note(fig, f"{where}; bands: 95 % intervals")
    return fig


@in_style
def layer_picture(layers: Mapping[str, pd.DataFrame], where: str) -> Figure:
    """Token ratio of each layer, one panel per row, one line per threshold.

    Args:
        layers: `layer_table` of each row.
        where: the evaluated data.
    """
    fig, axes = figure(1.2 + 4.6 * len(layers), 3.9, columns=len(layers))
    shades = ScalarMappable(Normalize(0.0, 1.0), "viridis_r")
    for panel, (row, table) in zip(axes[0], layers.items(), strict=True):
        for retention_p, part in table.groupby("retention_p"):
            panel.plot(
                part["layer"] + 1,
                part["token_ratio"],
                marker="o",
                markersize=4,
                color=shades.to_rgba(np.asarray(retention_p)),
            )
        panel.set(title=title(row), xlabel="layer", ylim=(0, 1.03))
        panel.xaxis.get_major_locator().set_params(integer=True)
        percent(panel, "y")
    axes[0][0].set_ylabel("token ratio (%)")
    bar = fig.colorbar(shades, ax=list(axes[0]), label="retention threshold p", shrink=0.9)
    bar.outline.set_visible(False)
    note(fig, where)
    return fig

"""Outputs of a run besides weights: a table of sample answers and a plot of its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sf.plotting import figure, in_style, note, percent
from sf.tables import table_of, write_csv

__all__ = ["SampleTable", "training_picture"]


class SampleTable:
    r"""One group of rollouts per log interval, as CSV.

    Control characters of the answers are shown as escapes such as ``\r``.

    Args:
        path: the table; made with its first rows. Rows of steps behind `done` are dropped: a
            resumed run writes them again.
        done: steps that an earlier run finished.
    """

    def __init__(self, path: Path, done: int = 0) -> None:
        self.path = path
        self._rows: list[dict[str, Any]] = []
        if path.is_file():
            # As text: an answer "007" must not become a number.
            kept = pd.read_csv(path, keep_default_na=False, dtype=str)
            kept = kept[kept["step"].astype(int) <= done]
            self._rows = [dict(zip(kept.columns, row, strict=True)) for row in kept.to_numpy()]

    def add(self, step: int, rollouts: Sequence[dict[str, Any]]) -> None:
        """Append the rollouts of one step; the file is whole at any time."""
        self._rows += [{"step": step, **rollout} for rollout in rollouts]
        write_csv(table_of(self._rows), self.path, float_format=None)


PANELS = (
    ("accuracy and reward", "mean over rollouts", ("accuracy", "efficiency", "reward")),
    ("kept tokens", "share (%)", ("token_ratio", "effective_ratio", "sharpness")),
    ("loss and reference", "nats per token", ("loss", "kl", "entropy")),
    ("rollouts or groups", "share (%)", ("gate", "zero_advantage_share", "truncated_share")),
)
_POINTS = 20  # a smoothed line has about this many independent points
_MARKED = 30  # a line with fewer points has markers


@in_style
def training_picture(history: pd.DataFrame, where: str) -> Figure | None:
    """Reward and its parts, kept tokens (also per layer), loss, KL and entropy, shares, over steps.

    Args:
        history: of `sf.history.history_table`.
        where: what was trained, for the line below.

    Returns:
        The figure; None when the history has none of these.
    """
    fig, axes = figure(11.0, 6.4, columns=2, rows=2)
    window = max(1, len(history) // _POINTS)
    for panel, (title, label, names) in zip(axes.flat, PANELS, strict=True):
        panel.set(title=title.capitalize(), xlabel="training step", ylabel=label)
        if title.startswith("kept"):
            for layer in [name for name in map(str, history) if "_layer/" in name]:
                panel.plot(history["step"], history[layer], color="#bbbbbb", linewidth=0.8)
        for name in names:
            if name in history:
                _line(panel, history, name, window)
        if not panel.lines:
            panel.set_visible(False)  # the objective has none of these figures
            continue
        if "%" in label:
            percent(panel, "y")
        if panel.get_legend_handles_labels()[0]:
            panel.legend()
    if not any(panel.get_visible() for panel in axes.flat):
        return None
    smooth = f"; thick: mean over {window} logged values" if window > 1 else ""
    note(fig, f"{where}; grey: single layers{smooth}")
    return fig


def _line(panel: Axes, history: pd.DataFrame, name: str, window: int) -> None:
    """A figure over steps; many values are smoothed, with the single values thin behind."""
    values = history[["step", name]].dropna()
    marker = "o" if len(values) < _MARKED else ""
    smooth = values[name].rolling(window, min_periods=1, center=True).mean()
    (line,) = panel.plot(
        values["step"], smooth, label=name.replace("_", " "), marker=marker, markersize=4
    )
    if window > 1:
        panel.plot(values["step"], values[name], color=line.get_color(), alpha=0.3, linewidth=0.8)

"""What a run leaves besides weights: a table of sample answers and a picture of its figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from sf.report.style import figure, in_style, note, percent

__all__ = ["SampleTable", "history_table", "training_picture"]


class SampleTable:
    """One group of rollouts per log interval, as CSV.

    Args:
        path: the table; made with its first rows. Rows of steps behind `done` are dropped: a
            resumed run writes them again.
        done: steps that an earlier run finished.
    """

    def __init__(self, path: Path, done: int = 0) -> None:
        self.path = path
        self._rows: list[Any] = []
        if path.is_file():
            kept = pd.read_csv(path, keep_default_na=False)
            self._rows = kept[kept["step"] <= done].to_dict("records")

    def add(self, step: int, rollouts: Sequence[dict[str, Any]]) -> None:
        """Append the rollouts of one step; the file is whole at any time."""
        self._rows += [{"step": step, **rollout} for rollout in rollouts]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        pd.DataFrame(self._rows).to_csv(partial, index=False)
        partial.replace(self.path)


def history_table(path: Path) -> pd.DataFrame:
    """The figures over steps; a resumed run repeats steps, of which the last one counts."""
    if not path.is_file():
        return pd.DataFrame({"step": []})
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    steps = {int(line["step"]): line for line in lines}
    return pd.DataFrame([steps[step] for step in sorted(steps)])


PANELS = (
    ("accuracy and reward", ("accuracy", "efficiency", "reward")),
    ("kept tokens, %", ("token_ratio", "effective_ratio", "sharpness")),
    ("loss and reference", ("loss", "kl", "entropy")),
    ("shares of rollouts or groups, %", ("gate", "zero_advantage_share", "truncated_share")),
)


@in_style
def training_picture(history: pd.DataFrame, where: str) -> Figure:
    """Reward parts, kept tokens (also per layer), KL and entropy, shares, over steps.

    Args:
        history: `history_table`.
        where: what was trained, for the line below.
    """
    fig, axes = figure(10.0, 6.0, columns=2, rows=2)
    for at, (title, names) in enumerate(PANELS):
        panel = axes[at // 2][at % 2]
        panel.set_title(title)
        panel.set_xlabel("step")
        if title.startswith("kept"):
            for layer in [name for name in map(str, history) if "_layer/" in name]:
                panel.plot(history["step"], history[layer], color="#bbbbbb", linewidth=0.8)
        for name in names:
            if name in history:
                panel.plot(history["step"], history[name], label=name.replace("_", " "))
        if not panel.lines:
            panel.set_visible(False)  # the objective has none of these figures
            continue
        if title.endswith("%"):
            percent(panel, "y")
        if panel.get_legend_handles_labels()[0]:
            panel.legend()
    note(fig, f"{where}; grey: single layers")
    return fig

"""Figures of a study: before and after training, and the benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure

from sf.evaluation.benchmarks import Benchmark
from sf.plotting import figure, in_style, look, marks, note, percent
from sf.report.curves import title
from sf.tables import rows_at

__all__ = ["accuracy_curve_picture", "benchmark_picture", "layers_picture"]


@in_style
def accuracy_curve_picture(
    curves: Mapping[str, pd.DataFrame], matched: Mapping[str, pd.DataFrame], where: str
) -> Figure:
    """Accuracy against token ratio before and after training, and the difference at equal ratio.

    Args:
        curves: `curve_table` of "base" and of each objective.
        matched: `sf.report.curve_comparison.at_matched_ratio` of each objective.
        where: the evaluated data.
    """
    fig, axes = figure(11.0, 4.2, columns=2)
    left, right = axes[0]
    for row, curve in curves.items():
        part = curve[curve["media"] == "all"].sort_values("token_ratio")
        interval = part["low"], part["high"]
        style = look(row, list(curves))
        marks(left, part["token_ratio"], part["accuracy"], interval, style, title(row))
    left.set(
        title="Accuracy at a token ratio", xlabel="token ratio (%)", ylabel="correct answers (%)"
    )
    left.set_xlim(0, 1.03)
    left.legend(loc="lower right")
    right.axhline(0.0, color="#555555", linewidth=1, linestyle="--")
    for row, table in matched.items():
        part = table[table["verdict"] != "outside"]
        points = [100 * part[name] for name in ("difference", "low", "high")]
        style = look(row, list(curves))
        marks(
            right, part["token_ratio"], points[0], (points[1], points[2]), style, title(row), False
        )
    right.set(
        title="Trained minus base at the same ratio",
        xlabel="token ratio (%)",
        ylabel="difference (points)",
    )
    right.set_xlim(0, 1.03)
    percent(left, "y")
    percent(left, "x")
    percent(right, "x")
    note(fig, f"{where}; bars: 95 % intervals, right paired over questions")
    return fig


@in_style
def layers_picture(
    layers: Mapping[str, pd.DataFrame], retention_p: float, where: str
) -> Figure | None:
    """Token ratio of each layer at one threshold, before and after; None if no curve has it.

    Args:
        layers: `layer_table` of "base" and of each objective.
        retention_p: the threshold.
        where: the evaluated data.
    """
    parts = {name: rows_at(table, "retention_p", retention_p) for name, table in layers.items()}
    parts = {name: part for name, part in parts.items() if len(part)}
    if not parts:
        return None
    count = max(part["layer"].max() for part in parts.values()) + 1
    fig, axes = figure(min(12.0, 4.0 + 0.35 * count), 3.8)
    panel = axes[0][0]
    for at, (row, part) in enumerate(parts.items()):
        style = look(row, list(parts))
        shift = 0.12 * (at - (len(parts) - 1) / 2) if count < 12 else 0.0
        interval = part["low"], part["high"]
        marks(panel, part["layer"] + 1 + shift, part["token_ratio"], interval, style, title(row))
    heading = f"Kept tokens by layer at p = {retention_p:g}"
    panel.set(title=heading, xlabel="layer", ylabel="token ratio (%)")
    panel.set_ylim(0, 1.03)
    panel.set_xlim(0.5, count + 0.5)
    panel.xaxis.get_major_locator().set_params(integer=True)
    percent(panel, "y")
    panel.legend(loc="best")
    note(fig, f"{where}; bars: 95 % intervals")
    return fig


@in_style
def benchmark_picture(
    table: pd.DataFrame, benchmarks: Sequence[Benchmark], rows: Sequence[str], where: str
) -> Figure | None:
    """Score and token ratio of every benchmark, one marker per row; None without values.

    Args:
        table: from `sf.report.benchmark_tables.measured`, of one model.
        benchmarks: in the order of the axis.
        rows: in the order of the legend.
        where: the model and the kind of data.
    """
    shown = [benchmark for benchmark in benchmarks if benchmark.name in set(table["benchmark"])]
    if not shown:
        return None
    fig, axes = figure(12.0, 5.8, rows=2)
    score, ratio = axes[:, 0]
    for at, row in enumerate(rows):
        lines = {line["benchmark"]: line for line in table[table["row"] == row].to_dict("records")}
        measured = [(place, c, lines[c.name]) for place, c in enumerate(shown) if c.name in lines]
        if not measured:
            continue
        style = look(row, list(rows))
        places = [place + 0.22 * (at - (len(rows) - 1) / 2) for place, _, _ in measured]
        values, low, high = (
            [100 * line[name] / c.scale for _, c, line in measured]
            for name in ("score", "low", "high")
        )
        marks(score, places, values, (low, high), style, title(row), joined=False)
        ratio.bar(
            places,
            [100 * line["token_ratio"] for _, _, line in measured],
            width=0.2,
            color=style.colour,
            edgecolor="white",
        )
    for panel in (score, ratio):
        panel.set_xlim(-0.6, len(shown) - 0.4)
        panel.set_xticks(range(len(shown)), [c.title for c in shown], rotation=25, ha="right")
        panel.grid(axis="x", visible=False)
        panel.set_ylim(0, 104)
    score.set_xticklabels([])
    score.set(title="Score", ylabel="% of the highest possible")
    ratio.set(title="Kept tokens", ylabel="token ratio (%)")
    fig.legend(*score.get_legend_handles_labels(), loc="outside upper right", ncols=len(rows))
    note(fig, f"{where}; error bars: 95 % intervals")
    return fig

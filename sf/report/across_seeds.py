"""Comparison of training objectives: accuracy at equal token ratio, over training seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sf.evaluation.intervals import interval
from sf.plotting import figure, in_style, look, marks, note, percent, save
from sf.report.benchmark_tables import Cell
from sf.report.curve_comparison import Array, Curve, both_curves, interpolated, row_weights
from sf.report.curves import title
from sf.report.page import Picture, Section, Table
from sf.report.results import Study
from sf.tables import rows_at, write_csv

__all__ = ["across_seeds", "across_seeds_picture", "across_seeds_section"]

UNTRAINED = "base"
RATIOS = (0.15, 0.25, 0.35, 0.5, 0.75)
"""Token ratios at which rows are compared; the paper reaches a quarter."""


@dataclass(frozen=True)
class _Drawn:
    """A curve for each bootstrap draw of the questions; the first draw is the data.

    Attributes:
        retention_p: (points,) ascending.
        ratio, right: (draws, points).
    """

    retention_p: Array
    ratio: Array
    right: Array

    @classmethod
    def of(cls, curve: Curve, weights: Array) -> _Drawn:
        return cls(curve.retention_p, weights @ curve.ratio.T, weights @ curve.correct.T)

    def at(self, ratio: float) -> Array:
        """(draws,), accuracy at a token ratio; nan outside the curve."""
        pairs = zip(self.ratio, self.right, strict=True)
        return np.array([interpolated(ratio, ratios, right) for ratios, right in pairs])


def across_seeds(
    base: pd.DataFrame,
    trained: Mapping[str, Sequence[pd.DataFrame]],
    seed: int,
    ratios: Sequence[float] = RATIOS,
) -> pd.DataFrame:
    """Compare rows at the same token ratios, each by linear interpolation of its own curve.

    The interval of a difference is a two-level bootstrap over questions, paired between the models,
    and over training seeds.

    Args:
        base: answers of the base model: columns retention_p, id, token_ratio, correct.
        trained: row name -> answers of the models from its seeds to the same questions.
        seed: of the bootstrap.
        ratios: token ratios in (0, 1).

    Returns:
        Per row ("base" first) and ratio: row, seeds (count), token_ratio, accuracy (mean over
        seeds), least, most (over seeds), difference (to the base model), low, high (95 %). nan if
        the curve of the base model or of a seed does not reach the ratio; no extrapolation.

    Raises:
        DataError: the models did not answer the same rows.
    """
    curve, _ = both_curves(base, base)
    weights = row_weights(curve.ratio.shape[1], seed)
    untrained = _Drawn.of(curve, weights)
    lines = []
    for row, runs in {UNTRAINED: [base], **trained}.items():
        drawn = [_Drawn.of(both_curves(base, run)[1], weights) for run in runs]
        rng = np.random.default_rng(seed)
        chosen = rng.integers(0, len(runs), size=(len(weights), len(runs)))
        chosen[0] = np.arange(len(runs))
        for ratio in ratios:
            accuracy = np.stack([run.at(ratio) for run in drawn], axis=1)
            line = {"row": row, "seeds": len(runs), "token_ratio": ratio}
            if not np.isnan(accuracy[0]).any():
                mean = np.take_along_axis(accuracy, chosen, axis=1).mean(axis=1)
                line |= {"accuracy": mean[0], "least": accuracy[0].min(), "most": accuracy[0].max()}
                change = mean - untrained.at(ratio)
                if not np.isnan(change[0]):
                    low, high = interval(change[1:][~np.isnan(change[1:])])
                    line |= {"difference": change[0], "low": low, "high": high}
            lines.append(line)
    names = ["row", "seeds", "token_ratio", "accuracy", "least", "most", "difference"]
    return pd.DataFrame(lines, columns=[*names, "low", "high"])


def at_each_retention_p(trained: Mapping[str, Sequence[pd.DataFrame]]) -> pd.DataFrame:
    """Token ratio and accuracy of every run at every retention_p.

    Returns:
        Columns row, run (its index), retention_p, token_ratio, accuracy.
    """
    parts = [
        answers.groupby("retention_p")[["token_ratio", "correct"]].mean().reset_index().assign(
            row=row, run=at
        )
        for row, runs in trained.items()
        for at, answers in enumerate(runs)
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True).rename(columns={"correct": "accuracy"})


@in_style
def across_seeds_picture(points: pd.DataFrame, matched: pd.DataFrame, where: str) -> Figure:
    """Accuracy against token ratio, with single runs and means over seeds; and the differences.

    Args:
        points: from `at_each_retention_p`, including "base".
        matched: from `across_seeds`.
        where: model, split and number of questions.
    """
    rows = list(dict.fromkeys(points["row"]))
    fig, axes = figure(12.0, 4.8, columns=2)
    left, right = axes[0]
    for at, row in enumerate(rows):
        style, points_of_row = look(row, rows), points[points["row"] == row]
        for _, run in points_of_row.groupby("run"):
            left.plot(run["token_ratio"], run["accuracy"], color=style.colour, alpha=0.3,
                      linewidth=0.8)  # fmt: skip
        mean = points_of_row.groupby("retention_p")[["token_ratio", "accuracy"]].mean()
        left.plot(mean["token_ratio"], mean["accuracy"], color=style.colour, marker=style.marker,
                  linestyle=style.line, label=title(row))  # fmt: skip
        lines = matched[(matched["row"] == row) & matched["difference"].notna()]
        if row == UNTRAINED or lines.empty:
            continue
        shift = 0.008 * (at - len(rows) / 2)
        change, low, high = (100 * lines[name] for name in ("difference", "low", "high"))
        places = lines["token_ratio"] + shift
        marks(right, places, change, (low, high), style, title(row), joined=False)
    left.set(title="Accuracy at a token ratio", xlabel="token ratio (%)",
             ylabel="correct answers (%)")  # fmt: skip
    left.set_xlim(0, 1.03)
    left.legend(loc="lower right")
    right.axhline(0.0, color="#555555", linewidth=1, linestyle="--")
    right.set(title="Difference to the base model at the same ratio", xlabel="token ratio (%)",
              ylabel="difference (points)")  # fmt: skip
    right.set_xlim(0, 1.03)
    percent(left, "y")
    percent(left, "x")
    percent(right, "x")
    note(fig, f"{where}; thin: single seeds; bars: 95 %, over questions and training seeds; "
              "markers at the same ratio are placed side by side")  # fmt: skip
    return fig


def across_seeds_section(study: Study, folder: Path) -> Section | None:
    """The comparison of the study's objectives; None with one objective from one seed.

    Args:
        study: its results.
        folder: of the report, for figures and `across_seeds.csv`.
    """
    if len(study.objectives) * len(study.seeds) <= 1:
        return None
    tables, pictures, written = [], [], []
    for model in study.models:
        base = study.result("accuracy_curve", model=model, row=UNTRAINED)
        trained = {name: _answers(study, model, name) for name in study.objectives}
        for name in study.curve_methods:
            result = study.result("accuracy_curve", model=model, row=name)
            trained[name] = [result.table("answers.parquet")] if result is not None else []
        trained = {name: runs for name, runs in trained.items() if runs}
        if base is None or not trained:
            continue
        untrained = base.table("answers.parquet")
        matched = across_seeds(untrained, trained, int(base.parameters["seed"]))
        points = at_each_retention_p({UNTRAINED: [untrained], **trained})
        where = f"{model}, {base.parameters['split']} split, {untrained['id'].nunique()} questions"
        name = f"across_seeds_{model}"
        save(across_seeds_picture(points, matched, where), folder / "figures", name)
        pictures.append(Picture(name, f"{model}: training objectives over seeds."))
        tables.append(_table(model, matched, points, (UNTRAINED, *study.curve_methods)))
        written.append(matched.assign(model=model))
    if not written:
        return None
    write_csv(pd.concat(written), folder / "tables" / "across_seeds.csv")
    text = [
        "Accuracy (%) at equal token ratios, by linear interpolation of each model's curve: "
        "mean over training seeds, their range, and in small print the difference "
        "to the base model with a 95 % bootstrap interval over questions and seeds. All seeds "
        "start from one base model and share its data."
    ]
    return Section("Objectives over training seeds", text=text, tables=tables, pictures=pictures)


def _answers(study: Study, model: str, objective: str) -> list[pd.DataFrame]:
    results = [
        study.result("accuracy_curve", model=model, row=objective, seed=str(seed))
        for seed in study.seeds
    ]
    return [result.table("answers.parquet") for result in results if result is not None]


def _table(
    model: str, matched: pd.DataFrame, points: pd.DataFrame, untrained: Sequence[str]
) -> Table:
    ratios = matched["token_ratio"].unique()
    largest = points.loc[points["retention_p"] < 1.0, "retention_p"].max()
    rows = []
    for row, lines in matched.groupby("row", sort=False):
        points_of_row = points[points["row"] == row]
        rows.append(
            [
                Cell("none" if row == UNTRAINED else str(row)),
                Cell("" if row in untrained else str(lines["seeds"].iloc[0])),
                *(_cell(line, bool(row == UNTRAINED)) for line in lines.to_dict("records")),
                _spread(rows_at(points_of_row, "retention_p", largest)["token_ratio"]),
                _spread(rows_at(points_of_row, "retention_p", 1.0)["accuracy"]),
            ]
        )
    return Table(
        name=f"across_seeds_{model}",
        caption=f"{model}: accuracy (%) at equal token ratio",
        header=[
            "trained with",
            "seeds",
            *(f"at {100 * ratio:g} % of the tokens" for ratio in ratios),
            f"token ratio at p = {largest:g} (%)",
            "accuracy with full attention (%)",
        ],
        rows=rows,
    )


def _cell(line: Mapping[Any, Any], untrained: bool) -> Cell:
    if np.isnan(line["accuracy"]):
        return Cell("outside the curve")
    if untrained:
        return Cell(f"{100 * line['accuracy']:.1f}")
    text = f"{100 * line['accuracy']:.1f}"
    if line["seeds"] > 1:
        text += f" ({100 * line['least']:.1f} to {100 * line['most']:.1f})"
    if np.isnan(line["difference"]):
        return Cell(text)
    change = f"{100 * line['difference']:+.1f}, {100 * line['low']:+.1f} to"
    return Cell(text, f"{change} {100 * line['high']:+.1f}")


def _spread(values: pd.Series) -> Cell:
    if values.empty:
        return Cell("not measured")
    text = f"{100 * values.mean():.1f}"
    return Cell(text if len(values) == 1 else
                f"{text} ({100 * values.min():.1f} to {100 * values.max():.1f})")  # fmt: skip

"""Figures 4a, 4b and 5 of the paper: token ratio and accuracy by threshold, length and layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
from matplotlib.figure import Figure as Drawing

from sf.evaluation.intervals import bootstrap_mean, wilson
from sf.plotting import figure, in_style, look, note, percent
from sf.report.cells import Figure
from sf.report.curves import curve_picture, title
from sf.report.paper_lines import Line, PaperTable, Request, a_model_each
from sf.report.pictures import layers_picture
from sf.tables import rows_at

__all__ = [
    *("change", "curve", "curve_pictures", "layers", "layers_change", "layers_pictures"),
    *("length_pictures", "lengths", "lengths_sentence"),
]

OWN = "sparsity_forcing"
NOT_BOTH = "results before and after training are not both available"
LENGTH_GROUPS = 4
SHARES = ("token ratio (%)", "correct answers (%)")


def curve(request: Request) -> PaperTable:
    """One line per threshold."""
    lines = []
    for model, row, result in request.each("accuracy_curve"):
        if result is None:
            lines.append(Line((model, row.name, ""), (Figure(), Figure())))
            continue
        points = result.table("curve.csv")
        points = points[points["media"] == "all"].sort_values("retention_p")
        for point in points.to_dict("records"):
            names = ("token_ratio", "ratio_low", "ratio_high"), ("accuracy", "low", "high")
            cells = tuple(
                request.share(result, *(point[name] for name in (*part, "samples")))
                for part in names
            )
            lines.append(Line((model, row.name, f"{point['retention_p']:g}"), cells))
    return PaperTable(("model", "trained with", "retention threshold p"), SHARES, tuple(lines), {})


def lengths(request: Request) -> PaperTable:
    """Questions grouped by similar prompt length, at the evaluated threshold."""
    lines = []
    for model, row, result in request.each("accuracy_curve"):
        if result is None:
            lines.append(Line((model, row.name, ""), (Figure(), Figure())))
            continue
        answers = result.table("answers.parquet")
        answers = rows_at(answers, "retention_p", _largest_retention_p(answers))
        ranks = answers["prompt_tokens"].rank(method="first")
        groups = pd.qcut(ranks, min(LENGTH_GROUPS, len(answers)), labels=False)
        for _, part in answers.groupby(groups):
            shortest, longest = int(part["prompt_tokens"].min()), int(part["prompt_tokens"].max())
            right, count = int((part["correct"] >= 0.5).sum()), len(part)
            ratio = part["token_ratio"].to_numpy(float)
            span = bootstrap_mean(ratio, int(result.parameters["seed"]))
            cells = (
                request.share(result, float(ratio.mean()), *span, count),
                request.share(result, right / count, *wilson(right, count), count),
            )
            lines.append(Line((model, row.name, f"{shortest} to {longest}"), cells))
    return PaperTable(("model", "trained with", "prompt tokens"), SHARES, tuple(lines), {})


def layers(request: Request) -> PaperTable:
    """One column per layer, at the evaluated threshold."""
    lines, count = [], 0
    for model, row, result in request.each("accuracy_curve"):
        if result is None:
            lines.append(Line((model, row.name, ""), ()))
            continue
        ratios = result.table("layers.csv")
        retention_p = _largest_retention_p(ratios)
        part = rows_at(ratios, "retention_p", retention_p).sort_values("layer").to_dict("records")
        count = max(count, len(part))
        cells = tuple(
            request.share(result, line["token_ratio"], line["low"], line["high"]) for line in part
        )
        lines.append(Line((model, row.name, f"{retention_p:g}"), cells))
    full = (
        Line(line.keys, (*line.figures, *(Figure() for _ in range(count - len(line.figures)))))
        for line in lines
    )
    columns = tuple(f"layer {layer + 1} (%)" for layer in range(count))
    return PaperTable(("model", "trained with", "retention threshold p"), columns, tuple(full), {})


def _largest_retention_p(measured: pd.DataFrame) -> float:
    """The largest sparse threshold, which is the evaluated one."""
    return float(measured.loc[measured["retention_p"] < 1.0, "retention_p"].max())


def _before_after(lines: Sequence[Line]) -> tuple[Line, Line] | None:
    """The lines before and after training at the largest sparse p; None unless both exist."""
    at = {line.keys[1]: line for line in lines if float(line.keys[2]) < 1}
    return (at["base"], at[OWN]) if at.keys() >= {"base", OWN} else None


def change(model: str, lines: Sequence[Line]) -> str:
    """The effect of training at the evaluated threshold."""
    both = _before_after(lines)
    if both is None:
        return f"{model}: {NOT_BOTH}."
    ratios, right = ([line.figures[column].text for line in both] for column in (0, 1))
    return (
        f"{model}: at p = {both[1].keys[2]}, training changes the kept tokens from {ratios[0]} % "
        f"to {ratios[1]} % and correct answers from {right[0]} % to {right[1]} %."
    )


def layers_change(model: str, lines: Sequence[Line]) -> str:
    """The effect of training on the mean over layers."""
    both = _before_after(lines)
    if both is None:
        return f"{model}: {NOT_BOTH}."
    before, after = (
        sum(cell.value or 0.0 for cell in line.figures) / len(line.figures) for line in both
    )
    return (
        f"{model}: averaged over layers, {before:.1f} % of the tokens are kept at "
        f"p = {both[1].keys[2]} before training, {after:.1f} % after."
    )


def lengths_sentence(model: str, lines: Sequence[Line]) -> str:
    """The share that the last row keeps of short and of long prompts."""
    row = lines[-1].keys[1]
    parts = [
        f"{line.figures[0].text} % of prompts of {line.keys[2]} tokens"
        for line in lines
        if line.keys[1] == row
    ]
    return f"{model}, {row} keeps {', '.join(parts)}."


@a_model_each
def curve_pictures(request: Request, table: PaperTable, model: str) -> Drawing | None:
    """Draw threshold, ratio and accuracy."""
    curves = _tables(request, model, "curve.csv")
    return curve_picture(curves, request.of(model)) if curves else None


@a_model_each
def layers_pictures(request: Request, table: PaperTable, model: str) -> Drawing | None:
    """Draw the token ratio by layer."""
    retention_p = max((float(line.keys[2]) for line in table.lines if line.keys[2]), default=1.0)
    return layers_picture(_tables(request, model, "layers.csv"), retention_p, request.of(model))


@a_model_each
def length_pictures(request: Request, table: PaperTable, model: str) -> Drawing | None:
    """Draw token ratio and accuracy by length."""
    lines = [line for line in table.lines if line.keys[0] == model and line.keys[2]]
    return _length_picture(lines, request.of(model)) if lines else None


def _tables(request: Request, model: str, name: str) -> Mapping[str, pd.DataFrame]:
    return {
        row.name: result.table(name)
        for of, row, result in request.each("accuracy_curve")
        if of == model and result is not None
    }


@in_style
def _length_picture(lines: Sequence[Line], where: str) -> Drawing:
    """Token ratio and accuracy against prompt length, one marker per group of questions."""
    fig, axes = figure(10.0, 3.9, columns=2)
    names = list(dict.fromkeys(line.keys[1] for line in lines))
    for name in names:
        style = look(name, names)
        part = [line for line in lines if line.keys[1] == name]
        middles = [sum(map(float, line.keys[2].split(" to "))) / 2 for line in part]
        for panel, column in zip(axes[0], (0, 1), strict=True):
            values = [(line.figures[column].value or 0.0) / 100 for line in part]
            panel.plot(
                middles,
                values,
                color=style.colour,
                marker=style.marker,
                linestyle=style.line,
                label=title(name),
            )
    for panel, what in zip(axes[0], SHARES, strict=True):
        panel.set(xlabel="prompt length (tokens)", ylabel=what, ylim=(0, 1.03))
        percent(panel, "y")
    axes[0][0].legend(loc="best")
    note(fig, f"{where}; markers: quarters of the questions by prompt length")
    return fig

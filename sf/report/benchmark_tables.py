"""Tables 1 and 2 in the paper's form: measured figures beside the published ones."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from sf.evaluation.benchmarks import BENCHMARKS, EXTRA, Benchmark
from sf.report import published
from sf.report.published import NOT_PUBLISHED
from sf.report.results import Result, Study

__all__ = ["NOT_MEASURED", "Cell", "Line", "beyond", "columns_of", "lines", "measured"]

NOT_MEASURED = "not measured"
MEASURED = "measured"
RATIO = "token_ratio_percent"
AVERAGE = "average"
BEYOND = "beyond the paper"  # the kind of columns that are in neither table
ORIENTATION = "qwen2.5-vl-7b"  # the model whose published rows are the most complete


@dataclass(frozen=True)
class Cell:
    """One figure as text, with its interval and how many samples it is from."""

    text: str
    interval: str = ""
    note: str = ""


@dataclass
class Line:
    """One row of a table: a model under a system, measured or published."""

    model: str
    system: str
    source: str
    cells: dict[str, Cell] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)  # measured average and ratio
    provenance: str = ""


def columns_of(kind: str) -> list[Benchmark]:
    """The columns of table 1 ("image") or 2 ("video")."""
    return [column for column in BENCHMARKS if column.kind == kind]


def measured(study: Study) -> pd.DataFrame:
    """All measured figures, one line each; of several training seeds the first.

    Returns:
        Columns kind, model, system, column, title, score, low, high, scale, samples, token_ratio,
        token_ratio_low, token_ratio_high, published, published_version, run, commit, seconds;
        published is "n/p" where our sources have no figure of that model.
    """
    found = []
    for result in study.everything():
        if result.kind == "evaluate" and study.shown(result):
            scores = _by_column(result.table("scores.csv"))
            found += [
                _measured_line(result, column, scores[column.name])
                for column in (*BENCHMARKS, *EXTRA)
                if column.name in scores
            ]
    names = ["kind", "model", "system", "column", "title", "score", "low", "high", "scale"]
    names += ["samples", "token_ratio", "token_ratio_low", "token_ratio_high"]
    names += ["published", "published_version", "run", "commit"]
    return pd.DataFrame(found, columns=[*names, "seconds"])


def _by_column(table: pd.DataFrame) -> dict[str, Any]:
    """The lines of a table with a `column` column, by it."""
    return {line["column"]: line for line in table.to_dict("records")}


def _measured_line(result: Result, column: Benchmark, score: Any) -> dict[str, object]:
    model, system = result.axes["model"], result.axes["system"]
    there, version = published.latest(column.kind, model, system, column.name)
    return {
        "kind": BEYOND if column in EXTRA else column.kind,
        "model": model,
        "system": system,
        "column": column.name,
        "title": column.title,
        "score": score["score"],
        "low": score["low"],
        "high": score["high"],
        "scale": column.scale,
        "samples": score["samples"],
        "token_ratio": score["token_ratio"],
        "token_ratio_low": score["token_ratio_low"],
        "token_ratio_high": score["token_ratio_high"],
        "published": NOT_PUBLISHED if there is None else there,
        "published_version": version,
        "run": result.run,
        "commit": result.commit,
        "seconds": result.stamp["seconds"],
    }


def _digits(value: float, column: Benchmark) -> str:
    return f"{value:.0f}" if column.scale > 100 else f"{value:.1f}"


def _span(low: float, high: float, column: Benchmark | None = None) -> str:
    if math.isnan(low) or math.isnan(high):
        return ""
    if column is None:
        return f"{low:.1f} to {high:.1f}"
    return f"{_digits(low, column)} to {_digits(high, column)}"


def _ratio_cell(ratio: float, low: float, high: float) -> Cell:
    """In percent; dense attention has no interval."""
    return Cell(f"{100 * ratio:.1f}", "" if low == high else _span(100 * low, 100 * high))


def beyond(table: pd.DataFrame) -> list[list[Cell]]:
    """Model, method, benchmark, score and token ratio of what is in neither table."""
    columns = {column.name: column for column in EXTRA}
    return [
        [
            Cell(line["model"]),
            Cell(line["system"]),
            Cell(line["title"]),
            Cell(
                _digits(line["score"], columns[line["column"]]),
                _span(line["low"], line["high"], columns[line["column"]]),
                f"{line['samples']:.0f} samples, run {line['run']}, commit {line['commit']}",
            ),
            _ratio_cell(line["token_ratio"], line["token_ratio_low"], line["token_ratio_high"]),
        ]
        for line in table[table["kind"] == BEYOND].to_dict("records")
    ]


def lines(table: pd.DataFrame, study: Study, kind: str) -> list[Line]:
    """The rows of table 1 or 2.

    Each measured row is followed by the published row of the same model and system. A study whose
    models the paper does not have ends with the published rows of one that it has.

    Args:
        table: of `measured`.
        study: its axes say which rows there are.
        kind: "image" or "video".
    """
    systems = [*study.methods, *study.objectives]
    found = []
    for model in study.models:
        for system in systems:
            here = table[
                (table["kind"] == kind) & (table["model"] == model) & (table["system"] == system)
            ]
            found.append(_measured_row(model, system, here, kind))
            if model in published.models_with(kind, "full"):
                found += _published_rows(model, system, kind)
    if not set(study.models) & set(published.models_with(kind, "full")):
        for system in systems:
            found += _published_rows(ORIENTATION, system, kind)
    return found


def _measured_row(model: str, system: str, here: pd.DataFrame, kind: str) -> Line:
    line = Line(model, system, MEASURED)
    by_column = _by_column(here)
    columns = columns_of(kind)
    for column in columns:
        if column.name not in by_column:
            line.cells[column.name] = Cell(NOT_MEASURED)
            continue
        score = by_column[column.name]
        line.cells[column.name] = Cell(
            _digits(score["score"], column),
            _span(score["low"], score["high"], column),
            f"{score['samples']:.0f} samples, {100 * score['token_ratio']:.1f} % of tokens, "
            f"run {score['run']}, commit {score['commit']}",
        )
    line.cells[AVERAGE] = Cell(NOT_MEASURED)
    average = published.average({name: each["score"] for name, each in by_column.items()}, columns)
    if average is not None:
        line.values[AVERAGE] = average
        line.cells[AVERAGE] = Cell(f"{average:.1f}", _average_span(average, by_column, columns))
    if len(here):
        line.values[RATIO] = 100 * float(here["token_ratio"].mean())
        # As of the average: the columns' intervals, as if they were independent.
        halves = (here["token_ratio_high"] - here["token_ratio_low"]) / 2
        half, mean = math.sqrt(float((halves**2).sum())) / len(here), here["token_ratio"].mean()
        line.cells[RATIO] = _ratio_cell(mean, mean - half, min(mean + half, 1.0))
        runs, commits = sorted(set(here["run"])), sorted(set(here["commit"]))
        samples = int(here["samples"].sum())
        line.provenance = f"{samples} samples; run {', '.join(runs)}; commit {', '.join(commits)}"
    else:
        line.cells[RATIO] = Cell(NOT_MEASURED)
    return line


def _average_span(value: float, by_column: dict[str, Any], columns: list[Benchmark]) -> str:
    """The average's interval from the columns' widths, as if they were independent."""
    halves = [
        (by_column[c.name]["high"] - by_column[c.name]["low"]) / 2 * 100 / c.scale for c in columns
    ]
    half = math.sqrt(sum(width**2 for width in halves)) / len(halves)
    if math.isnan(half):
        return ""
    return _span(max(0.0, value - half), min(100.0, value + half))


def _published_rows(model: str, system: str, kind: str) -> list[Line]:
    """The published row; two rows where the final version gives less than the first one."""
    columns = columns_of(kind)
    rows = []
    for version in published.VERSIONS:
        scores = {
            name: there
            for name in [RATIO, *(column.name for column in columns), f"{kind}_average"]
            if (there := published.figure(kind, model, system, name, version)) is not None
        }
        if scores:
            rows.append(_published_row(model, system, kind, version, scores))
        if all(column.name in scores for column in columns):
            break
    return rows or [_published_row(model, system, kind, "", {})]


def _published_row(
    model: str, system: str, kind: str, version: str, scores: dict[str, float]
) -> Line:
    columns = columns_of(kind)
    line = Line(model, system, f"published ({version})" if version else "published")
    line.cells[RATIO] = Cell(f"{scores[RATIO]:g}" if RATIO in scores else NOT_PUBLISHED)
    for column in columns:
        there = scores.get(column.name)
        text = NOT_PUBLISHED if there is None else _digits(there, column)
        line.cells[column.name] = Cell(text)
    stated, formed = scores.get(f"{kind}_average"), published.average(scores, columns)
    if stated is not None:
        line.cells[AVERAGE] = Cell(f"{stated:.1f}")
    elif formed is not None:
        line.cells[AVERAGE] = Cell(f"{formed:.1f}", note="formed here from the published scores")
    else:
        line.cells[AVERAGE] = Cell(NOT_PUBLISHED)
    return line

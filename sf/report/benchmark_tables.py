"""Tables 1 and 2 in the paper's form: measured values next to the published ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from sf.evaluation.benchmarks import AVERAGES, BENCHMARKS, EXTRA, Benchmark, parts_of
from sf.report import published
from sf.report.published import NOT_PUBLISHED
from sf.report.results import Result, Study

__all__ = [
    *("NOT_MEASURED", "ORIENTATION", "RATIO", "Cell", "Line", "around_mean", "averages_of"),
    *("benchmarks_of_kind", "beyond", "lines", "mean_score", "measured", "scored", "shown", "span"),
]

NOT_MEASURED = "not measured"
MEASURED = "measured"
RATIO = "token_ratio_percent"
AVERAGE = "average"
BEYOND = "beyond the paper"  # the kind of the benchmarks in neither table
ORIENTATION = "qwen2.5-vl-7b"  # the model whose published rows are the most complete


@dataclass(frozen=True)
class Cell:
    """A value as text, with its interval, a note and a page to link to."""

    text: str
    interval: str = ""
    note: str = ""
    link: str = ""


@dataclass
class Line:
    """One line of a table: a row of the paper for one model, measured or published."""

    model: str
    row: str
    source: str
    cells: dict[str, Cell] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)  # measured averages and ratio
    provenance: str = ""


def benchmarks_of_kind(kind: str) -> list[Benchmark]:
    """The benchmarks of table 1 ("image") or 2 ("video")."""
    return [benchmark for benchmark in BENCHMARKS if benchmark.kind == kind]


def scored(study: Study) -> Iterator[tuple[Result, Benchmark, dict[str, Any]]]:
    """Every evaluation, with each of its benchmarks and their lines of `scores.csv`."""
    for result in study.everything():
        if result.kind == "evaluate" and study.shown(result):
            scores = _by_benchmark(result.table("scores.csv"))
            for benchmark in (*BENCHMARKS, *EXTRA):
                if benchmark.name in scores:
                    yield result, benchmark, scores[benchmark.name]


def measured(study: Study) -> pd.DataFrame:
    """All measured values, one line each; only the first of several training seeds.

    Returns:
        Columns kind, model, row, benchmark, title, score, low, high, scale, samples,
        token_ratio, token_ratio_low, token_ratio_high, published, published_version, run, commit,
        seconds; published is "n/p" if our sources have no value for that model.
    """
    measured_lines = [_measured_line(*each) for each in scored(study)]
    names = ["kind", "model", "row", "benchmark", "title", "score", "low", "high", "scale"]
    names += ["samples", "token_ratio", "token_ratio_low", "token_ratio_high"]
    names += ["published", "published_version", "run", "commit"]
    return pd.DataFrame(measured_lines, columns=[*names, "seconds"])


def _by_benchmark(table: pd.DataFrame) -> dict[str, Any]:
    """The lines of a table by benchmark."""
    return {line["benchmark"]: line for line in table.to_dict("records")}


def _measured_line(result: Result, benchmark: Benchmark, score: Any) -> dict[str, object]:
    model, row = result.axes["model"], result.axes["row"]
    figure, version = published.latest(benchmark.kind, model, row, benchmark.name)
    return {
        "kind": BEYOND if benchmark in EXTRA else benchmark.kind,
        "model": model,
        "row": row,
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "score": score["score"],
        "low": score["low"],
        "high": score["high"],
        "scale": benchmark.scale,
        "samples": score["samples"],
        "token_ratio": score["token_ratio"],
        "token_ratio_low": score["token_ratio_low"],
        "token_ratio_high": score["token_ratio_high"],
        "published": NOT_PUBLISHED if figure is None else figure,
        "published_version": version,
        "run": result.run,
        "commit": result.commit,
        "seconds": result.stamp["seconds"],
    }


def shown(value: float, scale: float = 100.0) -> str:
    """A value with the paper's number of digits."""
    return f"{value:.0f}" if scale > 100 else f"{value:.1f}"


def span(low: float, high: float, scale: float = 100.0) -> str:
    """An interval as text; empty if unknown or a single point, as for dense ratios."""
    if math.isnan(low) or math.isnan(high) or low == high:
        return ""
    return f"{shown(low, scale)} to {shown(high, scale)}"


def around_mean(mean: float, halves: Sequence[float]) -> tuple[float, float]:
    """The interval of a mean of independent percentages, from their half widths."""
    half = math.sqrt(sum(width**2 for width in halves)) / len(halves)
    return (half, half) if math.isnan(half) else (max(0.0, mean - half), min(100.0, mean + half))


def averages_of(kind: str) -> dict[str, Sequence[Benchmark]]:
    """The benchmarks of each average of table 1 ("image") or 2 ("video"), the paper's first."""
    parts = {name: AVERAGES[name] for name in parts_of(kind)}
    return {AVERAGE: benchmarks_of_kind(kind), **parts}


def mean_score(
    scores: Mapping[str, Mapping[str, Any]], benchmarks: Sequence[Benchmark]
) -> tuple[float | None, float, float]:
    """The average of some benchmarks with its interval; None unless all were measured.

    Args:
        scores: lines of `scores.csv` by benchmark.
        benchmarks: of a table, or of a part of it.
    """
    average = published.average({name: each["score"] for name, each in scores.items()}, benchmarks)
    if average is None:
        return None, math.nan, math.nan
    own = [(benchmark.scale, scores[benchmark.name]) for benchmark in benchmarks]
    halves = [50 * (score["high"] - score["low"]) / scale for scale, score in own]
    return average, *around_mean(average, halves)


def _ratio_cell(ratio: float, low: float, high: float) -> Cell:
    return Cell(shown(100 * ratio), span(100 * low, 100 * high))


def beyond(table: pd.DataFrame) -> list[list[Cell]]:
    """Model, method, benchmark, score and token ratio of the benchmarks in neither table."""
    return [
        [
            Cell(line["model"]),
            Cell(line["row"]),
            Cell(line["title"]),
            Cell(
                shown(line["score"], line["scale"]),
                span(line["low"], line["high"], line["scale"]),
                f"{line['samples']:.0f} samples, run {line['run']}, commit {line['commit']}",
            ),
            _ratio_cell(line["token_ratio"], line["token_ratio_low"], line["token_ratio_high"]),
        ]
        for line in table[table["kind"] == BEYOND].to_dict("records")
    ]


def lines(table: pd.DataFrame, study: Study, kind: str) -> list[Line]:
    """The rows of table 1 or 2.

    Each measured row is followed by the published row of the same model and name. If the paper has
    none of the study's models, the published rows of one of its models come last.

    Args:
        table: from `measured`.
        study: its axes define the rows.
        kind: "image" or "video".
    """
    named = [*study.methods, *study.objectives]
    rows: list[Line] = []
    for model in study.models:
        for row in (row for row in named if study.has_row(model, row)):
            scores = table[
                (table["kind"] == kind) & (table["model"] == model) & (table["row"] == row)
            ]
            rows.append(_measured_row(model, row, scores, kind))
            if model in published.models_with(kind, "full"):
                rows += _published_rows(model, row, kind)
    if not set(study.models) & set(published.models_with(kind, "full")):
        for row in named:
            rows += _published_rows(ORIENTATION, row, kind)
    return rows


def _measured_row(model: str, row: str, scores: pd.DataFrame, kind: str) -> Line:
    line = Line(model, row, MEASURED)
    by_benchmark = _by_benchmark(scores)
    benchmarks = benchmarks_of_kind(kind)
    for benchmark in benchmarks:
        if benchmark.name not in by_benchmark:
            line.cells[benchmark.name] = Cell(NOT_MEASURED)
            continue
        score = by_benchmark[benchmark.name]
        line.cells[benchmark.name] = Cell(
            shown(score["score"], benchmark.scale),
            span(score["low"], score["high"], benchmark.scale),
            f"{score['samples']:.0f} samples, {100 * score['token_ratio']:.1f} % of tokens, "
            f"run {score['run']}, commit {score['commit']}",
        )
    for name, part in averages_of(kind).items():
        average, low, high = mean_score(by_benchmark, part)
        line.cells[name] = Cell(NOT_MEASURED)
        if average is not None:
            line.values[name] = average
            line.cells[name] = Cell(shown(average), span(low, high))
    if len(scores):
        ratio = line.values[RATIO] = 100 * float(scores["token_ratio"].mean())
        widths = scores["token_ratio_high"] - scores["token_ratio_low"]
        line.cells[RATIO] = Cell(shown(ratio), span(*around_mean(ratio, [*(50 * widths)])))
        runs, commits = sorted(set(scores["run"])), sorted(set(scores["commit"]))
        samples = int(scores["samples"].sum())
        line.provenance = f"{samples} samples; run {', '.join(runs)}; commit {', '.join(commits)}"
    else:
        line.cells[RATIO] = Cell(NOT_MEASURED)
    return line


def _published_rows(model: str, row: str, kind: str) -> list[Line]:
    """The published row; two rows if the final version has fewer values than the first one."""
    benchmarks = benchmarks_of_kind(kind)
    rows = []
    for version in published.VERSIONS:
        scores = {
            name: figure
            for name in [RATIO, *(benchmark.name for benchmark in benchmarks), f"{kind}_average"]
            if (figure := published.figure(kind, model, row, name, version)) is not None
        }
        if scores:
            rows.append(_published_row(model, row, kind, version, scores))
        if all(benchmark.name in scores for benchmark in benchmarks):
            break
    return rows or [_published_row(model, row, kind, "", {})]


def _published_row(model: str, row: str, kind: str, version: str, scores: dict[str, float]) -> Line:
    benchmarks = benchmarks_of_kind(kind)
    line = Line(model, row, f"published ({version})" if version else "published")
    line.cells[RATIO] = Cell(f"{scores[RATIO]:g}" if RATIO in scores else NOT_PUBLISHED)
    for benchmark in benchmarks:
        figure = scores.get(benchmark.name)
        text = NOT_PUBLISHED if figure is None else shown(figure, benchmark.scale)
        line.cells[benchmark.name] = Cell(text)
    for name, part in averages_of(kind).items():
        formed = published.average(scores, part)
        stated = scores.get(f"{kind}_average") if name == AVERAGE else None
        if stated is not None:
            line.cells[name] = Cell(f"{stated:.1f}")
        elif formed is not None:
            note = "computed here from the published scores"
            line.cells[name] = Cell(f"{formed:.1f}", note=note)
        else:
            line.cells[name] = Cell(NOT_PUBLISHED)
    return line

"""The lines of each table and figure of the paper, from the results of a study."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from sf.evaluation.benchmarks import Benchmark
from sf.evaluation.intervals import bootstrap_mean, wilson
from sf.report import published
from sf.report.cells import NOT_PUBLISHED, Figure, Sources, verdict
from sf.report.definitions import Definition
from sf.report.published import figure_of, models_of
from sf.report.results import Result, Study
from sf.tables import rows_at

__all__ = ["AVERAGE", "RATIO", "Line", "PaperTable", "Row", "paper_table"]

RATIO = "token_ratio"
AVERAGE = "average"
LENGTH_GROUPS = 4
ORIENTATION = "qwen2.5-vl-7b"
"""The model whose published figures stand beside models that the paper does not have."""
COST = {"hours": 110.4, "device_hours": 883.0, "seconds_a_step": 12.0}
"""Training of Qwen2.5-VL-7B on 8 A100 (arXiv 2504.18579, section 4.1)."""


@dataclass(frozen=True)
class Row:
    """A row that the table shows.

    Attributes:
        name: in the parameters.
        as_published: its name in `published.csv`.
    """

    name: str
    as_published: str


@dataclass(frozen=True)
class Line:
    """One line: what names it, and a figure for each column."""

    keys: tuple[str, ...]
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class PaperTable:
    """A table as it is shown.

    Attributes:
        keys: titles of the columns that name a line.
        columns: titles of the others.
        lines: as long as the columns each.
        published_of: model whose published figures stand beside each of ours, by our model.
    """

    keys: tuple[str, ...]
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    published_of: Mapping[str, str]


def paper_table(
    definition: Definition, study: Study, rows: Sequence[Row], sources: Sources
) -> PaperTable:
    """The lines of one table or figure; what has no result is "not run".

    Args:
        definition: what the table shows.
        study: its results.
        rows: that it shows; a profile has none.
        sources: filled with where the figures come from.
    """
    make = {
        "benchmarks": _benchmarks,
        "curve": _curve,
        "lengths": _lengths,
        "layers": _layers,
        "profile": _profile,
        "cost": _cost,
    }[definition.shows]
    return make(_Making(definition, study, list(rows), sources))


@dataclass(frozen=True)
class _Making:
    """What every form of a table needs."""

    definition: Definition
    study: Study
    rows: list[Row]
    sources: Sources

    @property
    def own_data(self) -> bool:
        """Whether the benchmarks' data are their own, not generated stand-ins."""
        result = self.study.result("benchmarks")
        return result is not None and result.parameters["benchmarks.source"] != "synthetic"

    def published_model(self, model: str) -> str:
        models = models_of(self.definition.published)
        if model in models or not models:
            return model
        return ORIENTATION if ORIENTATION in models else models[0]

    def each(self, kind: str) -> Iterator[tuple[str, Row, Result | None]]:
        """Model, row and result of a kind, in the tables' order."""
        for model in self.study.models:
            for row in self.rows:
                axes = {"model": model, "objective" if kind == "train" else "row": row.name}
                yield model, row, self.study.result(kind, **axes)

    def figure(self, result: Result | None, **given: Any) -> Figure:
        """A figure without a published one beside it."""
        if result is None:
            return Figure()
        source = self.sources.of(result)
        stale = self.sources.stale[source]
        return Figure(**{"verdict": NOT_PUBLISHED, **given}, source=source, stale=stale)


def _benchmarks(making: _Making) -> PaperTable:
    definition = making.definition
    benchmarks = definition.benchmarks
    lines = []
    for model in making.study.models:
        for row in making.rows:
            scores: dict[str, tuple[Mapping[Any, Any], Result]] = {}
            for suite in making.study.suites:
                result = making.study.result("evaluate", model=model, row=row.name, suite=suite)
                if result is not None:
                    for score in result.table("scores.csv").to_dict("records"):
                        scores[str(score["benchmark"])] = score, result
            lines.append(_benchmark_line(making, model, row, benchmarks, scores))
    titles = (benchmark.title for benchmark in benchmarks)
    models = {model: making.published_model(model) for model in making.study.models}
    return PaperTable(
        ("model", "method"), ("token ratio (%)", *titles, "average"), tuple(lines), models
    )


def _benchmark_line(
    making: _Making,
    model: str,
    row: Row,
    benchmarks: Sequence[Benchmark],
    scores: Mapping[str, tuple[Mapping[Any, Any], Result]],
) -> Line:
    table = making.definition.published
    paper = making.published_model(model)
    comparable = paper == model and making.own_data

    def cell(
        metric: str, ours: float | None, low: float, high: float, scale: float, **given: Any
    ) -> Figure:
        theirs = figure_of(table, paper, row.as_published, metric)
        if theirs is None and metric == making.definition.average:
            theirs = _formed(table, paper, row.as_published, benchmarks)
        digits = 0 if scale > 100 else 1
        span = "" if math.isnan(low) or low == high else f"{low:.{digits}f} to {high:.{digits}f}"
        apart = None if ours is None or theirs is None or not comparable else ours - theirs
        return Figure(
            text="" if ours is None else f"{ours:.{digits}f}",
            value=ours,
            interval=span,
            published="" if theirs is None else f"{theirs:.{digits}f}",
            difference="" if apart is None else f"{apart:+.{digits}f}",
            verdict=verdict(ours, theirs, scale, comparable),
            **given,
        )

    cells = []
    known = [scores[benchmark.name] for benchmark in benchmarks if benchmark.name in scores]
    for benchmark in benchmarks:
        if benchmark.name not in scores:
            cells.append(cell(benchmark.name, None, math.nan, math.nan, benchmark.scale))
            continue
        score, result = scores[benchmark.name]
        source = making.sources.of(result)
        cells.append(
            cell(
                benchmark.name,
                float(score["score"]),
                float(score["low"]),
                float(score["high"]),
                benchmark.scale,
                samples=int(score["samples"]),
                source=source,
                stale=making.sources.stale[source],
                note=f"{100 * float(score['token_ratio']):.1f} % of the tokens",
            )
        )
    whole = len(known) == len(benchmarks)
    sources = [figure.source for figure in cells if figure.source >= 0]
    shared = {
        "samples": sum(int(score["samples"]) for score, _ in known),
        "source": min(sources, default=-1),
        "stale": any(figure.stale for figure in cells),
    }
    by_name = {
        benchmark.name: scores[benchmark.name][0]
        for benchmark in benchmarks
        if benchmark.name in scores
    }
    average = published.average(
        {name: float(score["score"]) for name, score in by_name.items()}, list(benchmarks)
    )
    scales = {benchmark.name: benchmark.scale for benchmark in benchmarks}
    half = _half_width(
        [100 * (s["high"] - s["low"]) / 2 / scales[name] for name, s in by_name.items()]
    )
    mean = cell(making.definition.average, average, *_around(average, half, 100.0), 100.0, **shared)
    ratio, width = None, math.nan
    if known:
        ratio = 100 * sum(float(score["token_ratio"]) for score, _ in known) / len(known)
        width = _half_width([50 * (s["token_ratio_high"] - s["token_ratio_low"]) for s, _ in known])
    kept = cell("token_ratio_percent", ratio, *_around(ratio, width, 100.0), 100.0, **shared)
    if known and not whole:
        kept = replace(kept, note=f"of {len(known)} of {len(benchmarks)} benchmarks")
        mean = replace(mean, note="no average: some benchmarks were not run")
    return Line((model, row.name), (kept, *cells, mean))


def _formed(table: str, model: str, row: str, benchmarks: Sequence[Benchmark]) -> float | None:
    """The average of a published row whose average is not stated."""
    known = {one.name: figure_of(table, model, row, one.name) for one in benchmarks}
    return published.average({k: v for k, v in known.items() if v is not None}, list(benchmarks))


def _half_width(halves: Sequence[float]) -> float:
    """Of a mean of independent figures, from their half widths."""
    if not halves:
        return math.nan
    return math.sqrt(sum(half**2 for half in halves)) / len(halves)


def _around(value: float | None, half: float, most: float) -> tuple[float, float]:
    if value is None or math.isnan(half):
        return math.nan, math.nan
    return max(0.0, value - half), min(most, value + half)


def _share(making: _Making, result: Result, line: Mapping[Any, Any], names: Sequence[str],
           samples: int) -> Figure:  # fmt: skip
    """A share as a percentage with its interval, from a line of a table."""
    value, low, high = (100 * float(line[name]) for name in names)
    span = "" if low == high or math.isnan(low) else f"{low:.1f} to {high:.1f}"
    return making.figure(result, text=f"{value:.1f}", value=value, interval=span, samples=samples)


def _curve(making: _Making) -> PaperTable:
    lines = []
    for model, row, result in making.each("accuracy_curve"):
        if result is None:
            lines.append(Line((model, row.name, ""), (Figure(), Figure())))
            continue
        curve = result.table("curve.csv")
        for point in curve[curve["media"] == "all"].sort_values("p").to_dict("records"):
            names = ("token_ratio", "ratio_low", "ratio_high"), ("accuracy", "low", "high")
            cells = [_share(making, result, point, part, int(point["samples"])) for part in names]
            lines.append(Line((model, row.name, f"{point['p']:g}"), tuple(cells)))
    columns = ("token ratio (%)", "correct answers (%)")
    return PaperTable(("model", "trained with", "retention threshold p"), columns, tuple(lines), {})


def _lengths(making: _Making) -> PaperTable:
    """Questions in groups of like prompt length, at the evaluated threshold."""
    lines = []
    for model, row, result in making.each("accuracy_curve"):
        if result is None:
            lines.append(Line((model, row.name, ""), (Figure(), Figure())))
            continue
        answers = result.table("answers.parquet")
        sparse = answers[answers["p"] < 1.0]
        answers = rows_at(answers, "p", float(sparse["p"].max()))
        ranks = answers["prompt_tokens"].rank(method="first")
        groups = pd.qcut(ranks, min(LENGTH_GROUPS, len(answers)), labels=False)
        for _, part in answers.groupby(groups):
            low, high = int(part["prompt_tokens"].min()), int(part["prompt_tokens"].max())
            right = int((part["correct"] >= 0.5).sum())
            ratio = part["token_ratio"].to_numpy(float)
            seed = int(result.parameters["seed"])
            spans = bootstrap_mean(ratio, seed), wilson(right, len(part))
            cells = tuple(
                _share(making, result, {"v": value, "l": a, "h": b}, "vlh", len(part))
                for value, (a, b) in zip((ratio.mean(), right / len(part)), spans, strict=True)
            )
            lines.append(Line((model, row.name, f"{low} to {high}"), cells))
    columns = ("token ratio (%)", "correct answers (%)")
    return PaperTable(("model", "trained with", "prompt tokens"), columns, tuple(lines), {})


def _layers(making: _Making) -> PaperTable:
    lines, count = [], 0
    for model, row, result in making.each("accuracy_curve"):
        if result is None:
            lines.append(Line((model, row.name, ""), ()))
            continue
        table = result.table("layers.csv")
        p = float(table[table["p"] < 1.0]["p"].max())
        part = rows_at(table, "p", p).sort_values("layer").to_dict("records")
        count = max(count, len(part))
        names = ("token_ratio", "low", "high")
        cells = tuple(_share(making, result, line, names, 0) for line in part)
        lines.append(Line((model, row.name, f"{p:g}"), cells))
    full = (
        Line(line.keys, (*line.figures, *(Figure() for _ in range(count - len(line.figures)))))
        for line in lines
    )
    columns = tuple(f"layer {layer + 1} (%)" for layer in range(count))
    return PaperTable(("model", "trained with", "retention threshold p"), columns, tuple(full), {})


def _profile(making: _Making) -> PaperTable:
    metric = making.definition.metric
    unit, name = (2.0**20, "MiB") if metric.endswith("_bytes") else (1.0, "ms")
    lines = []
    for model in making.study.models:
        result = making.study.result("profile", model=model)
        if result is None:
            lines.append(Line((model, "", ""), (Figure(), Figure(), Figure())))
            continue
        table, ratios = result.table("profile.csv"), result.table("speedup.csv")
        table, ratios = table[table["metric"] == metric], ratios[ratios["metric"] == metric]
        if table.empty:
            lines.append(Line((model, "", ""), (Figure(), Figure(), Figure())))
        for (subject, length), part in table.groupby(["subject", "length"], sort=False):
            sides = {str(line["side"]): line for line in part.to_dict("records")}
            same = (ratios["subject"] == subject) & (ratios["length"] == length)
            speedup = next(iter(ratios[same].to_dict("records")), None)
            cells = [
                _measured(making, result, sides.get(side), unit) for side in ("full", "sparse")
            ]
            cells.append(_speedup(making, result, speedup))
            lines.append(Line((model, str(subject), f"{length:,}"), tuple(cells)))
    columns = (f"full ({name})", f"sparse ({name})", "full / sparse")
    return PaperTable(("model", "subject", "prompt tokens"), columns, tuple(lines), {})


def _measured(making: _Making, result: Result, line: Any, unit: float) -> Figure:
    if line is None:
        return Figure()
    if line["status"] != "measured":
        return making.figure(result, text=str(line["status"]))
    value, low, high = (float(line[name]) / unit for name in ("value", "low", "high"))
    span = "" if math.isnan(low) or low == high else f"{low:.3g} to {high:.3g}"
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return making.figure(
        result, text=text, value=value, interval=span, samples=int(line["repeats"])
    )


def _speedup(making: _Making, result: Result, line: Any) -> Figure:
    if line is None:
        return Figure()
    value = float(line["ratio"])
    span = "" if math.isnan(line["low"]) else f"{line['low']:.2f} to {line['high']:.2f}"
    note = "the interval contains 1" if line["verdict"] == "no difference" else ""
    return making.figure(result, text=f"{value:.2f}", value=value, interval=span, note=note)


def _cost(making: _Making) -> PaperTable:
    lines = []
    for model, row, result in making.each("train"):
        if result is None:
            lines.append(Line((model, row.name, ""), (Figure(),) * 4))
            continue
        host, history = result.stamp.get("hardware", {}), result.history()
        steps = float(history["step"].max()) if len(history) else math.nan
        hours = float(result.stamp["seconds"]) / 3600
        on_cpu = result.parameters.get("runtime.device") == "cpu"
        where = f"{host.get('cores')} cores of {host.get('cpu')}" if on_cpu else "GPU"
        values = {
            "steps": steps,
            "hours": hours,
            # How many GPUs a job had is no part of its record.
            "device_hours": hours * int(host["cores"]) if on_cpu else math.nan,
            "seconds_a_step": 3600 * hours / steps,
        }
        theirs = COST if row.as_published == "sparsity_forcing" else {}
        cells = tuple(_cost_cell(making, result, theirs.get(name), value)
                      for name, value in values.items())  # fmt: skip
        lines.append(Line((model, row.name, where), cells))
    columns = ("steps", "hours", "device-hours", "seconds a step")
    models = dict.fromkeys(making.study.models, ORIENTATION)
    return PaperTable(("model", "trained with", "devices"), columns, tuple(lines), models)


def _cost_cell(making: _Making, result: Result, theirs: float | None, value: float) -> Figure:
    if math.isnan(value):
        return making.figure(result)
    text = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return making.figure(
        result,
        text=text,
        value=value,
        published="" if theirs is None else f"{theirs:g}",
        verdict=verdict(value, theirs, 100.0, comparable=False),
    )

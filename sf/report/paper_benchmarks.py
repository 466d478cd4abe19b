"""The paper's benchmark tables: scores and token ratios next to the published ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from matplotlib.figure import Figure as Drawing

from sf.evaluation.benchmarks import AVERAGES, parts_of
from sf.report import published
from sf.report.benchmark_tables import RATIO, around_mean, mean_score, scored, shown, span
from sf.report.cells import NOT_PUBLISHED, Figure, verdict
from sf.report.definitions import NOT_IN_PAPER, Definition, Row
from sf.report.gate import STAND_INS, gate, stand_ins
from sf.report.paper_lines import Line, PaperTable, Request, a_model_each
from sf.report.pictures import benchmark_picture
from sf.report.results import Result

__all__ = ["notes", "pictures", "sentence", "table"]

Scores = dict[str, tuple[Mapping[str, Any], Result]]
UNKNOWN = (math.nan, math.nan)
RATIO_TITLE, AVERAGE_TITLE = "token ratio (%)", "average"
COMPUTED = "published: computed here from the paper's scores"


def table(request: Request) -> PaperTable:
    """One line per model and row: token ratio, benchmarks, their average, averages of parts."""
    scores: dict[tuple[str, str], Scores] = {}
    for result, benchmark, score in scored(request.study):
        line = scores.setdefault((result.axes["model"], result.axes["row"]), {})
        line[benchmark.name] = score, result
    titles = (benchmark.title for benchmark in request.definition.benchmarks)
    ours = {title: name for name, title in parts_of(request.definition.kind).items()}
    return PaperTable(
        ("model", "method"),
        (RATIO_TITLE, *titles, AVERAGE_TITLE, *ours),
        tuple(
            _line(request, model, row, scores.get((model, row.name), {}))
            for model in request.study.models
            for row in request.rows
            if request.study.has_row(model, row.name)
        ),
        request.published_of,
        ours,
    )


def _line(request: Request, model: str, row: Row, scores: Scores) -> Line:
    definition, cell = request.definition, partial(_cell, request, model, row)
    cells = []
    for benchmark in definition.benchmarks:
        if benchmark.name not in scores:
            cells.append(cell(benchmark.name, None, UNKNOWN, benchmark.scale))
            continue
        score, result = scores[benchmark.name]
        cells.append(
            cell(
                benchmark.name,
                float(score["score"]),
                (score["low"], score["high"]),
                benchmark.scale,
                samples=int(score["samples"]),
                note=f"{100 * score['token_ratio']:.1f} % of the tokens",
                **request.origin(result),
            )
        )
    known = [(b, scores[b.name][0]) for b in definition.benchmarks if b.name in scores]
    shared = _shared(cells)
    ratio, bounds = None, UNKNOWN
    if known:
        ratio = 100 * sum(score["token_ratio"] for _, score in known) / len(known)
        widths = [score["token_ratio_high"] - score["token_ratio_low"] for _, score in known]
        bounds = around_mean(ratio, [50 * width for width in widths])
    kept = cell(RATIO, ratio, bounds, 100.0, **shared)
    lines = {name: score for name, (score, _) in scores.items()}
    average, *around = mean_score(lines, definition.benchmarks)
    mean = cell(definition.average, average, around, 100.0, **shared)
    if known and average is None:
        kept = replace(kept, note=f"of {len(known)} of {len(definition.benchmarks)} benchmarks")
        mean = replace(mean, note="no average: some benchmarks were not run")
    parts = (_part(cell, name, definition, lines, cells) for name in parts_of(definition.kind))
    return Line((model, row.name), (kept, *cells, mean, *parts))


def _part(
    cell: Callable[..., Figure],
    name: str,
    definition: Definition,
    scores: Mapping[str, Mapping[str, Any]],
    cells: Sequence[Figure],
) -> Figure:
    """The average of a part of the benchmarks, which has no published figure to reproduce."""
    benchmarks = AVERAGES[name]
    average, *bounds = mean_score(scores, benchmarks)
    own = [
        figure
        for benchmark, figure in zip(definition.benchmarks, cells, strict=True)
        if benchmark in benchmarks
    ]
    figure = cell(name, average, bounds, 100.0, **_shared(own))
    if average is not None:
        figure = replace(figure, verdict=NOT_PUBLISHED)
    elif any(one.value is not None for one in own):
        return replace(figure, note="no average: some benchmarks were not run")
    return replace(figure, note=COMPUTED if figure.published else "")


def _shared(cells: Sequence[Figure]) -> dict[str, Any]:
    """What a figure formed of some cells has of them."""
    return {
        "samples": sum(figure.samples for figure in cells),
        "source": min((figure.source for figure in cells if figure.source >= 0), default=-1),
        "stale": any(figure.stale for figure in cells),
    }


def _cell(
    request: Request,
    model: str,
    row: Row,
    metric: str,
    ours: float | None,
    bounds: Sequence[float],
    scale: float,
    **given: Any,
) -> Figure:
    """Our value of a metric and the published one."""
    paper = request.published_model(model)
    theirs = _published(request.definition, paper, row.as_published, metric)
    comparable = paper == model and request.own_data
    difference = ""
    if ours is not None and theirs is not None and comparable:
        difference = f"{'+' if ours >= theirs else ''}{shown(ours - theirs, scale)}"
    return Figure(
        text="" if ours is None else shown(ours, scale),
        value=ours,
        interval=span(bounds[0], bounds[1], scale),
        published="" if theirs is None else shown(theirs, scale),
        difference=difference,
        verdict=verdict(ours, theirs, scale, comparable),
        **given,
    )


def _published(definition: Definition, model: str, row: str, metric: str) -> float | None:
    """A published value; a missing average is computed from the row's scores."""
    stated = published.figure_of(definition.published, model, row, metric)
    benchmarks = definition.benchmarks if metric == definition.average else AVERAGES.get(metric, ())
    if stated is not None or not benchmarks:
        return stated
    figures = {
        benchmark.name: figure
        for benchmark in benchmarks
        if (figure := published.figure_of(definition.published, model, row, benchmark.name))
        is not None
    }
    return published.average(figures, benchmarks)


def sentence(model: str, lines: Sequence[Line]) -> str:
    """The averages of the complete rows."""
    parts = [
        f"{line.keys[1]} {line.figures[-1].text} with {line.figures[0].text} % of the tokens"
        for line in lines
        if line.figures[-1].value is not None
    ]
    return f"{model}, average: {'; '.join(parts)}." if parts else f"{model}: no complete row."


def notes(request: Request) -> list[str]:
    """Notes for comparing measured with published values."""
    definition, generated = request.definition, stand_ins(request.study)
    extra = [row.name for row in request.rows if row.as_published in NOT_IN_PAPER]
    added = [f"Rows in no table of the paper: {', '.join(extra)}."] if extra else []
    if definition.published in published.TABLES.values():
        return [*gate(request.scores, request.study, definition.kind, generated), *added]
    return [*([STAND_INS] if generated else []), *added]


@a_model_each
def pictures(request: Request, table: PaperTable, model: str) -> Drawing | None:
    """Draw score and token ratio of every benchmark."""
    part = request.scores[request.scores["model"] == model]
    names = [row.name for row in request.rows]
    return benchmark_picture(part, request.definition.benchmarks, names, request.of(model))

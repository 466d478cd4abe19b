"""The report's parts about the benchmarks: tables 1 and 2, and their overview."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from sf.evaluation.benchmarks import parts_of
from sf.plotting import save
from sf.report.benchmark_tables import (
    AVERAGE,
    MEASURED,
    RATIO,
    Cell,
    Line,
    averages_of,
    benchmarks_of_kind,
    beyond,
    lines,
    measured,
)
from sf.report.equal_cost import equal_cost_sections
from sf.report.gate import gate
from sf.report.page import Picture, Section, Table
from sf.report.pictures import benchmark_picture
from sf.report.results import Study
from sf.tables import write_csv

__all__ = ["benchmark_sections"]

OURS = (
    " The averages of text-heavy and of other images are not in the paper; those of published rows "
    "are computed here from the published scores."
)
NUMBERS = {"image": 1, "video": 2}


def benchmark_sections(
    study: Study, folder: Path, generated: bool
) -> tuple[list[Section], Table, dict[str, float]]:
    """Tables 1 and 2 with their figures.

    Args:
        study: its results.
        folder: of the report, for `tables/benchmarks.csv` and figures.
        generated: whether the benchmark data are synthetic.

    Returns:
        The sections, an overview of the averages, and the averages by name.
    """
    table = measured(study)
    write_csv(table, folder / "tables" / "benchmarks.csv")
    rows = {kind: lines(table, study, kind) for kind in NUMBERS}
    sections = [
        Section(
            title=f"Table {number}: {kind} benchmarks",
            notes=gate(table, study, kind, generated),
            text=[_average_text(kind)],
            tables=[_table(kind, number, rows[kind])],
            pictures=_benchmark_pictures(study, table, kind, folder),
        )
        for kind, number in NUMBERS.items()
    ]
    sections += equal_cost_sections(study, rows)
    extra = beyond(table)
    if extra:
        header = ["model", "method", "benchmark", "score", "token ratio (%)"]
        shown = Table("beyond", "Robustness, 95 % bootstrap intervals", header, extra, keys=3)
        sections.append(Section("Beyond the paper", tables=[shown]))
    figures = {
        f"{line.model}/{line.row}/{name}": line.values[key]
        for kind in NUMBERS
        for line in rows[kind]
        for key, name in _metrics(kind).items()
        if key in line.values
    }
    return sections, _overview(rows), figures


def _metrics(kind: str) -> dict[str, str]:
    """The name of each average's and of the ratio's metric."""
    whole = {AVERAGE: f"{kind}_average", RATIO: f"{kind}_token_ratio_percent"}
    return {name: name for name in averages_of(kind)} | whole


def _table(kind: str, number: int, rows: Sequence[Line]) -> Table:
    benchmarks = benchmarks_of_kind(kind)
    names = [RATIO, *(benchmark.name for benchmark in benchmarks), *averages_of(kind)]
    ours = parts_of(kind).values()
    titles = [benchmark.title for benchmark in benchmarks]
    return Table(
        name=f"table{number}_{kind}",
        caption=f"Table {number}: {kind} benchmarks, 95 % bootstrap intervals over questions",
        header=["model", "method", "source", "token ratio (%)", *titles, "average", *ours],
        rows=[
            [
                Cell(line.model),
                Cell(line.row),
                Cell(line.source, note=line.provenance),
                *(line.cells[name] for name in names),
            ]
            for line in rows
        ],
        keys=3,
        quiet=frozenset(at for at, line in enumerate(rows) if line.source != MEASURED),
    )


def _overview(rows: Mapping[str, Sequence[Line]]) -> Table:
    """Averages and token ratios of both tables, measured rows only."""
    cells_of: dict[tuple[str, str], list[Cell]] = {}
    for kind in NUMBERS:
        for line in rows[kind]:
            if line.source == MEASURED:
                cells = cells_of.setdefault((line.model, line.row), [])
                cells += [line.cells[AVERAGE], line.cells[RATIO]]
    header = ["model", "method"]
    for kind in NUMBERS:
        header += [f"{kind} average", f"{kind} token ratio (%)"]
    return Table(
        name="overview",
        caption="Benchmarks: averages of tables 1 and 2",
        header=header,
        rows=[[Cell(model), Cell(row), *cells] for (model, row), cells in cells_of.items()],
        keys=2,
    )


def _average_text(kind: str) -> str:
    scaled = "MME/28, OCRBench/10 and the other scores" if kind == "image" else "all benchmarks"
    return (
        f"The average is the mean of {scaled}; its interval treats the benchmarks as independent. "
        "n/p: not published in our sources. Published token ratios are the authors'; a measured "
        "one is the mean over benchmarks of the mean over samples and layers."
        f"{OURS if kind == 'image' else ''}"
    )


def _benchmark_pictures(
    study: Study, table: pd.DataFrame, kind: str, folder: Path
) -> list[Picture]:
    pictures = []
    for model in study.models:
        part = table[(table["model"] == model) & (table["kind"] == kind)]
        rows = [*study.methods, *study.objectives]
        fig = benchmark_picture(part, benchmarks_of_kind(kind), rows, model)
        if fig is not None:
            name = f"benchmarks_{kind}_{model}"
            save(fig, folder / "figures", name)
            pictures.append(Picture(name, f"{model}: {kind} benchmarks, score and kept tokens."))
    return pictures

"""The report's part with paired tests between rows on the same questions."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from sf.errors import DataError
from sf.evaluation.benchmarks import benchmark_named
from sf.evaluation.compare import Evaluation, holm, paired_table
from sf.processes import map_processes
from sf.report.benchmark_tables import Cell
from sf.report.gate import DENSE
from sf.report.page import Section, Table
from sf.report.results import Study
from sf.tables import write_csv

__all__ = ["paired_lines", "paired_sections"]

UNTRAINED = "zipvl"
_TEXT = (
    "Second minus first in the benchmark's own scale, with a paired bootstrap 95 % interval over "
    "questions, pictures or videos. p: two-sided sign-flip test, raw and adjusted for a pair's "
    "number of benchmarks (Holm). The adjusted p can be 1 although the interval excludes 0: the "
    "interval is for one benchmark, the adjusted p accounts for all. A non-significant test does "
    "not show that there is no difference."
)
_HEADER = [
    *("model", "first", "second", "benchmark", "first", "second", "difference"),
    *("p", "p (Holm)"),
]
_LEVEL = 0.05


def _pairs(study: Study) -> Iterator[tuple[str, str]]:
    """Every row against dense attention, and trained rows against untrained ones."""
    for row in (*study.methods, *study.objectives):
        if row != DENSE and DENSE in study.methods:
            yield DENSE, row
        if row in study.objectives and UNTRAINED in study.methods:
            yield UNTRAINED, row


def paired_lines(study: Study) -> tuple[pd.DataFrame, list[str]]:
    """All comparisons of a study.

    Returns:
        `sf.evaluation.compare.paired_table` of each model and pair of rows, preceded by the columns
        model, first_system and second_system, with p_holm over all of a pair's benchmarks; and
        notes on pairs that could not be compared.
    """
    compared = map_processes(partial(_model_lines, study), study.models)
    tables = [table for parts, _ in compared for table in parts]
    lines = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()
    return lines, [note for _, notes in compared for note in notes]


def _model_lines(study: Study, model: str) -> tuple[list[pd.DataFrame], list[str]]:
    """The comparisons of one model, one table per pair of rows, and notes."""
    tables, notes = [], []
    evaluations: dict[Path, Evaluation] = {}
    for first, second in _pairs(study):
        parts = []
        for suite in study.suites:
            one, other = (
                study.result("evaluate", model=model, row=row, suite=suite)
                for row in (first, second)
            )
            if one is None or other is None:
                continue
            try:
                first_read = _read(evaluations, one.folder)
                second_read = _read(evaluations, other.folder)
                seed = int(one.parameters.get("seed", 0))
                parts.append(paired_table(first_read, second_read, seed))
            except DataError as error:
                notes.append(f"{model}, {first} and {second}: {error}")
        if parts:
            comparison = pd.concat(parts, ignore_index=True)
            comparison["p_holm"] = holm(comparison["p_value"].tolist())
            comparison.insert(0, "model", model)
            comparison.insert(1, "first_system", first)
            comparison.insert(2, "second_system", second)
            tables.append(comparison)
    return tables, notes


def _read(known: dict[Path, Evaluation], folder: Path) -> Evaluation:
    if folder not in known:
        known[folder] = Evaluation(folder)
    return known[folder]


def paired_sections(study: Study, folder: Path) -> list[Section]:
    """One section on the differences; `tables/paired_tests.csv` has a line per pair and benchmark.

    A line is shown if its raw p is below 0.05 or its interval excludes 0.
    """
    comparisons, notes = paired_lines(study)
    if comparisons.empty:
        return [Section("Paired comparisons", notes=notes)] if notes else []
    write_csv(comparisons, folder / "tables" / "paired_tests.csv")
    lines = comparisons.to_dict("records")
    rows = [_line(line) for line in lines if _matters(line)]
    sure = sum(line["p_holm"] < _LEVEL for line in lines)
    count = (
        f"{len(lines)} comparisons, {sure} with an adjusted p below {_LEVEL}. Shown are the "
        f"{len(rows)} with a raw p below {_LEVEL} or an interval that excludes 0; all are in "
        "tables/paired_tests.csv."
    )
    table = Table("paired", "Differences on the same questions", _HEADER, rows, keys=4)
    tables = [table] if rows else []
    return [Section("Paired comparisons", text=[_TEXT, count], notes=notes, tables=tables)]


def _matters(line: dict[Hashable, Any]) -> bool:
    return bool(line["p_value"] < _LEVEL or line["low"] > 0 or line["high"] < 0)


def _line(line: dict[Hashable, Any]) -> list[Cell]:
    benchmark = benchmark_named(str(line["benchmark"]))
    digits = 0 if benchmark.scale > 100 else 1
    low, high = line["low"], line["high"]
    span = "" if low != low else f"{low:+.{digits}f} to {high:+.{digits}f}"
    return [
        Cell(str(line["model"])),
        Cell(str(line["first_system"])),
        Cell(str(line["second_system"])),
        Cell(benchmark.title),
        Cell(f"{line['first']:.{digits}f}"),
        Cell(f"{line['second']:.{digits}f}", note=f"{line['samples']} samples"),
        Cell(f"{line['difference']:+.{digits}f}", span),
        Cell(f"{line['p_value']:.3g}"),
        Cell(f"{line['p_holm']:.3g}"),
    ]

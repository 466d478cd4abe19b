"""The report's table of methods with hyperparameters matched to one token ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from sf.report.benchmark_tables import AVERAGE, MEASURED, NOT_MEASURED, RATIO, Cell, Line
from sf.report.page import Section, Table
from sf.report.results import Study

__all__ = ["equal_cost_sections"]

_TEXT = (
    "Each method's hyperparameter is set so that it keeps the target share of the calibration "
    "rows' tokens (by its own count, docs/evaluation.md). Benchmarks need different numbers of "
    "tokens, so the ratio measured on them differs."
)


def equal_cost_sections(study: Study, rows: Mapping[str, Sequence[Line]]) -> list[Section]:
    """One section, or none if no ratio was requested.

    Args:
        study: its results.
        rows: the lines of tables 1 ("image") and 2 ("video").
    """
    lines: dict[tuple[str, str], list[Cell]] = {}
    for result in study.everything():
        key = result.axes.get("model", ""), result.axes.get("row", "")
        if result.kind != "evaluate" or key in lines or not study.shown(result):
            continue
        target = result.parameters.get("evaluate.match.token_ratio")
        if target is not None and (result.folder / "tables/matched.csv").exists():
            lines[key] = _line(key, result.table("matched.csv").iloc[0], rows)
    if not lines:
        return []
    header = [
        "model",
        "method",
        "hyperparameter",
        "target (%)",
        "calibration ratio (%)",
        "calibration accuracy (%)",
    ]
    header += [name for kind in rows for name in (f"{kind} average", f"{kind} token ratio (%)")]
    table = Table("equal_cost", "Methods at matched ratio", header, list(lines.values()), keys=3)
    notes = [
        f"{model}, {method}: the target ratio was not reached; the row shows the nearest one."
        for (model, method), cells in lines.items()
        if cells[4].note
    ]
    return [Section("Methods at matched ratio", text=[_TEXT], notes=notes, tables=[table])]


def _line(key: tuple[str, str], match: pd.Series, rows: Mapping[str, Sequence[Line]]) -> list[Cell]:
    tried = f"{match['measurements']} measurements on {match['rows']} rows"
    reached = Cell(f"{100 * match['token_ratio']:.1f}", note="" if match["reached"] else tried)
    cells = [
        Cell(key[0]),
        Cell(key[1]),
        Cell(f"{match['hyperparameter']} = {match['value']:.4g}"),
        Cell(f"{100 * match['target']:.1f}"),
        reached,
        Cell(f"{100 * match['accuracy']:.1f}"),
    ]
    for lines in rows.values():
        line = next((x for x in lines if (x.model, x.row) == key and x.source == MEASURED), None)
        for name in (AVERAGE, RATIO):
            cells.append(Cell(NOT_MEASURED) if line is None else line.cells[name])
    return cells

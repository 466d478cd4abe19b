"""The pages of the paper's tables and figures, from the results of a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sf.report import paper_benchmarks, paper_costs, paper_curves, paper_examples
from sf.report.cells import DIFFERS, REPRODUCED, TOLERANCE, Sources
from sf.report.definitions import DEFINITIONS, Definition, Row, Shows
from sf.report.paper_benchmarks import AVERAGE_TITLE, RATIO_TITLE
from sf.report.paper_lines import Draw, Line, PaperTable, Request
from sf.report.results import Study
from sf.report.table_files import TablePage, outcome, write_table

__all__ = ["write_table_page"]


class Form(NamedTuple):
    """The functions for a kind of table or figure: lines, a sentence per model, pictures."""

    table: Callable[[Request], PaperTable]
    sentence: Callable[[str, Sequence[Line]], str]
    pictures: Draw
    notes: Callable[[Request], list[str]] = lambda _: []


FORMS: Mapping[Shows, Form] = {
    "benchmarks": Form(
        paper_benchmarks.table,
        paper_benchmarks.sentence,
        paper_benchmarks.pictures,
        paper_benchmarks.notes,
    ),
    "curve": Form(paper_curves.curve, paper_curves.change, paper_curves.curve_pictures),
    "lengths": Form(
        paper_curves.lengths, paper_curves.lengths_sentence, paper_curves.length_pictures
    ),
    "layers": Form(paper_curves.layers, paper_curves.layers_change, paper_curves.layers_pictures),
    "profile": Form(
        paper_costs.profile, paper_costs.profile_sentence, paper_costs.profile_pictures
    ),
    "cost": Form(paper_costs.cost, paper_costs.cost_sentence, paper_costs.cost_pictures),
    "examples": Form(
        paper_examples.table,
        paper_examples.sentence,
        paper_examples.pictures,
        paper_examples.notes,
    ),
}


def write_table_page(
    target: str, study: Study, rows: Sequence[Row], folder: Path, command: str
) -> dict[str, float]:
    """Write the page and the files of one table or figure; missing results are "not run".

    Args:
        target: a key of `sf.report.definitions.DEFINITIONS`.
        study: its results.
        rows: of the table.
        folder: for `index.html`, `TARGET.csv`, `.md`, `.tex` and `.json`.
        command: that reproduces the table.

    Returns:
        Averages, token ratios and counts of the verdicts, by name.
    """
    request = Request(DEFINITIONS[target], study, rows, Sources())
    form = FORMS[request.definition.shows]
    table = form.table(request)
    page = TablePage(
        name=target,
        title=request.definition.title,
        about=request.definition.about,
        sentence=_sentence(table, form),
        notes=form.notes(request),
        table=table,
        sources=request.sources,
        pictures=form.pictures(request, table, folder),
        command=command,
    )
    write_table(page, folder)
    return _figures(request.definition, table)


def _figures(definition: Definition, table: PaperTable) -> dict[str, float]:
    """The counts of verdicts and, for benchmarks, each row's token ratio and averages."""
    figures = {
        f"cells_{name.replace(' ', '_')}": float(n) for name, n in outcome(table.lines).items()
    }
    for line in table.lines if definition.shows == "benchmarks" else ():
        cells = dict(zip(table.columns, line.figures, strict=True))
        named = {RATIO_TITLE: "token_ratio", AVERAGE_TITLE: "average", **table.ours}
        for title, name in named.items():
            cell = cells[title]
            if cell.value is not None:
                figures["/".join([*line.keys, name])] = cell.value
    return figures


def _sentence(table: PaperTable, form: Form) -> str:
    """The table's main result; counts of verdicts if published values can be compared."""
    counts = outcome(table.of_paper)
    compared = counts[REPRODUCED] + counts[DIFFERS]
    if compared:
        return (
            f"{counts[REPRODUCED]} of {compared} published values are reproduced within "
            f"{TOLERANCE} points of 100."
        )
    run: dict[str, list[Line]] = {}
    for line in table.of_paper:
        if any(cell.value is not None for cell in line.figures):
            run.setdefault(line.keys[0], []).append(line)
    sentences = [form.sentence(model, lines) for model, lines in run.items()]
    return " ".join(sentences) or "None of its rows was run."

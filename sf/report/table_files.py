r"""A paper table as files: HTML page, CSV, Markdown, LaTeX and JSON.

Every file contains all columns. The page is self-contained and makes no network requests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from sf.atomic_files import write_json, write_text
from sf.escaping import markdown as escaped
from sf.escaping import printable
from sf.report.benchmark_tables import Cell
from sf.report.cells import DIFFERS, NOT_RUN, REPRODUCED, TOLERANCE, Figure, Sources
from sf.report.page import Picture, Table, embedded, markdown_table, page_environment, sort_script
from sf.report.paper_lines import Line, PaperTable
from sf.tables import write_csv

__all__ = ["TablePage", "outcome", "write_table"]

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


@dataclass(frozen=True)
class TablePage:
    """The content of a table's page.

    Attributes:
        name: of its files.
        title, about: of the table.
        sentence: its main result.
        notes: for comparing its values.
        table: its lines.
        sources: the results behind it.
        pictures: shown below it; their files are in `figures/`.
        command: that reproduces it.
    """

    name: str
    title: str
    about: str
    sentence: str
    notes: Sequence[str]
    table: PaperTable
    sources: Sources
    pictures: Sequence[Picture]
    command: str


def outcome(lines: Sequence[Line]) -> Counter[str]:
    """Number of cells by verdict."""
    return Counter(figure.verdict for line in lines for figure in line.figures)


def write_table(page: TablePage, folder: Path) -> None:
    """Write `index.html` and `NAME.csv`, `.md`, `.tex` and `.json` into a folder."""
    write_csv(_frame(page.table), folder / f"{page.name}.csv", float_format=None)
    write_text(folder / f"{page.name}.md", _markdown(page))
    write_text(folder / f"{page.name}.tex", _latex(page))
    content = {
        "name": page.name,
        "title": page.title,
        "about": page.about,
        "sentence": page.sentence,
        "notes": list(page.notes),
        "columns": list(page.table.columns),
        "outcome": outcome(page.table.lines),
        "lines": [{"keys": line.keys, "figures": [asdict(figure) for figure in line.figures]}
                  for line in page.table.lines],
    }  # fmt: skip
    write_json(folder / f"{page.name}.json", content)
    write_text(folder / "index.html", _html(page, folder))


def _frame(table: PaperTable) -> pd.DataFrame:
    """One line per cell, for further processing."""
    lines = []
    for line in table.lines:
        named = dict(zip(table.keys, line.keys, strict=True))
        for column, figure in zip(table.columns, line.figures, strict=True):
            cell = asdict(figure)
            cell.pop("source")
            lines.append({**named, "column": column, **cell})
    return pd.DataFrame(lines)


def _shown(line: Line) -> list[str]:
    """Our values, followed by the published ones in brackets."""
    return [
        f"{figure.text or NOT_RUN} ({figure.published})" if figure.published
        else figure.text or NOT_RUN
        for figure in line.figures
    ]  # fmt: skip


def _caption(page: TablePage) -> str:
    models = dict.fromkeys(page.table.published_of.values())
    brackets = f" In brackets: the published value of {', '.join(models)}." if models else ""
    return f"{page.title}: {page.about}.{brackets}{ours_sentence(page.table)}"


def ours_sentence(table: PaperTable) -> str:
    """A sentence on the columns that the paper lacks; empty without any."""
    if not table.ours:
        return ""
    return (
        f" Not in the paper: {' and '.join(table.ours)}; their published values are computed from "
        "the paper's scores."
    )


def _markdown(page: TablePage) -> str:
    table = page.table
    rows = [[Cell(text) for text in (*line.keys, *_shown(line))] for line in table.lines]
    header = [*table.keys, *table.columns]
    caption = _caption(page)
    body = markdown_table(Table(page.name, caption, header, rows, len(table.keys)))
    parts = [f"**{escaped(caption)}**", body]
    return "\n\n".join([*parts, escaped(page.sentence), *map(escaped, page.notes)]) + "\n"


def _latex(page: TablePage) -> str:
    table = page.table

    def row(parts: Sequence[str]) -> str:
        return " & ".join(_tex(part) for part in parts) + r" \\"

    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_tex(_caption(page))}}}",
        rf"\label{{tab:{page.name}}}",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{'l' * len(table.keys)}{'r' * len(table.columns)}}}",
        r"\toprule",
        row([*table.keys, *table.columns]),
        r"\midrule",
        *(row([*line.keys, *_shown(line)]) for line in table.lines),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "% needs \\usepackage{booktabs,graphicx}\n" + "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in printable(text).replace("\n", " "))


def _html(page: TablePage, folder: Path) -> str:
    def classes(figure: Figure) -> str:
        kinds: Mapping[str, str] = {REPRODUCED: "good", DIFFERS: "bad", NOT_RUN: "missing"}
        return f"{kinds.get(figure.verdict, '')} {'stale' if figure.stale else ''}".strip()

    given: dict[str, Any] = {
        "page": page,
        "counts": outcome(page.table.lines),
        "tolerance": TOLERANCE,
        "classes": classes,
        "ours": ours_sentence(page.table).strip(),
        "sort": sort_script(),
        "embedded": partial(embedded, folder),
    }
    return printable(page_environment().get_template("table.html.jinja").render(**given))

"""From the results of a study to the page of one table or figure of the paper."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure as Drawing

from sf.plotting import figure, in_style, look, note, percent, save
from sf.report.benchmark_tables import measured
from sf.report.cells import DIFFERS, REPRODUCED, TOLERANCE, Sources
from sf.report.curves import curve_picture, title
from sf.report.definitions import DEFINITIONS, Definition
from sf.report.gate import STAND_INS, gate
from sf.report.page import Picture
from sf.report.paper_tables import Line, PaperTable, Row, paper_table
from sf.report.pictures import benchmark_picture, layers_picture
from sf.report.results import Study
from sf.report.table_files import TablePage, outcome, write_table
from sf.training.records import training_picture

__all__ = ["write_table_page"]

OWN = "sparsity_forcing"


def write_table_page(
    target: str, study: Study, rows: Sequence[Row], folder: Path, command: str
) -> dict[str, float]:
    """Write the page and the files of one table or figure.

    Args:
        target: a key of `sf.report.definitions.DEFINITIONS`.
        study: its results.
        rows: that the table shows.
        folder: where `index.html`, `TARGET.csv`, `.md`, `.tex` and `.json` go.
        command: that makes the table.

    Returns:
        Averages, token ratios and counts of the verdicts, by name.
    """
    definition, sources = DEFINITIONS[target], Sources()
    table = paper_table(definition, study, rows, sources)
    pictures = [
        _saved(name, drawing, caption, folder)
        for name, drawing, caption in _drawings(definition, study, rows, table)
    ]
    pictures += _copied(definition, study, folder)
    page = TablePage(
        name=target,
        title=definition.title,
        about=definition.about,
        sentence=_sentence(definition, table),
        notes=_notes(definition, study),
        table=table,
        sources=sources,
        pictures=pictures,
        command=command,
    )
    write_table(page, folder)
    return _figures(table)


def _figures(table: PaperTable) -> dict[str, float]:
    """The first and the last column of lines that a model and a row name, and the verdicts."""
    figures = {f"cells_{name.replace(' ', '_')}": float(n) for name, n in outcome(table).items()}
    for line in table.lines:
        if len(line.keys) == 2:
            for name, cell in (("token_ratio", line.figures[0]), ("average", line.figures[-1])):
                if cell.value is not None:
                    figures[f"{line.keys[0]}/{line.keys[1]}/{name}"] = cell.value
    return figures


def _notes(definition: Definition, study: Study) -> list[str]:
    if definition.shows != "benchmarks":
        return []
    source = study.result("benchmarks")
    stand_ins = source is not None and source.parameters["benchmarks.source"] == "synthetic"
    if definition.kind and definition.published.startswith(("table1", "table2")):
        return gate(measured(study), study, definition.kind, stand_ins)
    return [STAND_INS] if stand_ins else []


def _sentence(definition: Definition, table: PaperTable) -> str:
    """What the table says; counts of verdicts where published figures can be compared."""
    counts = outcome(table)
    compared = counts.get(REPRODUCED, 0) + counts.get(DIFFERS, 0)
    if compared:
        return (
            f"{counts.get(REPRODUCED, 0)} of {compared} published figures are reproduced within "
            f"{TOLERANCE} points of 100."
        )
    said = [text for model in _models(table) if (text := _of_model(definition, table, model))]
    return " ".join(said) or "Nothing of it was run."


def _models(table: PaperTable) -> list[str]:
    return list(dict.fromkeys(line.keys[0] for line in table.lines))


def _of_model(definition: Definition, table: PaperTable, model: str) -> str:
    lines = [line for line in table.lines if line.keys[0] == model and _is_run(line)]
    if not lines:
        return ""
    if definition.shows == "benchmarks":
        whole = [line for line in lines if line.figures[-1].value is not None]
        parts = [
            f"{line.keys[1]} {line.figures[-1].text} with {line.figures[0].text} % of the tokens"
            for line in whole
        ]
        return f"{model}, average: {'; '.join(parts)}." if parts else f"{model}: no whole row."
    if definition.shows in ("curve", "layers"):
        return _before_after(definition, model, lines)
    if definition.shows == "profile":
        last = lines[-1]
        side = f"at {last.keys[2]} tokens ({last.keys[1]}) full / sparse is"
        return (
            f"{model}: {side} {last.figures[-1].text} ({last.figures[-1].interval or 'counted'})."
        )
    if definition.shows == "cost":
        parts = [f"{line.keys[1]} took {line.figures[1].text} hours" for line in lines]
        return f"{model}: {', '.join(parts)}."
    row = lines[-1].keys[1]
    parts = [f"{line.figures[0].text} % of prompts of {line.keys[2]} tokens"
             for line in lines if line.keys[1] == row]  # fmt: skip
    return f"{model}, {row} keeps {', '.join(parts)}."


def _before_after(definition: Definition, model: str, lines: Sequence[Line]) -> str:
    """The largest threshold below 1, before and after training."""
    at: dict[str, Line] = {}
    for line in lines:
        if float(line.keys[2]) < 1:
            at[line.keys[1]] = line
    before, after = at.get("base"), at.get(OWN)
    if before is None or after is None:
        return f"{model}: not both, before and after training, were run."
    p = after.keys[2]
    if definition.shows == "layers":
        means = [
            sum(cell.value or 0.0 for cell in line.figures) / len(line.figures)
            for line in (before, after)
        ]
        return (
            f"{model}: over the layers {means[0]:.1f} % of the tokens are kept at p = {p} before "
            f"training, {means[1]:.1f} % after."
        )
    ratios, right = ([line.figures[at].text for line in (before, after)] for at in (0, 1))
    return (
        f"{model}: at p = {p} training takes the kept tokens from {ratios[0]} % to {ratios[1]} % "
        f"and correct answers from {right[0]} % to {right[1]} %."
    )


def _is_run(line: Line) -> bool:
    return any(cell.value is not None for cell in line.figures)


def _saved(name: str, drawing: Drawing, caption: str, folder: Path) -> Picture:
    save(drawing, folder / "figures", name)
    return Picture(name, caption)


def _drawings(
    definition: Definition, study: Study, rows: Sequence[Row], table: PaperTable
) -> Iterator[tuple[str, Drawing, str]]:
    """Name, picture and caption, a picture a model."""
    frame = measured(study) if definition.shows == "benchmarks" else None
    for model in study.models:
        where = f"{definition.title}, {model}"
        drawing: Drawing | None = None
        if frame is not None:
            part = frame[frame["model"] == model]
            names = [row.name for row in rows]
            drawing = benchmark_picture(part, definition.benchmarks, names, where)
        elif definition.shows == "curve":
            curves = _tables(study, model, rows, "curve.csv")
            drawing = curve_picture(curves, where) if curves else None
        elif definition.shows == "layers":
            layers = _tables(study, model, rows, "layers.csv")
            at = [float(line.keys[2]) for line in table.lines if line.keys[2]]
            drawing = layers_picture(layers, max(at), where) if layers and at else None
        elif definition.shows == "lengths":
            lines = [line for line in table.lines if line.keys[0] == model and line.keys[2]]
            drawing = _length_picture(lines, where) if lines else None
        if drawing is not None:
            yield f"{model}", drawing, f"{where}: {definition.about}."
        if definition.shows == "cost":
            for row in rows:
                result = study.result("train", model=model, objective=row.name)
                if result is not None:
                    drawing = training_picture(result.history(), f"{where}, {row.name}")
                    if drawing is not None:
                        yield f"{model}_{row.name}", drawing, f"{where}: training of {row.name}."


def _tables(study: Study, model: str, rows: Sequence[Row], name: str) -> Mapping[str, pd.DataFrame]:
    results = {row.name: study.result("accuracy_curve", model=model, row=row.name) for row in rows}
    return {row: result.table(name) for row, result in results.items() if result is not None}


def _copied(definition: Definition, study: Study, folder: Path) -> list[Picture]:
    """The profile's own pictures."""
    if definition.shows != "profile":
        return []
    source_name = "latency" if definition.metric == "prefill_ms" else "memory"
    pictures = []
    for model in study.models:
        result = study.result("profile", model=model)
        source = result.folder / "figures" / f"{source_name}.png" if result is not None else None
        if source is None or not source.is_file():
            continue
        name = f"{source_name}_{model}"
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for suffix in (".png", ".svg"):
            target = folder / "figures" / f"{name}{suffix}"
            shutil.copyfile(source.with_suffix(suffix), target)
        pictures.append(Picture(name, f"{model}: {definition.about}."))
    return pictures


@in_style
def _length_picture(lines: Sequence[Line], where: str) -> Drawing:
    """Token ratio and accuracy against prompt length, a mark a group of questions."""
    fig, axes = figure(10.0, 3.9, columns=2)
    names = list(dict.fromkeys(line.keys[1] for line in lines))
    for name in names:
        style = look(name, names)
        part = [line for line in lines if line.keys[1] == name]
        middles = [sum(map(float, line.keys[2].split(" to "))) / 2 for line in part]
        for panel, at in zip(axes[0], (0, 1), strict=True):
            values = [(line.figures[at].value or 0.0) / 100 for line in part]
            panel.plot(
                middles,
                values,
                color=style.colour,
                marker=style.marker,
                linestyle=style.line,
                label=title(name),
            )
    for panel, what in zip(axes[0], ("token ratio (%)", "correct answers (%)"), strict=True):
        panel.set(xlabel="prompt length (tokens)", ylabel=what, ylim=(0, 1.03))
        percent(panel, "y")
    axes[0][0].legend(loc="best")
    note(fig, f"{where}; marks: quarters of the questions by prompt length")
    return fig

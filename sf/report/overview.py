"""The report's first part: summary sentences, and every table and figure of the paper."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path

from sf.atomic_files import read_json
from sf.layout import STAMP
from sf.report.benchmark_tables import Cell
from sf.report.curve_comparison import Difference
from sf.report.definitions import DEFINITIONS, Targets
from sf.report.page import Section, Table
from sf.report.results import Study

__all__ = ["tables_section", "verdict_sentence"]


def verdict_sentence(
    model: str, objective: str, retention_p: float, changes: Mapping[str, Difference]
) -> str:
    """The effect of training on one model, on the held-out questions.

    Args:
        model: base model.
        objective: training objective.
        retention_p: of both.
        changes: in "token_ratio" and "accuracy" at that threshold.
    """
    ratio, right = changes["token_ratio"], changes["accuracy"]
    return (
        f"Trained with {objective}, {model} keeps {100 * ratio.after:.1f} % of the tokens at "
        f"p = {retention_p:g}, {100 * ratio.before:.1f} % before training ({_change(ratio)}), and "
        f"answers {100 * right.after:.1f} % of the questions correctly, {100 * right.before:.1f} % "
        f"before ({_change(right)})."
    )


def _change(difference: Difference) -> str:
    low, high = 100 * difference.low, 100 * difference.high
    return f"{100 * difference.change:+.1f} points, 95 % interval {low:+.1f} to {high:+.1f}"


def tables_section(study: Study, targets: Targets, folder: Path) -> Section:
    """The main result and a link for each finished table; command and cost for the others.

    Args:
        study: its results.
        targets: its tables and figures.
        folder: of the report; the pages are copied there.
    """
    pages, rows, quiet = targets.pages(study), [], []
    for name, definition in DEFINITIONS.items():
        about = Cell(f"{definition.title}: {definition.about}")
        if name in pages:
            shutil.copytree(
                pages[name], folder / name, ignore=shutil.ignore_patterns(STAMP, "metrics.json")
            )
            content = read_json(pages[name] / f"{name}.json")
            counts = ", ".join(f"{count} {verdict}" for verdict, count in
                               content["outcome"].items())  # fmt: skip
            about = Cell(about.text, link=f"{name}/index.html")
            rows.append([about, Cell(content["sentence"]), Cell(counts), Cell("")])
            continue
        quiet.append(len(rows))
        command = f"snakemake --cores all {name}"
        missing = targets.lacking.get(name, 0)
        if missing:
            command = f"sf plan {name} names {missing} rows to add; then {command}"
        rows.append([about, Cell("Not run."), Cell(_cost(study, name, missing)), Cell(command)])
    table = Table(
        name="contents",
        caption="Tables and figures of the paper",
        header=["table or figure", "main result", "verdicts, or cost", "command"],
        rows=rows,
        keys=4,
        quiet=frozenset(quiet),
    )
    return Section("Tables and figures of the paper", tables=[table])


def _cost(study: Study, name: str, missing: int) -> str:
    """The time for the missing rows, by the median of this study's finished jobs."""
    if not missing:
        return f"see `sf plan {name}`"
    seconds: dict[str, list[float]] = {}
    for result in study.everything():
        seconds.setdefault(result.kind, []).append(float(result.stamp["seconds"]))
    kinds = ["evaluate"] if name == "table8" else ["train", "evaluate"]
    if any(kind not in seconds for kind in kinds):
        return f"unknown: no {' and '.join(kinds)} job has run"
    jobs = missing * len(study.models)
    times = {"train": len(study.seeds), "evaluate": len(study.suites)}
    hours = sum(jobs * times[kind] * statistics.median(seconds[kind]) for kind in kinds) / 3600
    return f"about {hours:.2g} job hours, estimated from this study's jobs"

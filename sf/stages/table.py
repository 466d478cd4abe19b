"""Stage `table`: one table or figure of the paper from the results of a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from sf.fields import Section, Seed
from sf.report.definitions import DEFINITIONS, Row
from sf.report.results import Study
from sf.sections import Suite

if TYPE_CHECKING:
    from sf.jobs import Job


class Parameters(Section):
    """One table of one study."""

    target: str = Field(description="table1 to table8, figure4a, …")
    models: list[str] = Field(description="names of the base models")
    without: dict[str, list[str]] = Field(
        default_factory=dict, description="rows that a model does not have, by model"
    )
    rows: list[Row] = Field(description="rows that the table shows; empty: none")
    suites: list[Suite] = Field(description="suites that contain its benchmarks")
    train_seed: Seed = Field(description="seed of the training whose results are shown")
    results: Path = Field(description="folder of the study's results")
    output: Path = Field(description="folder of the table")


def study_of(p: Parameters) -> Study:
    """The part of the study that the table shows."""
    untrained = tuple(row.name for row in p.rows if not row.trained)
    return Study(
        p.results,
        tuple(p.models),
        untrained,
        tuple(row.name for row in p.rows if row.trained),
        tuple(p.suites),
        (p.train_seed,),
        tuple(name for name in untrained if name != "base"),
        p.without,
    )


def inputs(p: Parameters) -> dict[str, Path]:
    """The finished results; missing ones are shown as "not run"."""
    kinds = DEFINITIONS[p.target].results
    if "evaluate" in kinds:
        kinds = (*kinds, "benchmarks")  # to mark synthetic data
    folders = [result.folder for result in study_of(p).everything() if result.kind in kinds]
    return {folder.relative_to(p.results).as_posix(): folder for folder in folders}


def run(p: Parameters, job: Job) -> None:
    """Write `index.html`, the table as CSV, Markdown, LaTeX and JSON, and its figures."""
    from sf.report.table_pages import write_table_page

    command = f"snakemake --cores all {p.target}"
    job.tracker.summary(write_table_page(p.target, study_of(p), p.rows, job.out, command))
    print(f"{p.target}: {p.output / 'index.html'}")

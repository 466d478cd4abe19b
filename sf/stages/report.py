"""Stage `report`: tables, figures and one page from all results of a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from sf.fields import Section
from sf.report.definitions import Targets
from sf.report.results import Study
from sf.sections import Axes, Benchmarks

if TYPE_CHECKING:
    from sf.jobs import Job


class Parameters(Section):
    """One study."""

    scale: str = Field(description="name of the study")
    models: list[str] = Field(description="names of the base models")
    without: dict[str, list[str]] = Field(
        default_factory=dict, description="rows that a model does not have, by model"
    )
    objectives: list[str] = Field(description="names of the rows with training")
    targets: list[str] = Field(
        default_factory=list, description="tables and figures with their own page"
    )
    lacking: dict[str, int] = Field(
        default_factory=dict, description="missing rows of each other table"
    )
    axes: Axes
    benchmarks: Benchmarks
    results: Path = Field(description="folder of the study's results")
    output: Path = Field(description="folder of the report")


def study_of(p: Parameters) -> Study:
    """The study that the parameters name."""
    return Study(
        p.results,
        tuple(p.models),
        tuple(p.axes.methods),
        tuple(p.objectives),
        tuple(p.benchmarks.suites),
        tuple(p.axes.seeds),
        tuple(p.axes.curve_methods),
        p.without,
    )


def inputs(p: Parameters) -> dict[str, Path]:
    """The finished results; missing ones are shown as "not measured"."""
    study = study_of(p)
    folders = [result.folder for result in study.everything()]
    folders += Targets(tuple(p.targets)).pages(study).values()
    return {folder.relative_to(p.results).as_posix(): folder for folder in folders}


def run(p: Parameters, job: Job) -> None:
    """Write `index.html`, `report.md`, `tables/*.csv`, `figures/*.png` and `.svg`.

    Each finished table of `targets` gets a folder with its page.
    """
    from sf.report.build import build_report

    targets = Targets(tuple(p.targets), p.lacking)
    job.tracker.summary(build_report(study_of(p), p.scale, job.out, targets))

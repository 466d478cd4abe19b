"""Stage `previews`: previews of a suite's questions for the report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from sf.fields import Section
from sf.sections import Suite, Vision

if TYPE_CHECKING:
    from sf.jobs import Job


class Parameters(Section):
    """One suite of benchmarks."""

    suite: Suite = Field(description="a benchmark's name, or image, video, all")
    vision: Vision
    benchmarks: Path = Field(description="result of the stage benchmarks")
    output: Path = Field(description="results folder")


def run(p: Parameters, job: Job) -> None:
    """Write `tables/previews.parquet` (`sf.evaluation.previews.preview_table`).

    Raises:
        DataError: the benchmark data are missing.
    """
    from sf.evaluation.benchmarks import suite
    from sf.evaluation.previews import preview_table
    from sf.evaluation.source import read_source
    from sf.tables import write_parquet

    source = read_source(p.benchmarks)
    table = preview_table(suite(p.suite), source, p.benchmarks, p.vision, job.state)
    write_parquet(table, job.out / "tables" / "previews.parquet")
    job.tracker.summary({"questions": float(len(table))})

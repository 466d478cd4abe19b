"""Stage `benchmarks`: the data of the thirteen benchmarks, generated or checked."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from sf.fields import Section, Seed
from sf.sections import Benchmarks, Vision

if TYPE_CHECKING:
    from sf.jobs import Job


class Parameters(Section):
    """The source of the benchmarks; only the data of the `suites` are required."""

    seed: Seed = Field(description="seed of the synthetic data")
    benchmarks: Benchmarks
    vision: Vision
    fetched: Path | None = Field(
        None, description="result of the stage fetch; without it, source 'hub' is fetched here"
    )
    output: Path = Field(description="results folder")


def asks_hub(p: Parameters) -> bool:
    """Whether the stage needs a network."""
    return p.fetched is None and p.benchmarks.source == "hub"


def inputs(p: Parameters) -> dict[str, Path]:
    """The stage's inputs: the fetched commits."""
    return {"fetched": p.fetched} if p.fetched else {}


def run(p: Parameters, job: Job) -> None:
    """Write synthetic benchmarks to `home/`, or check real ones and open all their media.

    Real benchmarks come from a local folder or the hub cache. Writes `benchmarks.json`
    (`sf.evaluation.source.BenchmarkSource`), which the evaluation reads, and
    `tables/benchmarks.csv` (one line per task).

    Raises:
        DataError: real data are incomplete; the error lists everything that is missing.
    """
    from sf.evaluation.source import prepare_source, source_table
    from sf.tables import write_csv

    given = p.benchmarks
    source, rows = prepare_source(
        given.source,
        given.samples,
        p.seed,
        given.suites,
        p.vision,
        job.out,
        job.state,
        p.fetched,
    )
    source.write(job.out)
    table = source_table(source, rows)
    write_csv(table, job.out / "tables" / "benchmarks.csv")
    job.tracker.summary({"tasks": float(len(table)), "rows": float(table["rows"].sum())})

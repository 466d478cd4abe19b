"""Stage `benchmarks`: the thirteen benchmarks' data, written (stand-ins) or checked (real ones)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from sf.fields import Section, Seed
from sf.sections import Benchmarks, Vision

if TYPE_CHECKING:
    from sf.jobs import Job


class Parameters(Section):
    """Where the benchmarks come from; only the data of the `suites` must be there."""

    seed: Seed = Field(description="seed of the synthetic data")
    benchmarks: Benchmarks
    vision: Vision
    fetched: Path | None = Field(
        None, description="result of the stage fetch; absent: source 'hub' is fetched here"
    )
    output: Path = Field(description="results folder")


def asks_hub(p: Parameters) -> bool:
    """Whether the stage needs a network."""
    return p.fetched is None and p.benchmarks.source == "hub"


def inputs(p: Parameters) -> dict[str, Path]:
    """What the stage reads: the commits that were fetched."""
    return {"fetched": p.fetched} if p.fetched else {}


def run(p: Parameters, job: Job) -> None:
    """Write stand-ins into `home/`, or check a local folder or the hub cache and open all media.

    Writes `benchmarks.json` (`sf.evaluation.source.Source`), which the evaluation reads, and
    `tables/benchmarks.csv` (one line per task).

    Raises:
        DataError: real data are incomplete; everything that is missing is said at once.
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

"""Stage `fetch`: downloads a study's hub sources to the local cache; needs no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from sf.fields import Section, Seed
from sf.sections import Suite

if TYPE_CHECKING:
    from sf.jobs import Job


class Parameters(Section):
    """One source."""

    what: Literal["rows", "weights", "benchmarks"] = Field(description="kind of source")
    source: str = Field(
        description="'hub:OWNER/NAME@REVISION', or 'hub' for benchmarks; other "
        "sources are not fetched"
    )
    data_sources: list[str] = Field(
        default_factory=list, description="rows: data_source or top media folder; empty for all"
    )
    sample_rows: int = Field(0, ge=0, description="rows: size of a stratified sample; 0 for all")
    seed: Seed = Field(0, description="rows: seed of the sample")
    suites: list[Suite] = Field(default_factory=list, description="benchmarks: suites to fetch")
    output: Path = Field(description="results folder")


def asks_hub(p: Parameters) -> bool:
    """Whether the stage needs a network."""
    return p.source.startswith("hub")


def run(p: Parameters, job: Job) -> None:
    """Download missing files to HF_HOME, after announcing their size and checking the disk space.

    Writes the fetched commit to `origin.json`, or the benchmarks' commits to `commits.json`, one
    line per repository. Stages that read the source use this commit without contacting the hub.
    Interrupted downloads are resumed.

    Raises:
        ConfigError: a malformed source.
        DataError: benchmarks are missing and the hub cannot be reached.
        EnvironmentFault: the hub does not answer, a source is gated and HF_TOKEN gives no access,
            or the disk lacks space.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    if not asks_hub(p):
        return
    if p.what == "rows":
        from sf.data.preparation import RowSelection, fetch_rows

        selection = RowSelection(p.data_sources, p.sample_rows, p.seed)
        fetch_rows(p.source, selection, job.out, p.output)
    elif p.what == "weights":
        from sf.data.hub import HubSource, parse_hub, record_commit, recorded_commit
        from sf.data.hub_cache import hub_folder

        hub = parse_hub(p.source)
        known = recorded_commit(p.source, (job.out, p.output)) or hub.revision
        record_commit(job.out, p.source, hub_folder(HubSource(hub.name, known))[1])
    else:
        from sf.evaluation.benchmarks import benchmarks_of
        from sf.evaluation.hub_home import fetch_benchmarks

        fetch_benchmarks(benchmarks_of(p.suites), job.out, p.output, job.state)

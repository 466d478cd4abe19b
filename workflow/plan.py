"""`sf plan TARGET`: the jobs that a table needs, their status, and the cost of the missing ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from rich.markup import escape
from rich.table import Table

from sf.config import Params
from sf.evaluation.benchmarks import benchmarks_of
from workflow.jobs import JobSpec, jobs, resources_of
from workflow.status import JobStatus, expected_by_job, study_status
from workflow.targets import closure, jobs_of
from workflow.terms import terms_notes

__all__ = ["Plan", "PlannedJob", "as_json", "as_table", "plan", "sentences"]


@dataclass(frozen=True)
class PlannedJob:
    """One job of a plan.

    Attributes:
        entry: the job and its status.
        hours: its expected time; 0 if its result is valid.
        basis: of the hours: "measured" (an earlier run of this job, or the median of the rule's
            finished jobs) or "limit" (the time limit of `resources`, an upper bound).
        gpus: number of GPUs that it uses.
    """

    entry: JobStatus
    hours: float
    basis: str
    gpus: int


@dataclass(frozen=True)
class Plan:
    """The jobs of a target.

    Attributes:
        target: table, figure or "all".
        jobs: in the study's order.
        downloads: sources that are not yet local.
    """

    target: str
    jobs: list[PlannedJob]
    downloads: list[str]

    @property
    def to_make(self) -> list[PlannedJob]:
        return [job for job in self.jobs if job.entry.status != "holds"]


def plan(target: str, params: Params) -> Plan:
    """The plan of a table, a figure or the complete study; runs nothing.

    Raises:
        ConfigError: see `workflow.targets.jobs_of`.
    """
    listed = jobs(params)
    shown = jobs_of(target, params, listed)
    pages = [job for job in listed if job.names.get("target") == target]
    needed = closure([*shown, *pages], listed)
    statuses = study_status(listed)
    seconds = expected_by_job(statuses)
    names = {job.name for job in needed}
    planned = [
        _planned(entry, params, seconds[entry.job.name])
        for entry in statuses
        if entry.job.name in names
    ]
    missing = [one.entry.job for one in planned if one.entry.status != "holds"]
    return Plan(target, planned, list(dict.fromkeys(_downloads(missing))))


def _planned(entry: JobStatus, params: Params, seconds: float | None) -> PlannedJob:
    _, given = resources_of(entry.job.stage.run, entry.job.parameters, params)
    gpus = given.all_gpus
    if entry.status == "holds":
        return PlannedJob(entry, 0.0, "", gpus)
    if seconds is not None:
        return PlannedJob(entry, seconds / 3600, "measured", gpus)
    return PlannedJob(entry, given.hours, "limit", gpus)


def _downloads(missing: Iterable[JobSpec]) -> Iterator[str]:
    """The downloads of the missing results."""
    for job in (job for job in missing if job.stage.run == "fetch"):
        source = job.parameters["source"]
        if source == "hub":
            titles = (one.title for one in benchmarks_of(job.parameters["suites"]))
            yield from (f"benchmark {title}" for title in titles)
        elif source.startswith("hub:"):
            yield source.removeprefix("hub:")


def as_table(made: Plan) -> Table:
    """A table with one line per job."""
    table = Table()
    for title in ("job", "status", "GPUs", "hours", "from"):
        table.add_column(title, overflow="fold")
    for job in made.jobs:
        hours = f"{job.hours:.2g}" if job.basis else ""
        table.add_row(escape(job.entry.job.name), job.entry.status, str(job.gpus), hours, job.basis)
    return table


def sentences(made: Plan) -> list[str]:
    """The total cost of the jobs, and its basis."""
    left = made.to_make
    if not left:
        return [f"{made.target}: all {len(made.jobs)} results are valid; nothing to do"]
    limited = [job for job in left if job.basis == "limit"]
    hours = sum(job.hours for job in left)
    gpu_hours = sum(job.hours * job.gpus for job in left)
    lines = [
        f"{made.target}: {len(made.jobs)} jobs, {len(made.jobs) - len(left)} results valid, "
        f"{len(left)} to run",
        f"{'at most' if limited else 'about'} {hours:.3g} job hours, {gpu_hours:.3g} GPU-hours"
        + (f"; {len(limited)} jobs count with the time limit in resources" if limited else ""),
    ]
    if made.downloads:
        lines.append(f"{len(made.downloads)} downloads: {', '.join(made.downloads)}")
    else:
        lines.append("no downloads")
    return [*lines, *terms_notes(job.entry.job for job in left)]


def as_json(made: Plan) -> dict[str, object]:
    """Plain values for programs."""
    return {
        "target": made.target,
        "jobs": [
            {
                "name": job.entry.job.name,
                "output": job.entry.job.output,
                "status": job.entry.status,
                "gpus": job.gpus,
                "hours": job.hours,
                "basis": job.basis,
            }
            for job in made.jobs
        ],
        "downloads": made.downloads,
    }

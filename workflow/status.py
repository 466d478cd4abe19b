"""The state of each job of a study: whether its result holds, and why or why not."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table

from sf.config import validated
from sf.errors import DataError
from sf.jobs import stage_module
from sf.layout import STAMP, work_folder
from sf.result_key.contents import input_digest
from sf.result_key.key import RECORD, Change, State, input_paths, key_of, state_of
from sf.result_key.stamp import read_stamp
from sf.reuse import LOCK
from workflow.jobs import JobSpec

__all__ = ["JobStatus", "as_json", "as_table", "stale_jobs", "study_status"]

Status = Literal["holds", "running", "stale", "missing"]
COLOURS: dict[str, str] = {"holds": "green", "running": "blue", "stale": "yellow", "missing": "red"}
MOST_REASONS = 6  # in the table; --json has all


@dataclass(frozen=True)
class JobStatus:
    """One job.

    Attributes:
        job: of the study.
        status: of its result; "running" while a process works on it.
        changes: why the result is stale.
        waits_for: names of the jobs whose results it reads and that do not hold.
        stamp: the record of the result; empty without one.
    """

    job: JobSpec
    status: Status
    changes: tuple[Change, ...] = ()
    waits_for: tuple[str, ...] = ()
    stamp: dict[str, Any] = field(default_factory=dict)

    @property
    def reasons(self) -> list[str]:
        """Why the result has its status, a sentence each."""
        reasons = [str(change) for change in self.changes]
        if self.waits_for and self.status != "missing":
            names = ", ".join(self.waits_for)
            reasons.append(f"reads {names}, which does not hold")
        if self.status == "holds":
            parts = ("key_parameters", "inputs", "code", "packages")
            counts = [len(self.stamp[part]) for part in parts]
            reasons.append(
                "same {} parameters, {} inputs, {} modules and {} packages; "
                "made at commit {}".format(*counts, str(self.stamp.get("commit"))[:7])
            )
        return reasons


def study_status(specs: Iterable[JobSpec]) -> list[JobStatus]:
    """The status of each job, in the study's order; nothing is run or written but caches."""
    reader = _Inputs()
    listed: list[JobStatus] = []
    failing: dict[str, str] = {}
    for job in specs:
        state = _state(job, reader)
        waits_for = tuple(failing[stamp] for stamp in job.inputs if stamp in failing)
        status: Status = "stale" if state.status == "holds" and waits_for else state.status
        if _is_locked(Path(job.output)):
            status = "running"
        if status != "holds":
            failing[job.stamp] = job.name
        listed.append(JobStatus(job, status, state.changes, waits_for, dict(state.stamp)))
    return listed


def stale_jobs(specs: Iterable[JobSpec]) -> list[JobStatus]:
    """The jobs whose results have a stamp and do not hold, whatever became of their inputs.

    Snakemake knows what it ran itself. It does not know that a result of the other engine was made
    with other parameters or code, or that a file of a finished result was damaged. Removing such a
    stamp makes Snakemake call the stage again.
    """
    return [s for s in study_status(specs) if s.changes and Path(s.job.stamp).is_file()]


def _parameters(job: JobSpec) -> BaseModel:
    model: type[BaseModel] = stage_module(job.stage.run).Parameters
    return validated(model, job.parameters)


class _Inputs:
    """Digests of inputs, each read once."""

    def __init__(self) -> None:
        self.known: dict[Path, str | None] = {}

    def digest(self, path: Path, work: Path) -> str | None:
        """None for an input that is missing or damaged."""
        if path not in self.known:
            try:
                self.known[path] = input_digest(path, work)
            except DataError:
                self.known[path] = None
        return self.known[path]


def _state(job: JobSpec, reader: _Inputs) -> State:
    module, parameters = stage_module(job.stage.run), _parameters(job)
    output = Path(job.output)
    work = work_folder(output)
    stamp = read_stamp(output / STAMP) or read_stamp(work / RECORD)
    if stamp is None:
        return State("missing")
    recorded = stamp.get("inputs", {})
    inputs: dict[str, str] = {}
    try:
        paths = input_paths(module, parameters)
    except DataError as error:  # a source that is gone
        return State("stale", (Change("input", error.field, new=error.rule),), stamp)
    for name, path in paths.items():
        digest = reader.digest(path, work)
        if digest is not None:
            inputs[name] = digest
        elif name in recorded:  # what became of it is said of the job that writes it
            inputs[name] = recorded[name]
    return state_of(output, key_of(job.stage.run, module, parameters, inputs))


def _is_locked(output: Path) -> bool:
    """Whether a process works on an output; the lock is taken for an instant, and shared."""
    try:
        descriptor = os.open(work_folder(output) / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def as_json(listed: Iterable[JobStatus]) -> list[dict[str, Any]]:
    """Plain values: name, stage, output, status, reasons, changes."""
    return [
        {
            "name": status.job.name,
            "stage": status.job.stage.run,
            "output": status.job.output,
            "status": status.status,
            "reasons": status.reasons,
            "changes": [asdict(change) for change in status.changes],
            "waits_for": list(status.waits_for),
        }
        for status in listed
    ]


def as_table(listed: Iterable[JobStatus]) -> Table:
    """A line a job: name, status, reasons."""
    table = Table()
    for title in ("result", "status", "why"):
        table.add_column(title, overflow="fold")
    for status in listed:
        reasons = status.reasons
        hidden = len(reasons) - MOST_REASONS
        if hidden > 1:
            reasons = [*reasons[:MOST_REASONS], f"… and {hidden} more (--json shows all)"]
        colour = COLOURS[status.status]
        text = escape("\n".join(reasons))
        table.add_row(escape(status.job.name), f"[{colour}]{status.status}[/]", text)
    return table

"""The status of each job of a study: whether its result is valid, the reasons, and running jobs."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table

from sf.attempts import FAILED, STOPPED, Attempt, last_attempt
from sf.errors import DataError, EnvironmentFault
from sf.escaping import printable
from sf.jobs import stage_module
from sf.layout import STAMP, work_folder
from sf.result_key.contents import input_digest
from sf.result_key.key import RECORD, Change, State, input_paths, key_of, state_of
from sf.result_key.stamp import read_stamp
from sf.reuse import LOCK
from sf.validation import validated
from workflow import slurm
from workflow.jobs import JobSpec
from workflow.time_left import expected_seconds

__all__ = [
    "JobStatus",
    "as_json",
    "as_table",
    "expected_by_job",
    "log_file",
    "stale_jobs",
    "study_status",
    "totals",
]

Status = Literal["holds", "running", "queued", "failed", "stopped", "stale", "missing"]
COLOURS: dict[str, str] = {
    "holds": "green",
    "running": "blue",
    "queued": "blue",
    "failed": "bold red",
    "stopped": "yellow",
    "stale": "yellow",
    "missing": "red",
}
TAIL_BYTES = 4096
MOST_REASONS = 6  # in the table; --json has all


@dataclass(frozen=True)
class JobStatus:
    """One job.

    Attributes:
        job: of the study.
        status: of its result; "running" while a process works on it, "queued" while Slurm has it
            in the queue, "failed" or "stopped" if the last attempt ended without a valid result.
        changes: the reasons why the result is stale.
        waits_for: names of the jobs whose results it reads and that are not valid.
        stamp: the record of the result; empty if missing.
        attempt: the last call of the stage.
        slurm_jobs: its running or pending Slurm jobs.
    """

    job: JobSpec
    status: Status
    changes: tuple[Change, ...] = ()
    waits_for: tuple[str, ...] = ()
    stamp: dict[str, Any] = field(default_factory=dict)
    attempt: Attempt | None = None
    slurm_jobs: tuple[slurm.QueuedJob, ...] = ()

    @property
    def reasons(self) -> list[str]:
        """The reasons for the status, one sentence each."""
        reasons = [*self._attempt(), *(str(change) for change in self.changes)]
        if self.waits_for and self.status != "missing":
            names = ", ".join(self.waits_for)
            reasons.append(f"reads {names}, which is not valid")
        if self.status == "holds":
            parts = ("key_parameters", "inputs", "code", "packages")
            counts = [len(self.stamp[part]) for part in parts]
            reasons.append(
                "same {} parameters, {} inputs, {} modules and {} packages; "
                "made at commit {}".format(*counts, str(self.stamp.get("commit"))[:7])
            )
        return reasons

    def _attempt(self) -> list[str]:
        """The running process, or the end of the last attempt, with the log's last line."""
        lines = [f"Slurm job {job.id}{self._of(job)}: {job.state}" for job in self.slurm_jobs]
        if self.status not in ("running", "failed", "stopped"):
            return lines
        if self.attempt is not None:
            lines.append(self.attempt.where)
        if self.status != "running" and self.attempt is not None:
            lines.append(self.attempt.reason or _killed(self.attempt))
        last = log_tail(log_file(self.job))
        return [*lines, f"{log_file(self.job)}: {last}"] if last else lines

    def _of(self, queued: slurm.QueuedJob) -> str:
        return "" if queued.rule == self.job.name else f" of several {self.job.stage.name} jobs"


def study_status(specs: Iterable[JobSpec]) -> list[JobStatus]:
    """The status of each job, in the study's order; runs nothing and writes only caches."""
    specs = list(specs)
    reader, queued = _Inputs(), _queued()
    listed: list[JobStatus] = []
    failing: dict[str, str] = {}
    for job in specs:
        state = _state(job, reader)
        waits_for = tuple(failing[stamp] for stamp in job.inputs if stamp in failing)
        status: Status = "stale" if state.status == "holds" and waits_for else state.status
        jobs = tuple(entry for entry in queued if entry.rule == job.name)
        if not jobs and status != "holds" and not waits_for:  # a job that a group may contain
            names = [spec.name for spec in specs if spec.stage == job.stage]
            jobs = tuple(
                entry for entry in queued if entry.may_contain(job.name, job.stage.name, names)
            )
        attempt = last_attempt(work_folder(Path(job.output)))
        status = _progress(job, status, attempt, jobs)
        if status != "holds":
            failing[job.stamp] = job.name
        entry = JobStatus(job, status, state.changes, waits_for, dict(state.stamp), attempt, jobs)
        listed.append(entry)
    return listed


def _progress(
    job: JobSpec, status: Status, attempt: Attempt | None, jobs: tuple[slurm.QueuedJob, ...]
) -> Status:
    """The status of a result, or of the job if its result is not valid."""
    own = [entry for entry in jobs if entry.rule == job.name]  # a group's jobs run in turn
    if _is_locked(Path(job.output)) or any(entry.state == "RUNNING" for entry in own):
        return "running"
    if status == "holds":
        return status
    if jobs:
        return "queued"
    if attempt is not None and attempt.outcome == FAILED:
        return "failed"
    if attempt is not None and attempt.outcome in (STOPPED, ""):
        return "stopped"
    return status


def _queued() -> list[slurm.QueuedJob]:
    """Slurm's jobs of this checkout; none if Slurm is absent or does not respond."""
    if shutil.which("squeue") is None:
        return []
    try:
        return slurm.jobs_of(Path.cwd())
    except EnvironmentFault:
        return []


def _killed(attempt: Attempt) -> str:
    """The reason why an attempt ended without a message."""
    state = slurm.end_of(attempt.slurm_job) if attempt.slurm_job else None
    if state:
        return f"ended without a message; Slurm: {state}"
    return "ended without a message: killed, out of memory, or a machine failure"


def log_file(job: JobSpec) -> Path:
    """Snakemake's log of a job."""
    return Path("logs") / str(job.names["scale"]) / f"{job.name}.log"


def log_tail(path: Path) -> str:
    """The last non-empty line of a log; "" without one."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(path.stat().st_size - TAIL_BYTES, 0))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((printable(line.strip()) for line in reversed(lines) if line.strip()), "")


def totals(listed: Iterable[JobStatus]) -> str:
    """The number of jobs of each status, and the hours left if known."""
    listed = list(listed)
    counts = Counter(entry.status for entry in listed)
    text = ", ".join(f"{count} {name}" for name, count in counts.items())
    left = [entry for entry in listed if entry.status != "holds"]
    if not left:
        return text
    seconds = expected_by_job(listed)
    known = [seconds[entry.job.name] for entry in left]
    hours = sum(filter(None, known)) / 3600
    unknown = known.count(None)
    text += f"; about {hours:.2g} h of work left" if unknown < len(left) else "; work left unknown"
    return (
        f"{text}, {unknown} jobs of unknown length not counted" if 0 < unknown < len(left) else text
    )


def expected_by_job(listed: Iterable[JobStatus]) -> dict[str, float | None]:
    """How long each job will take, by name, from this study's own stamps.

    None if no job of the rule has a result.
    """
    listed = list(listed)
    spent = {
        entry.job.name: float(entry.stamp["seconds"])
        for entry in listed
        if entry.stamp.get("seconds")
    }
    return expected_seconds([entry.job for entry in listed], spent, {})


def stale_jobs(specs: Iterable[JobSpec]) -> list[JobStatus]:
    """The jobs whose results have a stamp but are not valid, regardless of their inputs' state.

    Snakemake tracks only its own runs. It cannot detect that DVC produced a result with other
    parameters or code, that a file of a finished result was damaged, or what a job used that ended
    just before Snakemake was killed.
    """
    return [s for s in study_status(specs) if s.changes and Path(s.job.stamp).is_file()]


def _parameters(job: JobSpec) -> BaseModel:
    model: type[BaseModel] = stage_module(job.stage.run).Parameters
    return validated(model, job.parameters)


class _Inputs:
    """Digests of inputs, each computed once."""

    def __init__(self) -> None:
        self.known: dict[Path, str | None] = {}

    def digest(self, path: Path, work: Path) -> str | None:
        """The digest, or None for a missing or damaged input."""
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
    except DataError as error:  # a source that no longer exists
        return State("stale", (Change("input", error.field, new=error.rule),), stamp)
    for name, path in paths.items():
        digest = reader.digest(path, work)
        if digest is not None:
            inputs[name] = digest
        elif name in recorded:  # the status of the writing job reports the change
            inputs[name] = recorded[name]
    return state_of(output, key_of(job.stage.run, module, parameters, inputs))


def _is_locked(output: Path) -> bool:
    """Whether a process is writing an output; briefly takes a shared lock."""
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
            "attempt": asdict(status.attempt) if status.attempt else None,
            "slurm_jobs": [asdict(entry) for entry in status.slurm_jobs],
        }
        for status in listed
    ]


def as_table(listed: Iterable[JobStatus]) -> Table:
    """A table with one line per job: name, status, reasons."""
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

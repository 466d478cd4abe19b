"""The last attempt at a job: where it ran and how it ended, for messages and `sf status`."""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sf.atomic_files import read_json, write_json
from sf.escaping import printable
from sf.interruption import JobInterrupted
from sf.redaction import redact
from sf.slurm_job import JOB

__all__ = ["Attempt", "last_attempt", "noted"]

FILE = "attempt.json"
DONE, FAILED, STOPPED = "done", "failed", "stopped"
_LONGEST = 500


@dataclass(frozen=True)
class Attempt:
    """One call of a stage that acquired the lock of its output.

    Attributes:
        host: host name.
        pid: process id.
        slurm_job: Slurm's id; "" outside Slurm.
        began, ended: seconds since 1970; `ended` is None while it runs and after a kill.
        outcome: "done", "failed", "stopped" or, while it runs and after a kill, "".
        reason: of the failure or stop.
    """

    host: str
    pid: int
    slurm_job: str
    began: float
    ended: float | None = None
    outcome: str = ""
    reason: str = ""

    @property
    def where(self) -> str:
        """A description of the process."""
        job = f", Slurm job {self.slurm_job}" if self.slurm_job else ""
        began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.began))
        return f"process {self.pid} on {self.host}{job}, since {began}"


def last_attempt(work: Path) -> Attempt | None:
    """The attempt recorded in a work folder; None without a readable record."""
    try:
        return Attempt(**read_json(work / FILE))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def noted(work: Path) -> Iterator[None]:
    """Record the start and the end of an attempt."""
    job = os.environ.get(JOB, "")
    attempt = Attempt(socket.gethostname(), os.getpid(), job, time.time())
    write_json(work / FILE, asdict(attempt))
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, JobInterrupted | KeyboardInterrupt)
        text = str(error).strip() or type(error).__name__
        reason = printable(redact(text))[:_LONGEST]
        _end(work, attempt, STOPPED if stopped else FAILED, reason)
        raise
    _end(work, attempt, DONE)


def _end(work: Path, attempt: Attempt, outcome: str, reason: str = "") -> None:
    """Record the end; only warns on failure, since a full disk must not hide the actual error."""
    try:
        ended = replace(attempt, ended=time.time(), outcome=outcome, reason=reason)
        write_json(work / FILE, asdict(ended))
    except OSError as error:
        warnings.warn(f"the end of this attempt could not be recorded: {error}", stacklevel=3)

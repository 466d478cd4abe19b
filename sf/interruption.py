"""Jobs that end before their work is done: warned by a signal, they continue in the next job.

A scheduler ends a job at its time limit, on preemption, or when its node is drained. Under Slurm, a
job sends itself SIGUSR1 before its limit; anyone may send SIGUSR1 or SIGTERM. Training then
finishes its step and writes a checkpoint; every other stage stops at once, because its partial
results survive any kill. The process ends with status 75 ("try again later"). Near its limit, it
also requeues the Slurm job under the same job id, so that training of any length runs in jobs of
any length.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sf.slurm_job import END, JOB, RESTARTS

__all__ = ["STATUS", "JobInterrupted", "listening", "remaining_seconds", "requested", "requeue"]

STATUS = 75  # EX_TEMPFAIL of sysexits.h
WARNING_SECONDS = 120.0
"""Warning time before the limit of a job, at most a fifth of its time."""
LIMIT = "SIGUSR1"
MOST_RESTARTS = 10
_requested: str | None = None


class JobInterrupted(BaseException):
    """The job was told to stop, and its work is kept; stages must not catch it.

    Attributes:
        cause: name of the signal.
        progress: whether work was certainly done.
    """

    def __init__(self, cause: str, done: str = "") -> None:
        self.cause, self.progress = cause, bool(done)
        what = f" {done}" if done else ""
        super().__init__(f"stopped by {cause}{what}; the same command continues from here")


def requested() -> str | None:
    """The signal that told this process to stop, or None."""
    return _requested


def remaining_seconds() -> float | None:
    """The time until Slurm ends this job; None without a limit or outside Slurm."""
    end = os.environ.get(END, "")
    return float(end) - time.time() if end.isdigit() else None


@contextmanager
def listening(at_once: bool) -> Iterator[None]:
    """Handle SIGUSR1 and SIGTERM, and send SIGUSR1 before the job's time limit.

    Args:
        at_once: raise immediately; otherwise only `requested` reports the signal.

    Raises:
        JobInterrupted: a signal arrived and `at_once` is set.
    """
    global _requested

    def note(number: int, frame: FrameType | None) -> None:
        global _requested
        _requested = signal.Signals(number).name
        if at_once:
            raise JobInterrupted(_requested)

    if threading.current_thread() is not threading.main_thread():
        yield  # Python handles signals only in the main thread
        return
    _requested = None
    before = {number: signal.signal(number, note) for number in (signal.SIGUSR1, signal.SIGTERM)}
    timer = _timer()
    try:
        yield
    finally:
        if timer is not None:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested = None


def _timer() -> threading.Timer | None:
    remaining = remaining_seconds()
    if remaining is None:
        return None
    delay = max(remaining - min(WARNING_SECONDS, 0.2 * remaining), 0.0)
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.daemon = True
    timer.start()
    return timer


def requeue(progress: bool) -> bool:
    """Requeue this job in Slurm; return whether that succeeded. False outside Slurm.

    Args:
        progress: whether the job has certainly advanced. A job that may restart at the same point
            every time is requeued only a few times and then fails, so that a retry gets more time.
    """
    job = os.environ.get(JOB)
    restarts = int(os.environ.get(RESTARTS, "0"))
    if job is None or (restarts >= MOST_RESTARTS and not progress):
        return False
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    else:
        if done.returncode == 0:
            return True
        reason = done.stderr.strip()
    print(f"Slurm does not requeue job {job}: {reason}", file=sys.stderr, flush=True)
    return False

"""Reuse of finished and partial results, and publication of results."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sf import attempts
from sf.atomic_files import write_json, write_text
from sf.errors import OutputConflictError
from sf.layout import RECORD, STAMP
from sf.result_key.key import Key, state_of
from sf.result_key.stamp import read_stamp

__all__ = ["adopt", "exclusive", "finish", "refuse_foreign", "reset_if_changed"]

LOCK = "lock"
LOCK_SECONDS = 1.0
"""How long a job waits for its lock, which `sf status` holds for an instant."""


@contextmanager
def exclusive(work: Path, output: Path) -> Iterator[None]:
    """Hold the lock of an output; `attempts` records the holder and the outcome.

    Raises:
        OutputConflictError: another process holds it.
    """
    lock = FileLock(work / LOCK)
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        holder = attempts.last_attempt(work)
        rule = f"is being written by another process{f', {holder.where}' if holder else ''}"
        # Without flock, the file itself is the lock and survives its process.
        remedy = f"wait for it to end; if it no longer runs, delete {work / LOCK}"
        raise OutputConflictError("output", str(output), rule, remedy) from None
    try:
        with attempts.noted(work):
            yield
    finally:
        lock.release()


def adopt(output: Path, work: Path, key: Key) -> bool:
    """Whether `output` is the complete result of `key`; restores a lost or damaged stamp."""
    unpublished = read_stamp(work / "out" / STAMP)
    if unpublished is not None and not key.changes(unpublished):
        _publish(output, work, unpublished)  # killed between two renames
    state = state_of(output, key)
    if state.status != "holds":
        return False
    for path in (output / STAMP, work / RECORD):
        if read_stamp(path) != state.stamp:
            write_json(path, state.stamp)
    return True


def refuse_foreign(output: Path, work: Path) -> None:
    """Refuse to replace files that no stage wrote.

    Raises:
        OutputConflictError: `output` has files, and neither it nor its work folder has a stamp.
    """
    if not output.exists() or not any(output.iterdir()):
        return
    if not (output / STAMP).is_file() and not (work / RECORD).is_file():
        raise OutputConflictError(
            "output",
            str(output),
            "is not empty and was not written by this stage",
            "move it away or choose another folder",
        )


def reset_if_changed(work: Path, key: Key) -> None:
    """Keep partial work with the same key, and delete that of another key."""
    marker = work / "key"
    if not marker.is_file() or marker.read_bytes() != key.digest.encode():
        for name in ("out", "state"):
            shutil.rmtree(work / name, ignore_errors=True)
        for name in ("seconds", "mlflow.json"):
            (work / name).unlink(missing_ok=True)
        write_text(marker, key.digest)
    for name in ("out", "state"):
        (work / name).mkdir(exist_ok=True)


def finish(output: Path, work: Path, stamp: Mapping[str, Any]) -> None:
    """Write the stamp and publish the result."""
    write_json(work / "out" / STAMP, stamp)
    _publish(output, work, stamp)
    shutil.rmtree(work / "state", ignore_errors=True)


def _publish(output: Path, work: Path, stamp: Mapping[str, Any]) -> None:
    old = work / "old"
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        os.replace(output, old)
    os.replace(work / "out", output)
    write_json(work / RECORD, stamp)
    shutil.rmtree(old, ignore_errors=True)

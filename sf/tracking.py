"""MLflow logging that never loses a result and never stops a stage.

Metrics are first written to `history.jsonl` and `metrics.json` in the result folder, and sent to
MLflow live if it responds. The next call of any stage of the study, or `sf log`, logs whatever is
missing.

The default store is `mlflow.db` (sqlite) in the working directory; `MLFLOW_TRACKING_URI` is
respected.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock

from sf.atomic_files import read_json, write_bytes, write_json, write_text
from sf.history import append_step, read_history
from sf.layout import RECORD, STAMP
from sf.mlflow_runs import log_files, log_metrics, open_run
from sf.mlflow_store import (
    active_run,
    best_effort,
    client_of_store,
    experiment_of_study,
    finished_runs,
    store_name,
    store_state,
)
from sf.mlflow_study import averages, register_model, show_tables

__all__ = ["SilentTracker", "Tracker", "log_all", "log_pending"]

LIVE_SECONDS = 20.0  # minimum between live transfers, since sqlite locks under many writers
SECONDS_EVERY = 2.0  # minimum between updates of a running job's time
_NOTE = "mlflow.json"  # in the work folder: {"run_id": …, "logged": key, "store": …}
_SECONDS = "seconds"
_HELD = ".mlflow-held"  # in a study's folder: state of store and results when all was logged


@dataclass
class Tracker:
    """The metrics of one job, over steps and at its end."""

    work: Path
    run_id: str | None = None
    _summary: dict[str, float] = field(default_factory=dict)
    _waiting: list[tuple[int, Mapping[str, float]]] = field(default_factory=list)
    _sent: float = field(default_factory=time.monotonic)
    _began: float = field(default_factory=time.monotonic)

    @classmethod
    def start(cls, stage: str, identity: dict[str, Any], work: Path, study: str) -> Tracker:
        """Open the stage's MLflow run, or continue that of a killed call, if MLflow responds."""
        with best_effort("a new run"):
            run_id = _run_of(work) or _noted_run(stage, identity, work, study)
            return cls(work, run_id)
        return cls(work)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Append the metrics of a step to `history.jsonl` and, at intervals, to MLflow."""
        append_step(self.work / "out", step, values)
        self._waiting.append((step, values))
        if time.monotonic() - self._began > SECONDS_EVERY:
            self._note_seconds()
        if self.run_id and time.monotonic() - self._sent > LIVE_SECONDS:
            self._send_waiting()

    def summary(self, values: Mapping[str, float]) -> None:
        """Set the metrics of the finished job (`metrics.json`)."""
        self._summary.update(values)

    def write_summary(self) -> None:
        """Write `metrics.json`, merged with metrics that the stage wrote itself."""
        path = self.work / "out" / "metrics.json"
        before = read_json(path) if path.is_file() else {}
        write_json(path, {**before, **self._summary})

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._note_seconds()
        if self.run_id:
            self._send_waiting()
        if self.run_id and error is not None:
            with best_effort("the end of a failed run"):
                client_of_store().set_terminated(self.run_id, "FAILED")

    def _send_waiting(self) -> None:
        with best_effort("metrics of a running stage") as attempt:
            log_metrics(client_of_store(), self.run_id or "", self._waiting)
            self._waiting.clear()
        if attempt.failed and not attempt.down:
            self.run_id = None  # deleted: the finished result is logged as a new run
        self._sent = time.monotonic()

    def _note_seconds(self) -> None:
        """Add the time of this call to that of killed earlier ones."""
        now = time.monotonic()
        write_text(self.work / _SECONDS, f"{self._noted() + now - self._began:.3f}")
        self._began = now

    def _noted(self) -> float:
        """Seconds of earlier calls; 0 if a full disk or a power failure left no number."""
        path = self.work / _SECONDS
        text = path.read_bytes().decode(errors="replace") if path.is_file() else "0"
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not 0 <= seconds < math.inf:
            warnings.warn(f"{path} contains no time; earlier calls count as 0 s", stacklevel=3)
            return 0.0
        return seconds

    def seconds(self) -> float:
        """Seconds spent on this job, including killed earlier calls."""
        self._note_seconds()
        return self._noted()


class SilentTracker(Tracker):
    """The tracker of all ranks except the first, which alone logs."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Do nothing: the first rank logs."""

    def summary(self, values: Mapping[str, float]) -> None:
        """Do nothing: the first rank logs."""


def log_pending(output: Path, study: str) -> None:
    """Log the result in `output` and all others of the study that MLflow lacks.

    If everything was logged and neither the results nor the store's file have changed since, MLflow
    is not imported, because this and opening a store would dominate the time of a finished stage.
    """
    results = Path("results") / study
    works = _works(results, Path("reports"), output.parent)
    memo = results / _HELD
    before = _seen(works)
    if before is not None and memo.is_file() and memo.read_bytes() == before:
        return
    logged, failed = _log(works)
    if before is not None and not (logged or failed):
        results.mkdir(parents=True, exist_ok=True)
        write_bytes(memo, before)


def log_all(*roots: Path) -> int:
    """Log every finished result below `roots` that MLflow lacks; return their number."""
    return _log(_works(*roots))[0]


def _works(*roots: Path) -> list[Path]:
    return sorted({work for root in roots if root.is_dir() for work in _work_folders(root)})


def _seen(works: Sequence[Path]) -> bytes | None:
    """The current state of the store's file and the results; None if the store is not a file."""
    store = store_state()
    if store is None:
        return None
    files = [work / name for work in works for name in (RECORD, _NOTE)]
    return json.dumps([store, [(str(file), _content(file)) for file in files]]).encode()


def _content(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:  # an unfinished result, or one that another stage has restarted
        return ""


def _log(works: Sequence[Path]) -> tuple[int, bool]:
    """Log results that MLflow lacks; return their number, and whether any failed.

    If the store does not respond, the remaining results are skipped, since each could take minutes.
    """
    held: set[str] | None = None
    logged, failed = 0, False
    for work in works:
        output = work.parent / work.name.removeprefix(".").removesuffix(".work")
        # Another stage may publish or restart this result in the meantime.
        with best_effort(f"the result in {output}") as attempt:
            if held is None and _note(work).get("logged"):
                held = finished_runs(client_of_store())
            logged += _log_once(output, work, held or set())
        failed = failed or attempt.failed
        if attempt.down:
            break
    return logged, failed


def _log_once(output: Path, work: Path, held: set[str]) -> bool:
    """Log a finished result unless MLflow has its run; return whether it was logged."""
    file = work / RECORD
    if not ((output / STAMP).is_file() and file.is_file()):
        return False
    record = read_json(file)
    before = _note(work)
    if before.get("logged") == record["key"] and before.get("run_id") in held:
        return False
    with FileLock(work / "mlflow.lock"):
        note = _note(work)
        if note != before and note.get("logged") == record["key"]:
            return False  # another process was faster
        _log_result(output, work, record, note)
    return True


def _work_folders(root: Path) -> Iterator[Path]:
    """The work folders below `root`, without descending into them.

    Other stages rename and delete folders concurrently: `os.walk` skips a folder that disappears,
    `Path.rglob` raises.
    """
    for folder, names, _ in os.walk(root):
        for name in list(names):
            if name.startswith(".") and name.endswith(".work"):
                names.remove(name)
                yield Path(folder, name)


def _note(work: Path) -> dict[str, Any]:
    """The record of a job's logging to this store; empty for another store or a damaged record."""
    try:
        note: dict[str, Any] = read_json(work / _NOTE)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        warnings.warn(f"{error}; the result is logged again", stacklevel=2)
        return {}
    return note if note.get("store") == store_name() else {}


def _run_of(work: Path) -> str | None:
    """The run of a killed call of this job, set to running; None if the store has none."""
    note = _note(work)
    if note.get("logged"):
        return None
    client = client_of_store()
    run = active_run(client, note.get("run_id"))
    if run is None:
        return None
    client.set_terminated(run.info.run_id, "RUNNING")
    return str(run.info.run_id)


def _noted_run(stage: str, identity: dict[str, Any], work: Path, study: str) -> str:
    run_id = open_run(stage, identity, study)
    write_json(work / _NOTE, {"run_id": run_id, "store": store_name()})
    return run_id


def _log_result(output: Path, work: Path, record: dict[str, Any], note: dict[str, Any]) -> None:
    """Send metrics, tables, figures and the stamp as far as they are missing, and end the run."""
    client = client_of_store()
    run = active_run(client, note.get("run_id"))
    if run is None or note.get("logged", record["key"]) != record["key"]:
        run = client.get_run(_noted_run(record["stage"], record, work, record["study"]))
    run_id = run.info.run_id
    known = {
        name: {metric.step for metric in client.get_metric_history(run_id, name)}
        for name in run.data.metrics
    }
    missing = (
        (step, {name: v for name, v in values.items() if step not in known.get(name, ())})
        for step, values in read_history(output).items()
    )
    log_metrics(client, run_id, missing)
    if (output / "metrics.json").is_file():
        summary = read_json(output / "metrics.json")
        if record["stage"] == "evaluate":
            summary |= averages(output)
        changed = {name: v for name, v in summary.items() if run.data.metrics.get(name) != v}
        log_metrics(client, run_id, [(0, changed)])
    log_files(client, run_id, output)
    if record["stage"] == "train":
        register_model(client, run_id, output, record)
    client.set_terminated(run_id, "FINISHED")
    _, parent = experiment_of_study(client, record["study"])
    if record["stage"] in ("table", "report"):
        show_tables(client, parent, record["study"])
    client.set_terminated(parent, "FINISHED")  # each result of the study updates its end time
    content = {"run_id": run_id, "store": store_name(), "logged": record["key"]}
    write_json(work / _NOTE, content)

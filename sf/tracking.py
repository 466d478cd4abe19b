"""MLflow logging that cannot lose a result and cannot stop a stage.

Figures go to files first: `history.jsonl` and `metrics.json` in the result folder. MLflow gets them
live where it answers. Whatever it did not get is noted in the job's work folder and logged again by
the next call of any stage of the study, or by `sf log`.

The default store is `mlflow.db` (sqlite) in the working directory; `MLFLOW_TRACKING_URI` is
respected.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock
from pydantic import BaseModel

from sf.extras import extra
from sf.layout import STAMP

__all__ = ["EXPERIMENT", "SilentTracker", "Tracker", "log_all", "log_pending", "tracking_uri"]

EXPERIMENT = "sparsity-forcing"
LIVE_SECONDS = 20.0  # at most one live transfer per this time: sqlite locks under many writers
_NOTE = "mlflow.json"  # in the work folder: {"run_id": …, "logged": bool, "uri": …}
_TABLE_ROWS = 5000
_NOTE_TAG = "mlflow.note.content"  # what MLflow shows as a description
_EXPERIMENT_NOTE = (
    "Choose 'Model training' at the top left, then a study, and unfold it with its +."
)
_STUDY_NOTE = (
    "One run a stage hangs under this one (the + beside its name in the list). The run `report` "
    "has the study's tables and pictures as one page: its artifact `index.html`."
)


def tracking_uri() -> str:
    """Where runs are logged."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').absolute()}"


@dataclass
class _Attempt:
    """How a transfer to the store ended: `down` when the store, not what was sent, is at fault."""

    down: bool = False


@contextmanager
def _best_effort(what: str) -> Iterator[_Attempt]:
    """Turns what a locked or absent tracking store raises into a warning."""
    with extra("pipeline"):
        from mlflow.exceptions import MlflowException
        from requests.exceptions import RequestException
        from sqlalchemy.exc import SQLAlchemyError

    attempt = _Attempt()
    try:
        yield attempt
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as error:
        if isinstance(error, MlflowException):
            attempt.down = error.get_http_status_code() >= 500
        else:
            attempt.down = isinstance(error, RequestException | SQLAlchemyError)
        reason = str(error).splitlines()[0][:200]
        warnings.warn(
            f"MLflow at {tracking_uri()} did not take {what} ({reason}); the result is safe and "
            "is logged by the next `sf run` of this study or by `sf log`",
            stacklevel=3,
        )


def _client() -> Any:
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
    import logging

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri())


@dataclass
class Tracker:
    """The figures of one job: over steps and at its end."""

    work: Path
    run_id: str | None = None
    _summary: dict[str, float] = field(default_factory=dict)
    _waiting: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    _sent: float = field(default_factory=time.monotonic)
    _began: float = field(default_factory=time.monotonic)

    @classmethod
    def start(
        cls, stage: str, parameters: BaseModel, identity: dict[str, Any], work: Path, study: str
    ) -> Tracker:
        """Open the stage's MLflow run, or continue that of a killed call, if MLflow answers."""
        with _best_effort("a new run"):
            run_id = _run_of(work) or _open_run(stage, identity, work, study)
            return cls(work, run_id)
        return cls(work)

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append figures of one step to `history.jsonl` and, now and then, to MLflow."""
        line = json.dumps({"step": step, **values})
        with (self.work / "out" / "history.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
        self._waiting.append((step, values))
        self._note_seconds()
        if self.run_id and time.monotonic() - self._sent > LIVE_SECONDS:
            self._send_waiting()

    def summary(self, values: dict[str, float]) -> None:
        """Set figures that describe the finished job (`metrics.json`)."""
        self._summary.update(values)

    def write_summary(self) -> None:
        """Write `metrics.json`, merged with what a stage wrote itself."""
        from sf.provenance import write_json

        path = self.work / "out" / "metrics.json"
        before = json.loads(path.read_text()) if path.is_file() else {}
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
            if error is not None:
                with _best_effort("the end of a failed run"):
                    _client().set_terminated(self.run_id, "FAILED")

    def _send_waiting(self) -> None:
        with _best_effort("figures of a running stage"):
            _log_history(self.run_id or "", self._waiting)
            self._waiting.clear()
        self._sent = time.monotonic()

    def _note_seconds(self) -> None:
        """Adds the time of this call to that of killed earlier ones."""
        path = self.work / "seconds"
        now = time.monotonic()
        before = float(path.read_text()) if path.is_file() else 0.0
        path.write_text(f"{before + now - self._began:.3f}")
        self._began = now

    def seconds(self) -> float:
        """Seconds spent on this job, killed earlier calls included."""
        self._note_seconds()
        return float((self.work / "seconds").read_text())


class SilentTracker(Tracker):
    """Of ranks but the first: takes figures and leaves them."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Nothing: the first rank logs."""

    def summary(self, values: dict[str, float]) -> None:
        """Nothing: the first rank logs."""


def log_pending(output: Path, study: str) -> None:
    """Log the result in `output` and any other of the study that MLflow does not hold yet."""
    log_all(*{Path("results") / study, Path("reports"), output.parent})


def log_all(*roots: Path) -> int:
    """Log every finished result below `roots` that MLflow does not hold yet; returns how many.

    A store that does not answer is not asked again for each result: that could take minutes.
    """
    logged = 0
    for work in sorted(work for root in roots if root.is_dir() for work in _work_folders(root)):
        output = work.parent / work.name.removeprefix(".").removesuffix(".work")
        # Another stage may publish or restart this result while it is looked at.
        with _best_effort(f"the result in {output}") as attempt:
            logged += _log_once(output, work)
        if attempt.down:
            break
    return logged


def _log_once(output: Path, work: Path) -> bool:
    """Log one finished result unless MLflow holds it; True when it was logged now."""
    record = work / "record.json"
    if not ((output / STAMP).is_file() and record.is_file()) or _is_logged(work, record):
        return False
    with FileLock(work / "mlflow.lock"):
        if _is_logged(work, record):
            return False
        _log_result(output, work, json.loads(record.read_text(encoding="utf-8")))
    return True


def _work_folders(root: Path) -> Iterator[Path]:
    """The work folders below `root`, not looking into them.

    Other stages rename and delete there at the same time: `os.walk` passes over a folder that
    vanishes, `Path.rglob` raises.
    """
    for folder, names, _ in os.walk(root):
        for name in list(names):
            if name.startswith(".") and name.endswith(".work"):
                names.remove(name)
                yield Path(folder, name)


def _note(work: Path) -> dict[str, Any]:
    path = work / _NOTE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _is_logged(work: Path, record: Path) -> bool:
    note = _note(work)
    key = json.loads(record.read_text(encoding="utf-8"))["key"]
    return note.get("logged") == key and note.get("uri") == tracking_uri()


def _run_of(work: Path) -> str | None:
    note = _note(work)
    if note.get("uri") != tracking_uri() or note.get("logged"):
        return None
    run_id = note.get("run_id")
    if run_id:
        _client().set_terminated(run_id, "RUNNING")
    return run_id


def _experiment_and_parent(client: Any, study: str) -> tuple[str, str]:
    """The experiment's id and the id of the run that all runs of `study` hang under."""
    with FileLock(".mlflow.lock"):
        experiment = client.get_experiment_by_name(EXPERIMENT)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(EXPERIMENT, tags={_NOTE_TAG: _EXPERIMENT_NOTE})
        )
        query = f"tags.`sf.study` = '{study}' and tags.`sf.parent` = 'true'"
        found = client.search_runs([experiment_id], query, max_results=1)
        if found:
            return experiment_id, found[0].info.run_id
        tags = {
            "sf.study": study,
            "sf.parent": "true",
            "mlflow.runName": f"study {study}",
            _NOTE_TAG: _STUDY_NOTE,
        }
        return experiment_id, client.create_run(experiment_id, tags=tags).info.run_id


def _open_run(stage: str, identity: dict[str, Any], work: Path, study: str) -> str:
    from sf.provenance import write_json

    client = _client()
    experiment_id, parent = _experiment_and_parent(client, study)
    values = identity["parameters"]
    output = Path(values["output"])
    # results/SCALE/KIND/…: a stage can make several kinds, such as a curve for each split.
    name = " ".join(output.parts[2:]) if output.parts[0] == "results" else stage
    tags = {
        "mlflow.runName": name,
        "mlflow.parentRunId": parent,
        "mlflow.source.name": f"sf run {stage}",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": identity["commit"],
        "sf.study": study,
        "sf.stage": stage,
        "sf.key": identity["key"],
        "sf.parameter_hash": identity["parameter_hash"],
        "sf.code_hash": identity["code_hash"],
        "sf.commit": identity["commit"],
        "sf.dirty": str(identity["dirty"]),
        "sf.seed": str(values.get("seed", "none")),
        "sf.inputs": json.dumps(identity["inputs"])[:5000],
        "sf.versions": json.dumps(identity["versions"]),
        "sf.hardware": json.dumps(identity["hardware"]),
    }
    run_id = str(client.create_run(experiment_id, tags=tags).info.run_id)
    write_json(work / _NOTE, {"run_id": run_id, "uri": tracking_uri()})
    from mlflow.entities import Param

    params = [Param(key, str(value)[:6000]) for key, value in values.items()]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    return run_id


def _log_history(run_id: str, history: list[tuple[int, dict[str, float]]]) -> None:
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [
        Metric(name, float(value), now, step)
        for step, values in history
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    client = _client()
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])


def _log_result(output: Path, work: Path, record: dict[str, Any]) -> None:
    """Send what the store does not have: metrics, tables, pictures, the stamp; end the run."""
    from sf.provenance import write_json

    note = _note(work)
    fresh = note.get("uri") != tracking_uri() or not note.get("run_id") or note.get("logged")
    run_id = _open_run(record["stage"], record, work, record["study"]) if fresh else note["run_id"]
    client = _client()
    history = _history(output / "history.jsonl")
    if fresh or not client.get_run(run_id).data.metrics:
        _log_history(run_id, history)
    metrics = output / "metrics.json"
    if metrics.is_file():
        _log_history(run_id, [(0, json.loads(metrics.read_text(encoding="utf-8")))])
    _log_files(client, run_id, output)
    client.set_terminated(run_id, "FINISHED")
    _, parent = _experiment_and_parent(client, record["study"])
    client.set_terminated(parent, "FINISHED")  # its end moves on with each result of the study
    write_json(work / _NOTE, {"run_id": run_id, "uri": tracking_uri(), "logged": record["key"]})


def _history(path: Path) -> list[tuple[int, dict[str, float]]]:
    """One entry a step; a resumed job repeats steps, the last one counts."""
    steps: dict[int, dict[str, float]] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            values = json.loads(line)
            steps.setdefault(int(values.pop("step")), {}).update(values)
    return sorted(steps.items())


def _log_files(client: Any, run_id: str, output: Path) -> None:
    """Tables as MLflow tables and HTML; pictures and documents as they are."""
    import pandas as pd

    client.log_artifact(run_id, str(output / STAMP))
    _log_dataset(client, run_id, output / "dataset.json")
    for table in sorted(output.glob("tables/*.csv")):
        frame = pd.read_csv(table).head(_TABLE_ROWS)
        client.log_table(run_id, frame, f"tables/{table.stem}.json")
        client.log_text(run_id, frame.to_html(index=False), f"tables/{table.stem}.html")
    for pattern in ("figures/*.png", "figures/*.svg", "*.md", "*.html"):
        for path in sorted(output.glob(pattern)):
            target = "figures" if pattern.startswith("figures") else None
            client.log_artifact(run_id, str(path), target)


def _log_dataset(client: Any, run_id: str, record: Path) -> None:
    """The data that a stage made, as MLflow's own dataset entity (`sf.data.dataset_record`)."""
    if not record.is_file():
        return
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(**json.loads(record.read_text(encoding="utf-8")))
    tags = [InputTag("mlflow.data.context", "prepared")]
    client.log_inputs(run_id, [DatasetInput(dataset, tags)])
    client.log_artifact(run_id, str(record))

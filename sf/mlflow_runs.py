"""Logging of a job to MLflow: its identity, metrics, tables and figures."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sf.atomic_files import read_json
from sf.escaping import printable
from sf.layout import STAMP
from sf.mlflow_store import client_of_store, experiment_of_study
from sf.redaction import redact

__all__ = ["log_files", "log_metrics", "open_run"]

_TABLE_ROWS = 5000
_NAME = re.compile(r"[^\w\-. :/]")  # characters that MLflow rejects in metric names
_TABLES_TAG = "mlflow.loggedArtifacts"  # lists the artifacts that MLflow's pages show as tables


def open_run(stage: str, identity: dict[str, Any], study: str) -> str:
    """Open the run of a job under its study and return its id.

    Args:
        stage: of the job.
        identity: of the job (`sf.provenance.identity`), logged as tags and parameters.
        study: the run's parent.
    """
    from mlflow.entities import Param

    client = client_of_store()
    experiment_id, parent = experiment_of_study(client, study)
    values = identity["parameters"]
    output = Path(values["output"])
    # results/SCALE/KIND/…: a stage can have several kinds of results, such as a curve per split.
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
    tags = {key: _shown(value) for key, value in tags.items()}
    run_id = str(client.create_run(experiment_id, tags=tags).info.run_id)
    params = [Param(key, _shown(value)[:6000]) for key, value in _flat(values)]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    return run_id


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Parameters under dotted names."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _shown(value: object) -> str:
    return printable(redact(str(value)))


def log_metrics(
    client: Any, run_id: str, history: Iterable[tuple[int, Mapping[str, float]]]
) -> None:
    """Send metrics; non-finite values, which MLflow cannot show, remain only in the files."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    metrics = [
        Metric(_NAME.sub("_", name), float(value), now, step)
        for step, values in history
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    ]
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])


def log_files(client: Any, run_id: str, output: Path) -> None:
    """Send tables as MLflow tables and HTML, and figures and documents unchanged.

    Everything replaces the uploads of an earlier, killed call (`MlflowClient.log_table` would
    append).
    """
    import pandas as pd

    client.log_artifact(run_id, str(output / STAMP))
    _log_dataset(client, run_id, output / "dataset.json")
    tables = []
    for table in sorted(output.glob("tables/*.csv")):
        frame = pd.read_csv(table).head(_TABLE_ROWS)
        place = f"tables/{table.stem}.json"
        client.log_text(run_id, frame.to_json(orient="split", index=False), place)
        client.log_text(run_id, frame.to_html(index=False), f"tables/{table.stem}.html")
        tables.append({"path": place, "type": "table"})
    if tables:
        client.set_tag(run_id, _TABLES_TAG, json.dumps(tables))
    patterns = (
        "figures/*.png",
        "figures/*.svg",
        "*.md",
        "*.html",
        "*.csv",
        "*.tex",
        "*/index.html",
    )
    for path in (path for pattern in patterns for path in sorted(output.glob(pattern))):
        target = path.parent.relative_to(output).as_posix()
        client.log_artifact(run_id, str(path), None if target == "." else target)


def _log_dataset(client: Any, run_id: str, record: Path) -> None:
    """Log a stage's data as MLflow's dataset entity (`sf.data.dataset_record`)."""
    if not record.is_file():
        return
    from mlflow.entities import Dataset, DatasetInput, InputTag

    tags = [InputTag("mlflow.data.context", "prepared")]
    client.log_inputs(run_id, [DatasetInput(Dataset(**read_json(record)), tags)])
    client.log_artifact(run_id, str(record))

"""Finished results for the tests of MLflow, and what a store contains of them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sf.atomic_files import write_json
from sf.history import append_step
from sf.mlflow_store import EXPERIMENT, client_of_store
from sf.tables import write_csv

IDENTITY: dict[str, Any] = {
    "stage": "calibrate",
    "key": "key-1",
    "parameters": {
        "seed": 7,
        "output": "results/test/calibrate/tiny",
        "vision": {"video_fps": 2.0},
        "title": "a\rb",
    },
    "parameter_hash": "parameters-1",
    "code_hash": "code-1",
    "commit": "0123456789",
    "dirty": True,
    "inputs": {"results/test/base": "digest"},
    "versions": {"torch": "2.11"},
    "hardware": {"cpu": "made"},
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the default store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def finished(name: str = "tiny", key: str = "key-1", **values: Any) -> Path:
    """The work folder of a finished result with a history, a table and a summary."""
    output = Path("results/test/calibrate", name)
    work = output.parent / f".{name}.work"
    record = {**IDENTITY, "key": key, "study": "test", **values}
    write_json(output / "stage.json", record)
    write_json(work / "record.json", record)
    for step, loss in ((1, 0.5), (2, math.nan), (3, 0.25)):
        append_step(output, step, {"loss": loss, "odd name (%)": float(step)})
    write_json(output / "metrics.json", {"accuracy": 0.75, "bad": math.nan})
    write_csv(pd.DataFrame({"text": ["<b>", "$x$"], "n": [1, 2]}), output / "tables/t.csv")
    return work


def runs(**tags: str) -> list[Any]:
    client = client_of_store()
    experiment = client.get_experiment_by_name(EXPERIMENT)
    every = client.search_runs([experiment.experiment_id])
    return [run for run in every if all(run.data.tags.get(k) == v for k, v in tags.items())]


def the_run() -> Any:
    (run,) = runs(**{"sf.stage": "calibrate"})
    return run


def steps(run: Any, name: str) -> list[tuple[int, float]]:
    history = client_of_store().get_metric_history(run.info.run_id, name)
    return sorted((metric.step, metric.value) for metric in history)


def experiment_id() -> str:
    return str(client_of_store().get_experiment_by_name(EXPERIMENT).experiment_id)


def artifact(run: Any, name: str) -> Path:
    return Path(client_of_store().download_artifacts(run.info.run_id, name))


def job(place: Path) -> Path:
    work = place / "results/test/calibrate/.tiny.work"
    (work / "out").mkdir(parents=True)
    return work

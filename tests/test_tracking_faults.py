"""An MLflow store that is deleted, damaged, down or created by several processes loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from mlflow_results import IDENTITY, experiment_id, finished, job, runs, steps, the_run

from sf.history import read_history
from sf.mlflow_store import client_of_store
from sf.tracking import Tracker, log_all

pytest_plugins = ("mlflow_results",)

CREATE = """
import os, sys
from mlflow.tracking import MlflowClient  # takes seconds, the store's creation does not
from sf.mlflow_store import client_of_store, experiment_of_study
read, write = os.pipe()
children = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)  # ends when the parent closes its end
        experiment_of_study(client_of_store(), "test")
        os._exit(0)
    children.append(child)
os.close(write)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""


def test_a_deleted_store_is_filled_again(place: Path) -> None:
    finished()
    finished("other", "key-2")
    assert log_all(Path("results")) == 2
    (place / "mlflow.db").unlink()
    assert log_all(Path("results")) == 2
    assert log_all(Path("results")) == 0
    assert len(runs(**{"sf.stage": "calibrate"})) == 2


def test_a_deleted_run_is_made_again(place: Path) -> None:
    finished()
    finished("other", "key-2")
    log_all(Path("results"))
    gone = runs(**{"sf.key": "key-1"})[0].info.run_id
    client_of_store().delete_run(gone)
    assert log_all(Path("results")) == 1
    assert runs(**{"sf.key": "key-1"})[0].info.run_id != gone
    assert log_all(Path("results")) == 0


def test_a_deleted_parent_is_made_again(place: Path) -> None:
    finished()
    log_all(Path("results"))
    client_of_store().delete_run(runs(**{"sf.parent": "true"})[0].info.run_id)
    finished("other", "key-2")
    assert log_all(Path("results")) == 1
    assert len(runs(**{"sf.parent": "true"})) == 1


def test_a_deleted_experiment_is_there_again(place: Path) -> None:
    finished()
    log_all(Path("results"))
    client_of_store().delete_experiment(experiment_id())
    finished("other", "key-2")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert log_all(Path("results")) >= 1
        log_all(Path("results"))
    assert {run.data.tags["sf.key"] for run in runs(**{"sf.stage": "calibrate"})} == {
        "key-1",
        "key-2",
    }
    assert log_all(Path("results")) == 0


def test_a_run_that_is_deleted_while_its_job_runs_is_made_again(place: Path) -> None:
    work = job(place)
    with Tracker.start("calibrate", IDENTITY, work, "test") as tracker:
        client_of_store().delete_run(tracker.run_id)
        tracker.log(1, {"loss": 0.5})
        with pytest.warns(UserWarning, match="did not accept metrics"):
            tracker._send_waiting()
        tracker.log(3, {"loss": 0.25})  # one warning, not one per transfer
    finished()
    assert log_all(Path("results")) == 1
    assert steps(the_run(), "loss") == [(1, 0.5), (3, 0.25)]


def test_a_damaged_note_is_a_result_that_is_not_logged(place: Path) -> None:
    work = finished()
    log_all(Path("results"))
    (work / "mlflow.json").write_text('{"run')
    with pytest.warns(UserWarning, match=r"mlflow\.json is not valid JSON"):
        assert log_all(Path("results")) == 1


def test_one_damaged_record_does_not_hold_up_the_others(place: Path) -> None:
    for name, content in (("a", ""), ("b", "{}")):
        (finished(name) / "record.json").write_text(content)
    finished("c", "key-3")
    with pytest.warns(UserWarning, match="did not accept the result"):
        assert log_all(Path("results")) == 1


@pytest.mark.parametrize("fault", ["alembic", "sqlalchemy", "import", "key"])
def test_nothing_that_mlflow_raises_ends_a_stage(
    place: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    from alembic.util.exc import CommandError
    from sqlalchemy.exc import OperationalError

    errors = {
        "alembic": CommandError("Can't locate revision identified by '1bd49d398cd23'"),
        "sqlalchemy": OperationalError("select", {}, Exception("table runs already exists")),
        "import": ImportError("no module named psycopg2"),
        "key": KeyError("x"),
    }

    def broken(**_: Any) -> Any:
        raise errors[fault]

    monkeypatch.setattr("mlflow.tracking.MlflowClient", broken)
    work = job(place)
    with pytest.warns(UserWarning, match="the result is safe"):
        tracker = Tracker.start("calibrate", IDENTITY, work, "test")
    with tracker:
        tracker.log(1, {"loss": 1.0})
    assert read_history(work / "out") == {1: {"loss": 1.0}}


def test_a_ruined_store_ends_nothing(place: Path) -> None:
    finished()
    (place / "mlflow.db").write_bytes(b"no database" * 100)
    with pytest.warns(UserWarning, match="the result is safe"):
        assert log_all(Path("results")) == 0


def test_eight_processes_create_one_store_at_once(place: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CREATE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(runs(**{"sf.parent": "true"})) == 1
    assert not list(place.glob(".mlflow.db.*"))


def test_an_empty_store_file_is_no_store(place: Path) -> None:
    (place / "mlflow.db").touch()
    finished()
    assert log_all(Path("results")) == 1

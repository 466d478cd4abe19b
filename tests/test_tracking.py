"""MLflow: what a run records; nothing is lost or logged twice."""

from __future__ import annotations

import json
import logging
import math
import shutil
import sqlite3
import warnings
from pathlib import Path

import pytest
from mlflow_results import IDENTITY, artifact, experiment_id, finished, job, runs, steps, the_run

from sf import mlflow_store, tracking
from sf.atomic_files import write_json
from sf.history import read_history
from sf.mlflow_store import EXPERIMENT, client_of_store, finished_runs, store_name
from sf.tracking import Tracker, log_all

pytest_plugins = ("mlflow_results",)


def test_a_run_says_all_that_its_result_came_from(place: Path) -> None:
    finished()
    assert log_all(Path("results")) == 1
    run = the_run()
    (parent,) = runs(**{"sf.parent": "true"})
    tags = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.user")}
    assert tags == {
        "mlflow.runName": "calibrate tiny",
        "mlflow.parentRunId": parent.info.run_id,
        "mlflow.source.name": "sf run calibrate",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": "0123456789",
        "mlflow.loggedArtifacts": '[{"path": "tables/t.json", "type": "table"}]',
        "sf.study": "test",
        "sf.stage": "calibrate",
        "sf.key": "key-1",
        "sf.parameter_hash": "parameters-1",
        "sf.code_hash": "code-1",
        "sf.commit": "0123456789",
        "sf.dirty": "True",
        "sf.seed": "7",
        "sf.inputs": '{"results/test/base": "digest"}',
        "sf.versions": '{"torch": "2.11"}',
        "sf.hardware": '{"cpu": "made"}',
    }
    assert parent.data.tags["sf.study"] == "test"
    assert "index.html" in parent.data.tags["mlflow.note.content"]
    assert run.data.params == {
        "seed": "7",
        "output": "results/test/calibrate/tiny",
        "vision.video_fps": "2.0",
        "title": "a\\rb",
    }
    assert run.info.status == parent.info.status == "FINISHED"
    assert steps(run, "loss") == [(1, 0.5), (3, 0.25)]  # nan stays in the file
    assert math.isnan(read_history(Path("results/test/calibrate/tiny"))[2]["loss"])
    assert steps(run, "odd name ___") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert run.data.metrics["accuracy"] == 0.75
    assert "bad" not in run.data.metrics


def test_a_result_that_is_logged_twice_is_there_once(place: Path) -> None:
    work = finished()
    log_all(Path("results"))
    note = json.loads((work / "mlflow.json").read_text())
    del note["logged"]  # killed after the last transfer
    write_json(work / "mlflow.json", note)
    assert log_all(Path("results")) == 1
    run = the_run()
    assert steps(run, "loss") == [(1, 0.5), (3, 0.25)]
    assert steps(run, "accuracy") == [(0, 0.75)]
    table = client_of_store().load_table(experiment_id(), "tables/t.json")
    assert table["text"].tolist() == ["<b>", "$x$"]
    shown = artifact(run, "tables/t.html").read_text()
    assert shown.count("<tr>") == 2
    assert "&lt;b&gt;" in shown
    assert log_all(Path("results")) == 0


def test_a_store_that_held_all_is_asked_again_when_it_or_a_result_changes(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    whole = tracking.finished_runs
    monkeypatch.setattr(
        tracking, "finished_runs", lambda client: asked.append(True) or whole(client)
    )

    def times_asked(output: Path) -> int:
        asked.clear()
        tracking.log_pending(output, "test")
        return len(asked)

    work = finished()
    output = work.parent / "tiny"
    assert [times_asked(output) for _ in range(4)] == [0, 1, 0, 0]
    client_of_store().delete_run(the_run().info.run_id)
    assert [times_asked(output) for _ in range(4)] == [1, 1, 0, 0]
    assert the_run().info.status == "FINISHED"  # logged again
    (work / "mlflow.json").write_text("damaged")
    with pytest.warns(UserWarning, match="logged again"):
        tracking.log_pending(output, "test")
    assert [times_asked(output) for _ in range(2)] == [1, 0]
    finished("other", "key-2")
    assert [times_asked(output) for _ in range(3)] == [1, 1, 0]
    assert len(runs(**{"sf.key": "key-2"})) == 1


@pytest.mark.parametrize(
    ("store", "slurm", "left"),
    [(None, True, True), (None, False, False), ("sqlite:///else.db", True, True),
     ("http://127.0.0.1:9", True, False)],
)  # fmt: skip
def test_jobs_of_slurm_leave_a_sqlite_store_to_the_submitter(
    monkeypatch: pytest.MonkeyPatch, store: str | None, slurm: bool, left: bool
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    if store:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    if slurm:
        monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert mlflow_store.is_left_to_submitter() is left


def test_figures_that_were_not_sent_are_sent_at_the_end(place: Path) -> None:
    """A killed call loses what was waiting; the history contains it."""
    work = finished()
    tracker = Tracker.start("calibrate", IDENTITY, work, "test")
    tracking.log_metrics(client_of_store(), tracker.run_id or "", [(1, {"loss": 0.5})])
    assert log_all(Path("results")) == 1
    assert steps(the_run(), "loss") == [(1, 0.5), (3, 0.25)]


def test_what_waits_is_sent_when_a_job_ends(place: Path) -> None:
    work = job(place)
    with Tracker.start("calibrate", IDENTITY, work, "test") as tracker:
        for step in range(3):
            tracker.log(step, {"loss": 1.0 / (step + 1)})
        assert steps(the_run(), "loss") == []
    assert steps(the_run(), "loss") == [(0, 1.0), (1, 0.5), (2, 1 / 3)]


def test_a_killed_job_goes_on_in_its_run_and_a_failed_one_says_so(place: Path) -> None:
    work = job(place)

    def fails() -> None:
        with Tracker.start("calibrate", IDENTITY, work, "test"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    first = the_run()
    assert first.info.status == "FAILED"
    with Tracker.start("calibrate", IDENTITY, work, "test") as tracker:
        assert tracker.run_id == first.info.run_id
        assert the_run().info.status == "RUNNING"


def test_seconds_of_killed_calls_count(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work, now = job(place), [100.0]
    monkeypatch.setattr(tracking.time, "monotonic", lambda: now[0])
    first = Tracker(work, _began=now[0], _sent=now[0])
    now[0] += 5.0
    first.log(1, {"loss": 1.0})  # then it is killed
    second = Tracker(work, _began=now[0], _sent=now[0])
    now[0] += 2.5
    assert second.seconds() == pytest.approx(7.5)
    now[0] += 1.0
    assert second.seconds() == pytest.approx(8.5)


@pytest.mark.parametrize("content", ["", "12.", "1e", "\0\0\0", "nan", "-3", "3.5\n7"])
def test_a_torn_seconds_file_ends_nothing(place: Path, content: str) -> None:
    work = job(place)
    (work / "seconds").write_text(content)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        assert Tracker(work).seconds() < 13
    assert content == "12." or "seconds contains no time" in str(warned[0].message)


def test_half_a_line_of_history_ends_nothing(place: Path) -> None:
    work = job(place)
    (work / "out/history.jsonl").write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "lo')
    Tracker(work).log(2, {"loss": 0.5})
    assert read_history(work / "out") == {1: {"loss": 1.0}, 2: {"loss": 0.5}}


def test_another_store_is_filled(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished()
    assert log_all(Path("results")) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place}/other.db")
    assert log_all(Path("results")) == 1
    assert steps(the_run(), "loss") == [(1, 0.5), (3, 0.25)]
    assert log_all(Path("results")) == 0


def test_the_log_command_logs_results_and_reports(place: Path) -> None:
    from typer.testing import CliRunner

    from sf.cli import app

    shutil.copytree(finished().parent, place / "reports/test", dirs_exist_ok=True)
    for expected in ("2 results logged to mlflow.db", "0 results logged to mlflow.db"):
        result = CliRunner().invoke(app, ["log"])
        assert result.exit_code == 0, result.output
        assert expected in result.output
    assert len(runs(**{"sf.stage": "calibrate"})) == 2


def test_loggers_of_other_libraries_are_as_before(place: Path) -> None:
    levels = [logging.getLogger(name).level for name in ("alembic", "mlflow.store.db.utils")]
    client_of_store()
    assert levels == [
        logging.getLogger(name).level for name in ("alembic", "mlflow.store.db.utils")
    ]


def test_a_copied_checkout_keeps_its_runs_and_their_artifacts(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished()
    log_all(Path("results"))
    copy = place.parent / f"{place.name} moved"
    shutil.copytree(place, copy)
    shutil.rmtree(place / "mlruns")
    monkeypatch.chdir(copy)
    assert log_all(Path("results")) == 0  # not logged twice
    finished("other", "key-2")
    assert log_all(Path("results")) == 1
    for run in runs(**{"sf.stage": "calibrate"}):
        assert str(copy) in run.info.artifact_uri
        assert artifact(run, "tables/t.json").is_file()
    assert not (place / "mlruns").exists()
    with sqlite3.connect("mlflow.db") as store:
        (location,) = store.execute(
            "select artifact_location from experiments where name = ?", (EXPERIMENT,)
        ).fetchone()
    assert str(copy) in location


def test_the_store_is_named_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for uri, name in (
        ("http://user:pa%73s@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://u:p@ss@db/mlflow", "postgresql://***@db/mlflow"),
        ("http://host?token=abc&x=1", "http://host?token=***&x=1"),
        ("sqlite:////somewhere/mlflow.db", "sqlite:////somewhere/mlflow.db"),
    ):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        assert store_name() == name


def test_finished_runs_of_a_store_without_the_experiment(place: Path) -> None:
    assert finished_runs(client_of_store()) == set()
    assert mlflow_store.active_run(client_of_store(), "0" * 32) is None
    assert mlflow_store.active_run(client_of_store(), None) is None

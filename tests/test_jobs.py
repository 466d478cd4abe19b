"""The runner: resumption, atomic results, locks, refusals, its MLflow runs."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
import warnings
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest
from counting import run
from filelock import FileLock

from sf import cli, jobs, provenance
from sf.atomic_files import write_json
from sf.attempts import Attempt, last_attempt
from sf.errors import ConfigError, EnvironmentFault, OutputConflictError
from sf.interruption import JobInterrupted
from sf.jobs import read_config, run_stage, stage_module
from sf.layout import work_folder
from sf.tracking import log_all

ROOT = Path(__file__).parent.parent
pytest_plugins = ("counting",)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_that_says_so_and_the_work_stays(stage: Path) -> None:
    (stage / "full").touch()
    with pytest.raises(EnvironmentFault, match=r"disk = .*results/test.*is full.*to continue"):
        run(times=2)
    assert not (stage / "results/test/counting").exists()
    (stage / "full").unlink()
    assert run(times=2) == "done"
    assert (stage / "results/test/counting/calls.txt").read_text() == "0"


def test_the_last_attempt_says_how_it_ended(stage: Path) -> None:
    work = stage / "results/test/.counting.work"
    (stage / "full").touch()
    with pytest.raises(EnvironmentFault):
        run(times=2)
    attempt = last_attempt(work)
    assert attempt is not None
    assert (attempt.outcome, attempt.pid) == ("failed", os.getpid())
    assert "is full" in attempt.reason
    (stage / "full").unlink()
    (stage / "signal").touch()
    with pytest.raises(JobInterrupted):
        run(times=2)
    attempt = last_attempt(work)
    assert attempt is not None
    assert attempt.outcome == "stopped"
    assert "SIGUSR1" in attempt.reason
    (stage / "signal").unlink()
    assert run(times=2) == "done"
    attempt = last_attempt(work)
    assert attempt is not None
    assert (attempt.outcome, attempt.reason) == ("done", "")
    assert attempt.ended is not None
    assert (stage / "results/test/counting/calls.txt").read_text() == "0"


def test_a_held_lock_names_its_holder_and_its_file(stage: Path) -> None:
    """Also a dead holder on another host, where the file system has no flock."""
    work = stage / "results/test/.counting.work"
    work.mkdir(parents=True)
    holder = Attempt("node17", 4711, "99", 1.0)
    write_json(work / "attempt.json", asdict(holder))
    with (
        FileLock(work / "lock"),
        pytest.raises(
            OutputConflictError, match=r"process 4711 on node17, Slurm job 99.*delete .*lock"
        ),
    ):
        run()
    (work / "attempt.json").write_text("{")
    with FileLock(work / "lock"), pytest.raises(OutputConflictError, match="another process"):
        run()


def test_a_package_inside_another_repository_has_no_commit(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    git("commit", "--allow-empty", "-qm", "first")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sf.provenance.ROOT", tmp_path)
        assert provenance.commit()["dirty"] is False
        (tmp_path / "unpacked").mkdir()
        patch.setattr("sf.provenance.ROOT", tmp_path / "unpacked")
        assert provenance.commit() == {"commit": "unknown", "dirty": None}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_place_that_cannot_be_written_is_one_clear_error(
    stage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """`sf use` in a checkout that belongs to someone else."""
    shutil.copytree(ROOT / "params", stage / "params")

    def refuse(*paths: object) -> None:
        raise OSError(number, os.strerror(number), "params.yaml")

    monkeypatch.setattr("os.replace", refuse)
    monkeypatch.setattr("sys.argv", ["sf", "use", "smoke"])
    monkeypatch.setattr("warnings.formatwarning", warnings.formatwarning)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    shown = capsys.readouterr().err
    assert f"params.yaml'. cannot be written or read: {os.strerror(number)}" in shown
    assert "Traceback" not in shown


def test_a_killed_job_continues_where_it_was(stage: Path) -> None:
    Path("stop_at").write_text("3")
    with pytest.raises(KeyboardInterrupt):
        run(times=5)
    output = stage / "results/test/counting"
    assert not output.exists()
    Path("stop_at").unlink()
    assert run(times=5) == "done"
    assert (output / "calls.txt").read_text() == "2"
    steps = [json.loads(line)["step"] for line in (output / "history.jsonl").open()]
    assert steps == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("hours", [-9000, 9000])
def test_a_clock_that_was_moved_changes_nothing(
    stage: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """Interrupted work continues, a result holds, and new content counts whatever its time."""
    source = stage / "rows.json"
    source.write_text("[1]")
    Path("stop_at").write_text("3")
    with pytest.raises(KeyboardInterrupt):
        run(times=5, source=source)
    Path("stop_at").unlink()
    now = time.time
    moved = now() + 3600 * hours
    monkeypatch.setattr("time.time", lambda: now() + 3600 * hours)
    assert run(times=5, source=source) == "done"
    output = stage / "results/test/counting"
    assert (output / "calls.txt").read_text() == "2"
    for path in (source, *(stage / "results").rglob("*")):
        os.utime(path, (moved, moved))
    assert run(times=5, source=source) == "up to date"
    source.write_text("[2]")
    os.utime(source, (moved, moved))
    assert run(times=5, source=source) == "done"


WITHOUT_HOME = """
import sys
sys.path[:0] = sys.argv[1].split(":")
import counting_stage
from sf import jobs
jobs.stage_module = lambda name: counting_stage
output = {"output": "results/test/counting"}
print(jobs.run_stage("counting", output, "test"), jobs.run_stage("counting", output, "test"))
"""


@pytest.mark.parametrize("home", [None, "/nowhere", "/proc"])
def test_a_stage_needs_no_home(stage: Path, home: str | None) -> None:
    """As in a container: no home folder or none that can be written, and no git on PATH."""
    path = os.pathsep.join([str(stage), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_HOME, path],
        env={"PATH": "/nowhere", "USER": "x", **({} if home is None else {"HOME": home})},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[-2] == "done up to date"
    assert "Traceback" not in done.stderr


def test_partial_work_of_other_parameters_is_dropped(stage: Path) -> None:
    Path("stop_at").write_text("3")
    with pytest.raises(KeyboardInterrupt):
        run(times=5)
    Path("stop_at").unlink()
    run(times=6)
    assert (stage / "results/test/counting/calls.txt").read_text() == "6"


def test_a_kill_between_the_two_renames_loses_nothing(stage: Path) -> None:
    run(times=2)
    output = stage / "results/test/counting"
    work = work_folder(output)
    output.rename(work / "out")
    (work / "record.json").unlink()
    assert run(times=2) == "up to date"
    assert (output / "calls.txt").read_text() == "2"


def test_a_foreign_folder_is_not_touched(stage: Path) -> None:
    output = stage / "results/test/counting"
    output.mkdir(parents=True)
    (output / "thesis.tex").write_text("mine")
    with pytest.raises(OutputConflictError, match="not written by this stage"):
        run()
    assert (output / "thesis.tex").read_text() == "mine"


def test_no_disk_space_is_said_before_any_work(
    stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MIN_FREE_GIB", 1e9)
    with pytest.raises(RuntimeError, match="free some space"):
        run()
    assert not (stage / "results/test/counting").exists()


def test_two_processes_do_not_write_one_output(stage: Path) -> None:
    work = work_folder(Path("results/test/counting"))
    work.mkdir(parents=True)
    code = (
        "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire();"
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(work / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        with pytest.raises(OutputConflictError, match="another process"):
            run()
    finally:
        holder.kill()
        holder.wait()
    assert run() == "done"


def test_an_unknown_parameter_and_an_unknown_stage_are_errors(stage: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean times"):
        run(timez=3)
    with pytest.raises(ConfigError, match=r"stage = 'trian'. is unknown"):
        stage_module("trian")


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("{", "not JSON"), ("[1]", "must contain an object")],
)
def test_a_file_that_holds_no_parameters_is_an_error(
    tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "job.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_config(tmp_path / "job.json")


def test_mlflow_holds_the_run_under_its_study(stage: Path) -> None:
    from mlflow.tracking import MlflowClient

    run(times=2)
    client = MlflowClient(f"sqlite:///{stage}/mlflow.db")
    experiment = client.get_experiment_by_name("sparsity-forcing")
    runs = client.search_runs([experiment.experiment_id])
    child = next(run for run in runs if run.data.tags.get("sf.stage") == "counting")
    parent = next(run for run in runs if run.data.tags.get("sf.parent") == "true")
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.info.run_name == "counting"
    assert "index.html" in parent.data.tags["mlflow.note.content"]
    assert child.info.status == parent.info.status == "FINISHED"
    assert parent.info.end_time >= child.info.end_time
    assert child.data.metrics["times"] == 2.0
    assert child.data.params["times"] == "2"
    assert len(client.get_metric_history(child.info.run_id, "value")) == 2


def test_a_store_that_is_down_loses_nothing(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.warns(UserWarning, match="the result is safe"):
        assert run(times=2) == "done"
    with pytest.warns(UserWarning, match="the result is safe"):
        assert run_stage("counting", {"output": "results/test/another"}, "test") == "done"
    with pytest.warns(UserWarning, match="the result in") as warned:
        assert log_all(Path("results")) == 0
    assert len(warned) == 1  # one answer is waited for, not one a result
    uri = f"sqlite:///{stage}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert run(times=2) == "up to date"
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("sparsity-forcing")
    names = [r.data.tags.get("sf.stage") for r in client.search_runs([experiment.experiment_id])]
    assert names.count("counting") == 2


def test_a_locked_store_loses_nothing(stage: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual fault of sqlite with many writers, throughout the whole first call."""
    from mlflow.tracking import MlflowClient

    store = stage / "mlflow.db"
    run(times=1, loud=True)  # makes the store
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store}?timeout=0.05")
    with closing(sqlite3.connect(store)) as other:
        other.execute("begin exclusive")
        with pytest.warns(UserWarning, match=r"database is locked.*the result is safe"):
            assert run(times=2) == "done"
        other.rollback()
    assert log_all(Path("results")) == 1
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("sparsity-forcing")
    logged = client.search_runs([experiment.experiment_id], "params.times = '2'")
    assert [len(client.get_metric_history(one.info.run_id, "value")) for one in logged] == [2]


def test_results_are_logged_while_other_stages_delete_their_work(stage: Path) -> None:
    run(times=2)
    (work_folder(stage / "results/test/counting") / "mlflow.json").unlink()
    ended = threading.Event()

    def churn() -> None:
        while not ended.is_set():
            for place in (".other.work/state/deep/deeper", "other/deep/deeper"):
                Path("results/test", place).mkdir(parents=True, exist_ok=True)
            for place in (".other.work", "other"):
                shutil.rmtree(Path("results/test", place))

    other = threading.Thread(target=churn)
    other.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            logged = [log_all(Path("results")) for _ in range(100)]
    finally:
        ended.set()
        other.join()
    assert logged == [1] + [0] * 99

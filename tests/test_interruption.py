"""Signals and time limits stop a stage, and the next job continues."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sf import interruption
from sf.interruption import JobInterrupted, listening, remaining_seconds, requested, requeue

SIGNALS = [signal.SIGUSR1, signal.SIGTERM]


@pytest.fixture(autouse=True)
def outside_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_JOB_END_TIME", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stage_without_steps_stops_at_once(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    after = []

    def work() -> None:
        with listening(at_once=True):
            os.kill(os.getpid(), number)
            after.append("went on")

    with pytest.raises(JobInterrupted, match=number.name):
        work()
    assert not after
    assert signal.getsignal(number) is before
    assert not issubclass(JobInterrupted, Exception)  # what a stage catches must not hold it


def test_what_one_stage_was_told_does_not_stop_the_next() -> None:
    with listening(at_once=False):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert requested() == "SIGUSR1"
    assert requested() is None


@pytest.mark.parametrize("number", SIGNALS)
def test_a_stage_with_steps_is_only_told(number: signal.Signals) -> None:
    with listening(at_once=False):
        assert requested() is None
        os.kill(os.getpid(), number)
        assert requested() == number.name
    with listening(at_once=False):
        assert requested() is None


def test_a_job_is_told_before_its_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 3))
    remaining = remaining_seconds()
    assert remaining is not None
    assert 1 < remaining <= 3
    with pytest.raises(JobInterrupted, match="SIGUSR1"), listening(at_once=True):
        time.sleep(5)
    assert 0 < time.time() < int(os.environ["SLURM_JOB_END_TIME"])


@pytest.mark.parametrize("end", ["", "NONE", "UNLIMITED"])
def test_a_job_without_a_limit_is_left_alone(monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", end)
    assert remaining_seconds() is None


def scontrol(folder: Path, monkeypatch: pytest.MonkeyPatch, status: int) -> Path:
    """A stand-in that records its arguments."""
    program = folder / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/calls\necho refused >&2\nexit {status}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "calls"


def test_slurm_is_asked_to_run_the_job_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = scontrol(tmp_path, monkeypatch, 0)
    assert not requeue(progress=True)
    assert not calls.exists()
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert requeue(progress=True)
    assert calls.read_text() == "requeue 17\n"
    scontrol(tmp_path, monkeypatch, 1)
    assert not requeue(progress=True)
    assert "does not requeue job 17: refused" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "")
    assert not requeue(progress=True)


def test_a_job_that_may_not_come_further_is_not_requeued_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scontrol(tmp_path, monkeypatch, 0)
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert JobInterrupted("SIGUSR1", "after step 3 of 9").progress
    assert not JobInterrupted("SIGUSR1").progress
    for restarts, progress, again in (
        ("9", False, True), ("10", False, False), ("1000", True, True)
    ):  # fmt: skip
        monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
        assert requeue(progress) is again


STOPPED = """
import os, signal, sys
import sf.cli, sf.jobs
def run_stage(*words, **_):
    with sf.jobs.listening(at_once=True):
        os.kill(os.getpid(), getattr(signal, sys.argv[-1]))
sf.jobs.run_stage = run_stage
sf.jobs.read_config = lambda path: {}
sf.cli.main()
"""


@pytest.mark.parametrize(("name", "asks"), [("SIGUSR1", True), ("SIGTERM", False)])
def test_only_a_time_limit_puts_a_job_back_into_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, asks: bool
) -> None:
    """`scancel` sends SIGTERM, after which a job must end."""
    calls = scontrol(tmp_path, monkeypatch, 0)
    environment = {**os.environ, "SLURM_JOB_ID": "17", "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [sys.executable, "-c", STOPPED, "run", "report", "--config", "x", "--study", name]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == interruption.STATUS, done.stderr
    assert f"stopped by {name}" in done.stderr
    assert calls.exists() is asks

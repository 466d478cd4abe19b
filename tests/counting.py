"""A stage for the tests of the runner: it counts, and stops where it is told to."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from sf import jobs
from sf.jobs import run_stage

STAGE = """
import errno
import os
import signal
from pathlib import Path
from sf.fields import Section

class Parameters(Section):
    words: list[str] = []
    times: int = 1
    loud: bool = False
    source: Path | None = None
    output: Path

def run(p, job):
    done = job.out / "count.txt"
    before = int(done.read_text()) if done.is_file() else 0
    for step in range(before, p.times):
        done.write_text(str(step + 1))
        job.tracker.log(step, {"value": float(step)})
        if (Path("stop_at").is_file() and step + 1 == int(Path("stop_at").read_text())):
            raise KeyboardInterrupt
    if Path("signal").is_file():
        os.kill(os.getpid(), signal.SIGUSR1)
    if Path("full").is_file():
        raise OSError(errno.ENOSPC, "No space left on device", str(job.out / "calls.txt"))
    (job.out / "calls.txt").write_text(str(p.times - before))
    job.tracker.summary({"times": float(p.times)})
"""


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "counting_stage.py").write_text(STAGE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("counting_stage", None)
    from importlib import import_module

    monkeypatch.setattr(jobs, "stage_module", lambda name: import_module("counting_stage"))
    monkeypatch.setattr("sf.provenance.ROOT", tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return tmp_path


def run(**values: Any) -> str:
    return run_stage("counting", {**values, "output": "results/test/counting"}, "test")


def make_input(folder: Path, content: str) -> Path:
    """A finished result that the counting stage reads."""
    (folder / "input.txt").write_text(content)
    result = folder / "results/test/input"
    run_stage("counting", {"source": folder / "input.txt", "output": result}, "test")
    return result

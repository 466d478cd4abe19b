"""Jobs on one machine share its GPUs: each has its own, and waits if none is free."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sf.errors import ConfigError
from workflow import devices
from workflow.devices import claim
from workflow.stages import STAGES

ROOT = Path(__file__).parent.parent.parent
JOB = """
import os, subprocess, sys
from workflow.devices import claim
claim(int(sys.argv[1]), "resources.train.gpus")
# The locks outlive the process that took them, as torchrun's ranks do.
os.execvp("sh", ["sh", "-c", 'echo $CUDA_VISIBLE_DEVICES; read line'])
"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three GPUs, known to a stand-in of nvidia-smi."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf 'GPU-a\\nGPU-b\\nGPU-c\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv(devices.VISIBLE, raising=False)


class Job:
    """A process that holds GPUs until it is told to end."""

    def __init__(self, count: int, visible: str | None = None) -> None:
        environment = {**os.environ, **({} if visible is None else {devices.VISIBLE: visible})}
        self.process = subprocess.Popen(
            [sys.executable, "-c", JOB, str(count)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def sees(self) -> set[str]:
        assert self.process.stdout is not None
        return set(self.process.stdout.readline().strip().split(","))

    def says(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def end(self) -> None:
        self.process.communicate("\n", timeout=20)


@pytest.mark.usefixtures("machine")
def test_each_job_has_gpus_of_its_own_and_waits_for_them() -> None:
    first, second = Job(1), Job(2)
    own, others = first.sees(), second.sees()
    assert len(own) == 1
    assert own | others == {"GPU-a", "GPU-b", "GPU-c"}
    waiting, behind = Job(2), None
    assert "waiting for a GPU" in waiting.says()
    first.end()  # one is free: a job that asks for fewer must not take it first
    behind = Job(1)
    assert "waiting for a GPU" in behind.says()
    second.process.send_signal(signal.SIGKILL)
    second.process.communicate()
    taken = waiting.sees()
    assert len(taken) == 2
    assert behind.sees() == {"GPU-a", "GPU-b", "GPU-c"} - taken
    for job in (waiting, behind):
        job.end()


@pytest.mark.usefixtures("machine")
def test_a_number_and_a_uuid_are_the_same_device() -> None:
    numbered, other = Job(1, visible="1"), None
    assert numbered.sees() == {"1"}
    other = Job(1, visible="GPU-b")
    assert "waiting for a GPU" in other.says()
    numbered.end()
    assert other.sees() == {"GPU-b"}
    other.end()


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(("visible", "count"), [(None, 4), ("0", 2), ("", 1)])
def test_more_gpus_than_there_are_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, count: int
) -> None:
    if visible is not None:
        monkeypatch.setenv(devices.VISIBLE, visible)
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=rf"resources\.train\.gpus = {count}\. is more than the"):
        claim(count, "resources.train.gpus")
    assert time.monotonic() - begun < 10


def test_every_stage_that_computes_on_a_gpu_asks_for_it() -> None:
    launched = {stage.run for stage in STAGES if stage.launch}
    assert launched == {"base", "calibrate", "train", "evaluate", "profile"}

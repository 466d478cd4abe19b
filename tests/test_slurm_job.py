"""A process asks Slurm for what its environment does not hold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sf.slurm_job import complete_environment


def test_a_job_learns_of_its_slurm_job_what_the_plugin_hides(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nodes, end and restarts; a warning where Slurm does not answer, nothing outside Slurm."""
    names = ("NUM_NODES", "NODELIST", "END_TIME")
    for name in (*(f"SLURM_JOB_{name}" for name in names), "SLURM_RESTART_COUNT"):
        monkeypatch.setenv(name, "of another job")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    complete_environment()
    assert os.environ["SLURM_JOB_END_TIME"] == "of another job"

    monkeypatch.setenv("SLURM_JOB_ID", "7")
    program = tmp_path / "scontrol"
    program.write_text(
        "#!/bin/sh\n"
        '[ "$*$SLURM_TIME_FORMAT" = "--oneliner show job 7%s" ] || exit 1\n'
        "echo JobId=7 Restarts=2 EndTime=1800000000 ReqNodeList= NodeList=n[1-2] NumNodes=2\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    complete_environment()
    values = [os.environ[f"SLURM_JOB_{name}"] for name in names]
    assert values == ["2", "n[1-2]", "1800000000"]
    assert os.environ["SLURM_RESTART_COUNT"] == "2"

    monkeypatch.setenv("PATH", "")
    complete_environment()
    assert "the time limit of this job is unknown" in capsys.readouterr().err

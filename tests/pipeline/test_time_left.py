"""The line at a job's start: jobs done, and the time left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sf.scales import load_scale
from workflow import time_left
from workflow.jobs import jobs

PARAMS = load_scale("mini")
SPECS = jobs(PARAMS)


def finish(name: str, seconds: float) -> None:
    stamp = Path(next(job for job in SPECS if job.name == name).stamp)
    stamp.parent.mkdir(parents=True)
    stamp.write_text(json.dumps({"key": "", "files": {}, "seconds": seconds}))


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A study measured elsewhere: 10 s a job, but for `base` of 1,000 s; two cores here."""
    seconds = {job.name: 10.0 for job in SPECS} | {"base__tiny-qwen2.5-vl": 1000.0}
    (tmp_path / "measured.json").write_text(json.dumps({"mini": seconds}))
    monkeypatch.setattr(time_left, "MEASURED", tmp_path / "measured.json")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    return seconds


def shares(done: set[str]) -> float:
    """Minutes of the jobs to come: those of two CPUs fill the machine, two of the others do."""
    both = {"base__tiny-qwen2.5-vl", "profile__tiny-qwen2.5-vl"}
    minutes = 0.0
    for job in SPECS:
        if job.name not in done:
            seconds = 1000 if job.stage.name == "base" else 10
            whole = job.name in both or job.stage.run == "train"
            minutes += seconds / (60 if whole else 120)
    return minutes


def test_before_any_job_the_time_left_is_that_of_a_study_elsewhere() -> None:
    text = time_left.sentence(PARAMS, SPECS)
    assert text == (
        f"study mini: 0 of {len(SPECS)} jobs done, about {round(shares(set()))} min left"
    )


def test_a_slower_machine_takes_longer_for_the_rest() -> None:
    finish("benchmarks", 30.0)
    finish("prepare", 50.0)
    left = round(4 * shares({"benchmarks", "prepare"}))
    assert f"2 of {len(SPECS)} jobs done, about {left} min left" in time_left.sentence(
        PARAMS, SPECS
    )


def test_without_a_measurement_only_rules_with_finished_jobs_are_counted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(time_left, "MEASURED", tmp_path / "absent.json")
    assert time_left.sentence(PARAMS, SPECS).endswith("jobs done, time left unknown")
    finish("evaluate_base__tiny-qwen2.5-vl__full__all", 1200.0)
    text = time_left.sentence(PARAMS, SPECS)
    assert f"about 10 min left, {len(SPECS) - 2} jobs of unknown length not counted" in text


def test_under_slurm_the_time_is_that_of_the_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    minutes = round((1000 + 10 * (len(SPECS) - 1)) / 60)
    assert time_left.sentence(PARAMS, SPECS).endswith(f"about {minutes} min of jobs left")


def test_the_measured_study_is_the_one_of_the_scale_mini() -> None:
    path = Path(__file__).parents[2] / "reports/measured/cpu-epyc-2-cores/study_seconds.json"
    assert set(json.loads(path.read_text())["mini"]) == {job.name for job in SPECS}

"""The line at a job's start: jobs done, and the time left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sf.scales import load_scale
from workflow import time_left
from workflow.jobs import jobs

PARAMS = load_scale("mini")
SPECS = jobs(PARAMS)


BASE = "base__tiny-qwen2.5-vl"


def finish(name: str, seconds: float | None) -> None:
    """Write a finished job's stamp; without seconds, as an older stamp has none."""
    stamp = Path(next(job for job in SPECS if job.name == name).stamp)
    stamp.parent.mkdir(parents=True)
    stamp.write_text(json.dumps({"key": "", "files": {}, "seconds": seconds}))


def write_measured(seconds: dict[str, float]) -> None:
    Path("measured.json").write_text(json.dumps({"mini": seconds}))


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, float]:
    """A study measured elsewhere: 10 s a job, but for `base` of 1,000 s; two cores here."""
    seconds = {job.name: 10.0 for job in SPECS} | {BASE: 1000.0}
    monkeypatch.setattr(time_left, "MEASURED", tmp_path / "measured.json")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    write_measured(seconds)
    return seconds


def finish_all_but(*names: str, seconds: float = 10.0) -> None:
    for job in SPECS:
        if job.name not in names:
            finish(job.name, 100 * seconds if job.name == BASE else seconds)


def test_before_any_job_all_of_the_study_elsewhere_is_left() -> None:
    assert f"study mini: 0 of {len(SPECS)} jobs done, about " in time_left.sentence(PARAMS, SPECS)


def test_a_job_on_all_cores_takes_its_whole_time() -> None:
    finish_all_but(BASE)
    assert time_left.sentence(PARAMS, SPECS).endswith(" jobs done, about 17 min left")


def test_two_jobs_of_one_core_run_side_by_side(elsewhere: dict[str, float]) -> None:
    names = [job.name for job in SPECS if job.stage.run == "evaluate"][:2]
    write_measured(elsewhere | dict.fromkeys(names, 600.0))
    finish_all_but(*names)
    assert time_left.sentence(PARAMS, SPECS).endswith(" jobs done, about 10 min left")


def test_a_slower_machine_takes_longer_for_the_rest() -> None:
    """Three times slower in the median job: 3,000 s of `base`; one odd job changes nothing."""
    finish_all_but(BASE, "prepare", seconds=30.0)
    finish("prepare", 9000.0)
    count = len(SPECS) - 1
    assert f"{count} of {len(SPECS)} jobs done, about 50 min left" in time_left.sentence(
        PARAMS, SPECS
    )


def test_a_finished_job_of_unknown_time_is_done_and_says_nothing_of_the_speed() -> None:
    finish_all_but(BASE, "prepare", "benchmarks", seconds=20.0)
    for name in ("prepare", "benchmarks"):
        finish(name, None)
    assert f"{len(SPECS) - 1} of {len(SPECS)} jobs done, about 33 min left" in time_left.sentence(
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

"""`sf status`: whether each result is valid, and if not, what changed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from ruamel.yaml import YAML
from typer.testing import CliRunner

from sf.atomic_files import write_json
from sf.attempts import Attempt
from sf.cli import app
from sf.config import Params
from sf.jobs import stage_module
from sf.layout import work_folder
from sf.result_key.contents import file_digests
from sf.result_key.key import key_of
from sf.scales import scale_values
from sf.validation import validated
from workflow.jobs import JobSpec, jobs
from workflow.slurm import QueuedJob
from workflow.status import JobStatus, log_file, stale_jobs, study_status, totals

ROOT = Path(__file__).parent.parent.parent


def specs(**changes: dict[str, Any]) -> list[JobSpec]:
    values = scale_values("mini", ROOT / "params")
    del values["objectives"]["distil"]  # one row is enough
    for section, change in changes.items():
        values[section] |= change
    return jobs(validated(Params, values))


def finish(job: JobSpec) -> None:
    """A result as `sf run` would leave it."""
    module = stage_module(job.stage.run)
    output = Path(job.output)
    output.mkdir(parents=True, exist_ok=True)
    (output / "rows.txt").write_text(job.name)
    work = work_folder(output)
    work.mkdir(exist_ok=True)
    key = key_of(job.stage.run, module, validated(module.Parameters, job.parameters))
    stamp = {**key.record(), "commit": "abcdef0123", "files": file_digests(output, work)}
    write_json(Path(job.stamp), stamp)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[JobSpec]:
    """A finished study."""
    monkeypatch.chdir(tmp_path)
    listed = specs()
    for job in listed:
        finish(job)
    return listed


def by_status(listed: list[JobStatus]) -> dict[str, list[str]]:
    named: dict[str, list[str]] = {}
    for entry in listed:
        if entry.status != "holds":
            named.setdefault(entry.status, []).append(entry.job.stage.name)
    return named


def test_a_finished_study_holds_and_says_why(study: list[JobSpec]) -> None:
    listed = study_status(study)
    assert by_status(listed) == {}
    assert stale_jobs(study) == []
    for entry in listed:
        assert entry.reasons[0].startswith("same ")
        assert entry.reasons[0].endswith("made at commit abcdef0")


def test_a_changed_parameter_is_named_with_both_values(study: list[JobSpec]) -> None:
    listed = study_status(specs(evaluate={"retention_p": 0.9}))
    assert by_status(listed) == {
        "stale": [*("evaluate_base", "evaluate_base", "evaluate_trained", *["table"] * 3, "report")]
    }
    own = [entry for entry in listed if entry.changes]
    assert [entry.reasons for entry in own] == [["parameter evaluate.retention_p: 0.975 → 0.9"]] * 3
    assert "reads evaluate_base__" in listed[-1].reasons[0]


@pytest.mark.parametrize(
    ("part", "name", "reason"),
    [
        ("code", "sf/training/trainer.py", "code sf/training/trainer.py changed"),
        ("packages", "torch", r"package torch: 0 → "),
        ("inputs", "base", "input base has other content"),
        ("key_parameters", "seed", "parameter seed: 0 → 0"),
    ],
)
def test_what_changed_is_named(study: list[JobSpec], part: str, name: str, reason: str) -> None:
    job = next(job for job in study if job.stage.name == "train")
    stamp = json.loads(Path(job.stamp).read_text())
    stamp[part][name] = "0"
    write_json(Path(job.stamp), stamp)
    (stale,) = stale_jobs(study)
    assert stale.job == job
    assert stale.reasons[0].startswith(reason.split(" → ")[0])
    assert by_status(study_status(study))["stale"] == [
        "train", "accuracy_curve_trained", "evaluate_trained", *["table"] * 7, "report"
    ]  # fmt: skip


def test_a_damaged_result_is_the_fault_of_one_job(study: list[JobSpec]) -> None:
    job = next(job for job in study if job.stage.name == "base")
    file = Path(job.output) / "rows.txt"
    file.write_text(file.read_text().replace("b", "d"))
    (stale,) = stale_jobs(study)
    assert (stale.job, stale.reasons) == (
        job, ["file rows.txt is missing or has other bytes"]
    )  # fmt: skip
    listed = {entry.job.stage.name: entry for entry in study_status(study)}
    assert listed["train"].reasons == [f"reads {job.name}, which is not valid"]
    assert listed["prepare"].status == "holds"


def test_an_absent_or_unreadable_result_is_missing(study: list[JobSpec]) -> None:
    job = study[-1]
    Path(job.stamp).unlink()
    assert by_status(study_status(study)) == {"missing": ["report"]}
    assert stale_jobs(study) == []
    Path(job.stamp).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"stage\.json is damaged"):
        assert by_status(study_status(study)) == {"missing": ["report"]}


def test_a_job_at_work_is_running(study: list[JobSpec]) -> None:
    job = next(job for job in study if job.stage.name == "profile")
    with FileLock(work_folder(Path(job.output)) / "lock"):
        assert by_status(study_status(study))["running"] == ["profile"]
    assert by_status(study_status(study)) == {}


ATTEMPT = Attempt("node7", 12, "31", 1.0)


@pytest.mark.parametrize(
    ("attempt", "queue", "status", "reasons"),
    [
        (replace(ATTEMPT, ended=2.0, outcome="failed", reason="disk is full"), [], "failed",
         ["process 12 on node7, Slurm job 31", "disk is full", "log: the last line"]),
        (replace(ATTEMPT, ended=2.0, outcome="stopped", reason="stopped by SIGTERM"), [], "stopped",
         ["stopped by SIGTERM"]),
        (ATTEMPT, [], "stopped", ["ended without a message; Slurm: TIMEOUT"]),
        (replace(ATTEMPT, slurm_job=""), [], "stopped", ["killed, out of memory"]),
        (ATTEMPT, [QueuedJob("31", "RUNNING", "report")], "running",
         ["Slurm job 31: RUNNING", "node7", "log: the last line"]),
        (None, [QueuedJob("32", "PENDING", "report")], "queued", ["Slurm job 32: PENDING"]),
        (None, [QueuedJob("33", "PENDING", "prepare")], "missing", []),
        (None, [QueuedJob("34", "RUNNING", "report_report")], "queued",
         ["Slurm job 34 of several report jobs: RUNNING"]),
    ],
)  # fmt: skip
def test_a_job_without_a_result_says_what_became_of_it(
    study: list[JobSpec],
    monkeypatch: pytest.MonkeyPatch,
    attempt: Attempt | None,
    queue: list[QueuedJob],
    status: str,
    reasons: list[str],
) -> None:
    job = study[-1]
    Path(job.stamp).unlink()
    if attempt is not None:
        write_json(work_folder(Path(job.output)) / "attempt.json", asdict(attempt))
    log = log_file(job)
    log.parent.mkdir(parents=True)
    log.write_bytes(b"first\n\x1b[31mred \xff\nlog: the last line\n\n")
    monkeypatch.setattr("shutil.which", lambda name: name)
    monkeypatch.setattr("workflow.slurm.jobs_of", lambda folder: queue)
    monkeypatch.setattr("workflow.slurm.end_of", lambda job: "TIMEOUT" if job == "31" else None)
    entry = study_status(study)[-1]
    assert entry.status == status
    text = "\n".join(entry.reasons)
    for reason in reasons:
        assert reason in text
    assert "\x1b" not in text


def test_hours_left_are_those_that_the_same_jobs_took(study: list[JobSpec]) -> None:
    assert "left" not in totals(study_status(study))
    trained = [job for job in study if job.stage.name == "evaluate_base"]
    for job, seconds in zip(trained, (3600.0, 7200.0, 9000.0), strict=False):
        stamp = json.loads(Path(job.stamp).read_text())
        write_json(Path(job.stamp), {**stamp, "seconds": seconds})
    (work_folder(Path(trained[0].output)) / "record.json").unlink(missing_ok=True)
    Path(trained[0].stamp).unlink()
    text = totals(study_status(study))
    others = [7200.0, 9000.0][: len(trained) - 1]
    assert f"about {sum(others) / len(others) / 3600:.2g} h of work left" in text
    assert "4 jobs of unknown length" in text  # the report, tables 1 and 2, figure 7


def test_the_command_prints_a_table_and_plain_values(study: list[JobSpec]) -> None:
    values = scale_values("mini", ROOT / "params")
    del values["objectives"]["distil"]  # one row is enough
    values["profile"]["token_ratio"] = 0.5
    with Path("params.yaml").open("w") as stream:
        YAML().dump(values, stream)
    result = CliRunner().invoke(app, ["status", "--json"], catch_exceptions=False)
    listed = json.loads(result.output)
    assert {entry["name"]: entry["status"] for entry in listed if entry["status"] != "holds"} == {
        "profile__tiny-qwen2.5-vl": "stale",
        "figure4c": "stale",
        "figure4d": "stale",
        "report": "stale",
    }
    changes = [change for entry in listed for change in entry["changes"]]
    assert changes == [
        {"kind": "parameter", "name": "profile.token_ratio", "old": 0.25, "new": 0.5}
    ]
    table = CliRunner().invoke(app, ["status"], catch_exceptions=False)
    assert table.exit_code == 0
    assert "4 stale" in table.output

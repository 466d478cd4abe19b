"""The table of stages: no drift to dvc.yaml, the same commands in both engines, declared code."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sf import provenance
from sf.config import validated
from sf.jobs import parse_flags, stage_module
from workflow import dvc_yaml
from workflow.jobs import JobSpec, code_digest, code_files, jobs, read_params, stale_jobs
from workflow.stages import STAGES, Stage

ROOT = Path(__file__).parent.parent.parent
SCALES = ("smoke", "mini", "compare", "single_gpu", "paper")


def specs(scale: str) -> list[JobSpec]:
    return jobs(read_params(ROOT / "params" / f"{scale}.yaml"))


def test_dvc_yaml_is_rendered_from_the_table() -> None:
    assert (ROOT / "dvc.yaml").read_text() == dvc_yaml.render(), "run: python -m workflow.dvc_yaml"


@pytest.mark.parametrize("scale", SCALES)
def test_every_command_is_accepted_by_its_stage(scale: str) -> None:
    for job in specs(scale):
        words = shlex.split(job.command)
        assert words[:4] == ["sf", "run", job.stage.run, "--study"]
        model = stage_module(job.stage.run).Parameters
        parameters = validated(model, parse_flags(model, words[5:]))
        assert str(parameters.output) == job.output


@pytest.mark.parametrize("scale", SCALES)
def test_jobs_are_listed_after_what_they_read_and_write_apart(scale: str) -> None:
    done: set[str] = set()
    for job in specs(scale):
        assert set(job.inputs) <= done
        assert job.stamp not in done
        done.add(job.stamp)


def test_a_study_without_training_has_all_other_jobs() -> None:
    params = read_params(ROOT / "params" / "mini.yaml")
    params["axes"]["objectives"] = []
    found = jobs(params)
    assert {job.stage.name for job in found} == {
        stage.name for stage in STAGES if "objective" not in stage.axes
    } - {"frontier_method"}  # mini has no curve methods
    for job in found:
        model = stage_module(job.stage.run).Parameters
        validated(model, parse_flags(model, shlex.split(job.command)[5:]))


def test_both_engines_run_the_same_commands(tmp_path: Path) -> None:
    from dvc.repo import Repo

    for scale in SCALES:
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
        subprocess.run(["cp", "-r", ROOT / ".dvc", ROOT / "dvc.yaml", tmp_path], check=True)
        (tmp_path / "params.yaml").write_bytes((ROOT / "params" / f"{scale}.yaml").read_bytes())
        with Repo(str(tmp_path)) as repo:
            dvc_commands = sorted(stage.cmd for stage in repo.index.stages)
        ours = sorted(f"{job.stage.launch} {job.command}".strip() for job in specs(scale))
        assert [shlex.split(c) for c in dvc_commands] == [shlex.split(c) for c in ours]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_stage_declares_the_code_that_it_imports(stage: Stage) -> None:
    imported = provenance.code_files(ROOT / "sf" / "stages" / f"{stage.run}.py")
    needed = {
        str(path.relative_to(ROOT)) for path in imported if path.name not in provenance.RUNNER
    }
    assert needed <= set(code_files(stage)), sorted(needed - set(code_files(stage)))


def test_the_reports_own_data_are_part_of_its_code() -> None:
    found = {path.name for path in provenance.code_files(ROOT / "sf/stages/report.py")}
    assert {"published.csv", "page.html.jinja"} <= found
    prepared = provenance.code_files(ROOT / "sf/stages/prepare.py")
    assert all(path.suffix == ".py" for path in prepared)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_declared_code_exists(stage: Stage) -> None:
    for path in stage.code_paths:
        assert (ROOT / path).exists(), path


def test_importing_all_stages_loads_no_torch() -> None:
    names = sorted({stage.run for stage in STAGES})
    lines = [f"import sf.stages.{name}" for name in names]
    code = "; ".join(["import sys", *lines, "sys.exit('torch' in sys.modules)"])
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_stale_or_broken_result_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = specs("mini")[0]
    output = Path(job.output)
    output.mkdir(parents=True)
    (output / "rows.parquet").write_text("abc")

    def stamp(command: str, size: int) -> None:
        code = code_digest(job.stage.run)
        files = {"rows.parquet": [size, "digest"]}
        content = {"command": command, "code_hash": code, "files": files}
        Path(job.stamp).write_text(json.dumps(content))

    stamp(job.command, 3)
    assert stale_jobs([job]) == []
    stamp(job.command, 4)
    assert stale_jobs([job]) == [job]
    stamp(job.command + " --seed 9", 3)
    assert stale_jobs([job]) == [job]


def test_snakemake_lint_finds_nothing_but_the_missing_conda_environment() -> None:
    # One environment, made by `make env`, serves all stages: a conda one per rule is not wanted.
    snakemake = Path(sys.executable).parent / "snakemake"
    result = subprocess.run(
        [snakemake, "--lint"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    lints = {line.strip(" *:") for line in result.stderr.splitlines() if line.startswith("    * ")}
    assert lints == {"Specify a conda environment or container for each rule."}


def test_the_slurm_profile_is_found_by_its_name() -> None:
    snakemake = Path(sys.executable).parent / "snakemake"
    result = subprocess.run(
        [snakemake, "-n", "--cores", "all", "--profile", "slurm"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "SNAKEMAKE_PROFILE": ""},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "slurm" in result.stderr.split("\n")[0] + result.stderr.split("\n")[1]

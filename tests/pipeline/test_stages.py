"""The table of stages: no drift to dvc.yaml, the same commands in both engines, declared code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sf import provenance
from sf.config import Params, read_yaml, validated
from sf.jobs import read_config, stage_module
from workflow import dvc_yaml
from workflow.jobs import (
    JobSpec,
    code_digest,
    code_files,
    jobs,
    load_params,
    stale_jobs,
    write_configs,
)
from workflow.stages import STAGES, Stage

ROOT = Path(__file__).parent.parent.parent
SCALES = ("smoke", "mini", "compare", "single_gpu", "paper")


def specs(scale: str) -> list[JobSpec]:
    return jobs(load_params(ROOT / "params" / f"{scale}.yaml"))


def test_dvc_yaml_is_rendered_from_the_table() -> None:
    assert (ROOT / "dvc.yaml").read_text() == dvc_yaml.render(), "run: python -m workflow.dvc_yaml"


@pytest.mark.parametrize("scale", SCALES)
def test_every_command_names_a_file_that_its_stage_accepts(
    scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    listed = specs(scale)
    assert len(write_configs(listed)) == len({job.config for job in listed}) == len(listed)
    for job in listed:
        assert job.command == f"sf run {job.stage.run} --study {scale} --config {job.config}"
        values = read_config(Path(job.config))
        parameters = validated(stage_module(job.stage.run).Parameters, values)
        assert str(parameters.output) == job.output
        assert parameters.model_dump(mode="json") == values == job.parameters


def test_a_file_is_written_when_its_content_changes_and_removed_with_its_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = read_yaml(ROOT / "params" / "mini.yaml")
    write_configs(jobs(validated(Params, values)))
    assert write_configs(jobs(validated(Params, values))) == []
    row = {"objective": "sparsity_forcing"}
    for section, change, changed in (
        ("nsa", {"window": 4}, []),
        ("grpo", {"beta": 0.5}, ["train"]),
        (
            "objectives",
            {"top_k": {**row, "rollout_selector": "top_k"}},
            ["evaluate_trained", "frontier_trained", "report", "train"],
        ),
        ("objectives", {"top_k": {**row, "rollout_selector": "threshold"}}, ["train"]),
    ):
        values[section] = {**values[section], **change}
        written = write_configs(jobs(validated(Params, values)))
        assert sorted(path.name.split("__")[0].removesuffix(".json") for path in written) == changed
    assert [path.name for path in written] == ["train__tiny-qwen2.5-vl__top_k__0.json"]
    del values["objectives"]["top_k"]
    write_configs(jobs(validated(Params, values)))
    assert not written[0].exists()


@pytest.mark.parametrize("scale", SCALES)
def test_jobs_are_listed_after_what_they_read_and_write_apart(scale: str) -> None:
    done: set[str] = set()
    for job in specs(scale):
        assert set(job.inputs) <= done
        assert job.stamp not in done
        done.add(job.stamp)


def test_a_study_without_training_has_all_other_jobs() -> None:
    params = read_yaml(ROOT / "params" / "mini.yaml")
    params["objectives"] = {}
    found = jobs(validated(Params, params))
    assert {job.stage.name for job in found} == {
        stage.name for stage in STAGES if "objective" not in stage.axes
    } - {"frontier_method"}  # mini has no curve methods


def test_both_engines_run_the_same_commands(tmp_path: Path) -> None:
    from dvc.repo import Repo

    for scale in SCALES:
        subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
        subprocess.run(["cp", "-r", ROOT / ".dvc", ROOT / "dvc.yaml", tmp_path], check=True)
        (tmp_path / "params.yaml").write_bytes((ROOT / "params" / f"{scale}.yaml").read_bytes())
        with Repo(str(tmp_path)) as repo:
            dvc_commands = sorted(stage.cmd for stage in repo.index.stages)
            read = {dep.def_path for stage in repo.index.stages for dep in stage.deps}
        ours = [f"{job.stage.launch} {job.command}".strip() for job in specs(scale)]
        assert dvc_commands == sorted([*ours, "python -m workflow.resolve"])
        assert {job.config for job in specs(scale)} <= read


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

    def stamp(size: int, code: str = code_digest(job.stage.run), **changes: int) -> None:
        files = {"rows.parquet": [size, "digest"]}
        content = {"parameters": {**job.parameters, **changes}, "code_hash": code, "files": files}
        Path(job.stamp).write_text(json.dumps(content))

    stamp(3)
    assert stale_jobs([job]) == []
    stamp(4)
    assert stale_jobs([job]) == [job]
    stamp(3, seed=9)
    assert stale_jobs([job]) == [job]
    stamp(3, code="another")
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

"""The table of stages: dvc.yaml matches, both engines run the same commands, code is declared."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import networkx as nx
import pytest
from dvc.repo import Repo

from sf.atomic_files import write_json
from sf.config import Params, load_params
from sf.jobs import read_config, stage_module
from sf.layout import STAMP
from sf.scales import load_scale, render_scale, scale_values
from sf.sections import Vision
from sf.validation import validated
from workflow import dvc_yaml, resolve
from workflow.dvc_yaml import CODE
from workflow.jobs import (
    JobSpec,
    jobs,
    resources_of,
    write_configs,
)
from workflow.stages import STAGES
from workflow.targets import asked_jobs, closure

ROOT = Path(__file__).parent.parent.parent
SCALES = ("smoke", "mini", "compare", "tables", "single_gpu", "paper")


@cache
def specs(scale: str) -> list[JobSpec]:
    return jobs(load_scale(scale, ROOT / "params"))


def test_dvc_yaml_is_rendered_from_the_table() -> None:
    rendered = dvc_yaml.render(load_params(ROOT / "params.yaml"))
    assert (ROOT / "dvc.yaml").read_text() == rendered, "run: python -m workflow.dvc_yaml"


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
    values = scale_values("mini", ROOT / "params")
    write_configs(jobs(validated(Params, values)))
    assert write_configs(jobs(validated(Params, values))) == []
    row = {"objective": "sparsity_forcing"}
    for section, change, changed in (
        ("nsa", {"window": 4}, []),
        ("grpo", {"beta": 0.5}, ["train"]),
        (
            "objectives",
            {"top_k": {**row, "rollout_selector": "top_k"}},
            ["accuracy_curve_trained", "evaluate_trained", "report", "train"],
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
    params = scale_values("mini", ROOT / "params")
    params["objectives"] = {}
    listed = jobs(validated(Params, params))
    assert {job.stage.name for job in listed} == {
        stage.name for stage in STAGES if "objective" not in stage.axes and stage.run != "fetch"
    } - {"accuracy_curve_method"}  # mini has no curve methods


def checkout(folder: Path, scale: str, tables: str = "[]") -> Params:
    """The part of a checkout that DVC reads, with a study's parameters."""
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    subprocess.run(["cp", "-r", ROOT / ".dvc", ROOT / "dvc.yaml", folder], check=True)
    text = render_scale(scale, ROOT / "params").replace("tables: []", f"tables: {tables}")
    (folder / "params.yaml").write_text(text)
    params = load_params(folder / "params.yaml")
    dvc_yaml.write_dvc_yaml(params, folder)
    return params


def test_both_engines_run_the_same_commands(tmp_path: Path) -> None:
    """By default; DVC knows no other commands than those of `tables`."""
    for scale in SCALES:
        params = checkout(tmp_path, scale)
        made = asked_jobs(params, jobs(params))
        with Repo(str(tmp_path)) as repo:
            dvc_commands = sorted(stage.cmd for stage in repo.index.stages)
            dvc_names = {stage.name for stage in repo.index.stages}
            read = {dep.def_path for stage in repo.index.stages for dep in stage.deps}
        commands = [f"{job.stage.launch} {job.command}".strip() for job in made]
        assert dvc_commands == sorted([*commands, "python -m workflow.resolve", CODE["cmd"]])
        assert {job.config for job in made} <= read
        assert dvc_names == {*map(dvc_yaml.stage_name, made), "resolve", "code"}


def test_a_study_may_leave_out_the_benchmarks(tmp_path: Path) -> None:
    checkout(tmp_path, "mini")
    file = tmp_path / "params.yaml"
    text = file.read_text()
    assert "suites: [all]" in text
    file.write_text(text.replace("suites: [all]", "suites: []"))
    params = load_params(file)
    listed = jobs(params)
    assert {"prepare", "train", "calibrate", "report"} <= {job.stage.run for job in listed}
    assert not {"benchmarks", "evaluate"} & {job.stage.run for job in listed}
    stamps = {job.stamp for job in listed}
    assert all(stamps.issuperset(job.inputs) for job in listed)
    dvc_yaml.write_dvc_yaml(params, tmp_path)
    with Repo(str(tmp_path)) as repo:
        names = {stage.name for stage in repo.index.stages}
    assert names == {*map(dvc_yaml.stage_name, listed), "resolve", "code"}


@pytest.mark.parametrize("scale", ["tables", "compare"])
def test_a_table_reads_the_same_results_under_both_engines(scale: str, tmp_path: Path) -> None:
    checkout(tmp_path, scale)
    listed = specs(scale)
    with Repo(str(tmp_path)) as repo:
        index = repo.index
        graph, stages = index.graph, {stage.name: stage for stage in index.stages}
    for job in listed:
        if job.stage.name == "table":
            needed = {dvc_yaml.stage_name(one) for one in closure([job], listed)} - {job.name}
            through = {other.name for other in nx.descendants(graph, stages[job.name])}
            assert through - {"resolve", "code"} == needed, job.name


@pytest.mark.parametrize(
    ("scale", "tables"), [("tables", "[4, figure5]"), ("compare", "[7]"), ("mini", "[figure4c]")]
)
def test_both_engines_make_the_asked_tables_alone(scale: str, tables: str, tmp_path: Path) -> None:
    params = checkout(tmp_path, scale, tables)
    listed = jobs(params)
    asked = asked_jobs(params, listed)
    assert len(asked) < len(listed)
    with Repo(str(tmp_path)) as repo:
        stages = repo.index.stages
        made = [out.def_path for stage in stages for out in stage.outs]
        read = {dep.def_path for stage in stages for dep in stage.deps}
    expected = {
        dvc_yaml.stage_name(job): f"{job.stage.launch} {job.command}".strip() for job in asked
    }
    commands = {stage.name: stage.cmd for stage in stages if stage.name not in ("resolve", "code")}
    assert commands == expected
    for path in (path for path in read if path.startswith("results/")):
        assert any(f"{path}/".startswith(f"{out}/") or out.startswith(path) for out in made), path


@pytest.mark.parametrize("scale", ["tables", "compare"])
def test_a_table_waits_for_what_its_stage_reads(
    scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a whole study, which has several seeds in `compare`."""
    monkeypatch.chdir(tmp_path)
    for job in specs(scale):
        write_json(Path(job.stamp), {"key": job.name, "files": {}})
    for job in specs(scale):
        if job.stage.name == "table":
            parameters = validated(stage_module("table").Parameters, job.parameters)
            read = {str(path / STAMP) for path in stage_module("table").inputs(parameters).values()}
            assert read - {f"results/{scale}/benchmarks/{STAMP}"} == {*job.inputs}, job.name


def test_dvc_shows_the_reports_figures(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    for name in (".dvc", ".dvcignore", "dvc.yaml", "params.yaml"):
        subprocess.run(["cp", "-r", ROOT / name, tmp_path], check=True)
    report = tmp_path / "reports/mini"
    (report / "figures").mkdir(parents=True)
    (report / "tables").mkdir()
    (report / "metrics.json").write_text('{"tiny/zipvl/image_average": 70.0}')
    (report / "tables/benchmarks.csv").write_text("title,score\nMME,2300\n")
    for kind in ("png", "svg"):
        (report / f"figures/curve.{kind}").write_bytes(b"a picture")
    with Repo(str(tmp_path)) as repo:
        cached = {stage.name for stage in repo.index.stages for out in stage.outs if out.use_cache}
        metrics = repo.metrics.show()
        shown = repo.plots.show()["workspace"]["sources"]["data"]
    (values,) = (entry["data"] for entry in metrics[""]["data"].values())
    assert values == {"tiny/zipvl/image_average": 70.0}
    assert cached == {"report"}  # of another commit or experiment, figures come from the cache
    assert {*shown} == {"reports/mini/figures/curve.png", "reports/mini/tables/benchmarks.csv"}


def test_dvc_yaml_follows_rows_that_params_yaml_gains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    values = scale_values("mini", ROOT / "params")
    assert not dvc_yaml.write_dvc_yaml(validated(Params, values))  # no checkout of DVC
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    assert not dvc_yaml.write_dvc_yaml(validated(Params, values))
    for name in ("moba", "nsa", "sharpness", "zipvl_sft"):
        values["objectives"][name] = {"objective": name}
    assert dvc_yaml.write_dvc_yaml(validated(Params, values))
    assert "  table3:\n" in (tmp_path / "dvc.yaml").read_text()
    Path("params.yaml").write_text(render_scale("mini", ROOT / "params"))  # without these rows
    with pytest.raises(SystemExit, match="run dvc repro again"):
        resolve.main()
    assert Path("dvc.yaml").read_text() == (ROOT / "dvc.yaml").read_text()
    resolve.main()


def reads(name: str) -> set[str]:
    """The stages, and the checkpoints' folders, whose results the jobs of a rule read."""
    inputs = {path for job in specs("compare") if job.stage.name == name for path in job.inputs}
    return {path.split("/")[2] for path in inputs}


def test_each_stage_reads_the_results_that_it_is_about() -> None:
    every = {"calibrate", "train", "accuracy_curve", "evaluate", "profile"}
    expected = {
        "fetch_benchmarks": set(),
        "fetch_rows": set(),
        "fetch_weights": set(),
        "benchmarks": set(),
        "prepare": {"benchmarks"},
        "base": {"prepare"},
        "calibrate": {"base", "prepare"},
        "train": {"base", "prepare"},
        "accuracy_curve_base": {"base", "prepare"},
        "accuracy_curve_method": {"base", "prepare"},
        "accuracy_curve_trained": {"train", "prepare"},
        "evaluate_base": {"base", "benchmarks", "prepare"},
        "evaluate_trained": {"train", "benchmarks", "prepare"},
        "profile": {"base"},
        "table": every - {"evaluate"},  # this scale evaluates no benchmark of a table
        "previews": {"benchmarks"},
        "report": {*every, "previews", "table"},
    }
    assert {stage.name for stage in STAGES} == expected.keys()
    present = {job.stage.name for job in specs("compare")}
    for name in present:
        assert reads(name) == expected[name], name


def test_what_lies_on_a_hub_is_fetched_by_jobs_of_their_own_that_need_no_gpu() -> None:
    params = load_scale("paper")
    listed = {job.name: job for job in jobs(params)}
    fetches = {name: job for name, job in listed.items() if job.stage.run == "fetch"}
    assert fetches.keys() == {
        *("fetch_rows", "fetch_benchmarks"),
        *(f"fetch_weights__{model}" for model in params.base),
    }
    readers = {"prepare": "fetch_rows", "benchmarks": "fetch_benchmarks"}
    readers |= {f"base__{model}": f"fetch_weights__{model}" for model in params.base}
    for name, job in listed.items():
        fetched = {each for each, fetch in fetches.items() if fetch.stamp in job.inputs}
        assert fetched == ({readers[name]} if name in readers else set())
        model = stage_module(job.stage.run)
        given = model.Parameters(**job.parameters)
        assert getattr(model, "asks_hub", lambda _: False)(given) == (name in fetches), name
        assert job.stage.local == (name in fetches)
        if name in fetches or name in readers:
            assert resources_of(job.stage.run, job.parameters, params)[1].gpus == 0
    assert fetches["fetch_rows"].parameters["source"] == params.prepare.source
    assert fetches["fetch_benchmarks"].parameters["suites"] == params.benchmarks.suites
    assert not [job for job in specs("mini") if job.stage.run == "fetch"]


def test_only_what_computes_on_a_gpu_holds_one() -> None:
    """Of the base models, only those trained here, whatever `resources` gives all stages."""
    params = load_scale("paper")
    everyone = params.resources["default"]
    assert everyone.gpus == 1
    given = params.model_copy(update={"resources": {"default": everyone}})
    assert resources_of("previews", {}, given)[1].gpus == 0
    assert resources_of("calibrate", {}, given)[1].gpus == 1
    assert resources_of("base", {"base": {"source": "scratch"}}, params)[1].gpus == 1
    assert resources_of("base", {"base": {"source": "models/own"}}, params)[1].gpus == 0
    assert resources_of("train", {}, params)[1].gpus == 8


@pytest.mark.parametrize("scale", ["paper", "single_gpu", "mini"])
def test_benchmarks_and_calibration_see_the_evaluations_pixels(scale: str) -> None:
    """Held-out rows use those of training; `prepare` opens media under both."""
    params = load_scale(scale)
    training = params.vision.model_dump()
    evaluation = {**training, "image_max_pixels": 7 * 28**4, "video_max_frames": 77}
    changed = params.model_copy(update={"evaluation_vision": Vision(**evaluation)})
    seen: dict[str, set[str]] = {"training": set(), "evaluation": set()}
    for job in jobs(changed):
        for field in ("vision", "evaluation_vision"):
            if field in job.parameters:
                name = "training" if job.parameters[field] == training else "evaluation"
                assert job.parameters[field] == {"training": training}.get(name, evaluation)
                seen[name].add(job.stage.name)
    assert seen["evaluation"] >= {"prepare", "benchmarks", "calibrate", "evaluate_base"}
    assert seen["training"] >= {"prepare", "base", "train", "accuracy_curve_base"}
    assert seen["training"] & seen["evaluation"] == {"prepare"}


def test_a_job_reads_the_checkpoint_of_its_own_row_and_the_report_reads_all() -> None:
    listed = specs("compare")
    for job in listed:
        checkpoint = job.parameters.get("checkpoint", "")
        if job.stage.name.endswith("_trained"):
            row = "{model}/{objective}/seed{train_seed}".format(**job.names)
            assert checkpoint.endswith(f"/train/{row}")
        elif checkpoint:
            assert checkpoint.endswith(f"/base/{job.names['model']}")
        assert not checkpoint or f"{checkpoint}/stage.json" in job.inputs
    report = next(job for job in listed if job.stage.name == "report")
    outputs = {job.stamp for job in listed if job.stage.output in report.stage.gather}
    assert set(report.inputs) == outputs
    assert {job.stage.name for job in listed if job.stamp in outputs} >= {
        "calibrate", "train", "accuracy_curve_base", "accuracy_curve_trained", "evaluate_base",
        "evaluate_trained", "profile",
    }  # fmt: skip


def test_importing_all_stages_loads_no_torch() -> None:
    names = sorted({stage.run for stage in STAGES})
    lines = [f"import sf.stages.{name}" for name in names]
    code = "; ".join(["import sys", *lines, "sys.exit('torch' in sys.modules)"])
    subprocess.run([sys.executable, "-c", code], check=True)


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

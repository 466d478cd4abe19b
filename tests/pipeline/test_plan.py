"""`sf plan`: the jobs of a table, existing results, and the cost of the rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sf.atomic_files import write_json
from sf.cli import app
from sf.config import Params
from sf.errors import ConfigError
from sf.jobs import stage_module
from sf.layout import work_folder
from sf.report.definitions import DEFINITIONS
from sf.result_key.contents import file_digests
from sf.result_key.key import key_of
from sf.scales import load_scale, render_scale, scale_values
from sf.validation import validated
from workflow.jobs import JobSpec, jobs
from workflow.plan import plan, sentences
from workflow.targets import TARGETS, asked_jobs, check_asked, closure, jobs_of, lacking

FOLDER = Path(__file__).parent.parent.parent / "params"


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the parameters of `mini` and no results."""
    (tmp_path / "params.yaml").write_text(render_scale("mini", FOLDER))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def finish(job: JobSpec, seconds: float) -> None:
    """A result as `sf run` would leave it."""
    module, output = stage_module(job.stage.run), Path(job.output)
    output.mkdir(parents=True)
    (output / "rows.txt").write_text(job.name)
    work = work_folder(output)
    work.mkdir(exist_ok=True)
    key = key_of(job.stage.run, module, validated(module.Parameters, job.parameters))
    made = {"commit": "abcdef0123", "seconds": seconds, "files": file_digests(output, work)}
    write_json(Path(job.stamp), {**key.record(), **made})


def shown(name: str, params: Params) -> list[JobSpec]:
    return jobs_of(name, params, jobs(params))


def test_the_scale_tables_has_jobs_for_every_table_and_figure() -> None:
    params = load_scale("tables", FOLDER)
    listed = jobs(params)
    pages = {job.name: job for job in listed if job.stage.name == "table"}
    assert list(pages) == list(TARGETS) == list(DEFINITIONS)
    for name, page in pages.items():
        chosen = shown(name, params)
        assert {job.stage.output for job in chosen} == {*DEFINITIONS[name].results}
        assert page.inputs == [job.stamp for job in chosen]
        needed = closure([page], listed)
        stamps = {job.stamp for job in needed}
        assert {job.stamp for job in chosen} <= stamps
        assert all(set(job.inputs) <= stamps for job in needed)
        assert "report" not in {job.stage.name for job in needed}
    assert shown("all", params) == listed


def rows_of(name: str) -> set[str]:
    chosen = shown(name, load_scale("tables", FOLDER))
    return {job.parameters["row"] for job in chosen if "row" in job.parameters}


@pytest.mark.parametrize(("scale", "default"), [("tables", None), ("paper", {"sparsity_forcing"})])
def test_every_table_can_be_made_at_these_scales(scale: str, default: set[str] | None) -> None:
    params = load_scale(scale, FOLDER)
    assert lacking(params) == {}
    listed = jobs(params)
    trained = {job.names["objective"] for job in asked_jobs(params, listed) if "train" in job.name}
    assert trained == (default or {*params.objectives})


def test_a_table_takes_the_rows_that_it_is_about() -> None:
    own, methods = {"sparsity_forcing"}, set(load_scale("tables", FOLDER).axes.methods)
    assert rows_of("table1") == rows_of("table2") == methods | own
    assert rows_of("table3") == {"full", "moba", "nsa", "videonsa", "sharpness", "zipvl_sft"} | own
    assert rows_of("table4") == {"top_k", "threshold"} | own
    assert rows_of("table5") == {"v1_range", "group_4"} | own
    assert rows_of("table6") == {"token_and_latency"} | own
    assert rows_of("table7") == own
    assert rows_of("table8") == {"full", "temperature"} | own
    assert rows_of("figure4a") == rows_of("figure5") == {"base", "temperature"} | own
    assert rows_of("figure7") == {"full", "zipvl"} | own


def test_a_table_shows_the_models_that_have_its_rows() -> None:
    """Table 6 compares two rewards of LLaVA-Video: no other model is trained for it."""
    params = load_scale("paper", FOLDER)
    listed = jobs(params)
    chosen = closure(jobs_of("table6", params, listed), listed)
    trained = [job for job in chosen if job.stage.run == "train"]
    assert {job.names["model"] for job in chosen if "model" in job.names} == {"llava-video-7b"}
    assert [job.names["objective"] for job in trained] == ["sparsity_forcing", "token_and_latency"]
    assert [job.parameters["objective"]["reward_latency_weight"] for job in trained] == [0.0, 1.0]
    for job in trained:
        assert job.parameters["train"]["data_sources"] == ["LLaVA-Video-178K"]
    (table,) = (job for job in listed if job.name == "table6")
    assert table.parameters["models"] == ["llava-video-7b"]
    assert table.parameters["without"] == {}
    every = [job for job in listed if job.stage.run == "train"]
    assert [
        job.names["model"] for job in every if job.names["objective"] == "sparsity_forcing"
    ] == [*params.base]
    assert [job.parameters["train"]["data_sources"] for job in every[:3]] == [[], [], []]
    (second,) = (job for job in listed if job.name == "table2")
    assert second.parameters["models"] == [*params.base]
    assert second.parameters["without"] == {"llava-video-7b": ["visionzip"]}
    assert not any(
        job.names.get("method") == "visionzip" and job.names["model"] == "llava-video-7b"
        for job in listed
    )


def test_rows_that_no_model_has_together_make_no_table() -> None:
    values = scale_values("paper", FOLDER)
    values["objectives"]["sparsity_forcing"]["models"] = ["qwen2-vl-7b"]
    params = validated(Params, values)
    listed = jobs(params)
    assert "table6" not in {job.name for job in listed}
    with pytest.raises(ConfigError, match=r"table6.*rows that no base model has together"):
        jobs_of("table6", params, listed)


def test_a_job_whose_benchmarks_a_table_does_not_show_is_left_out() -> None:
    values = scale_values("mini", FOLDER)
    values["benchmarks"]["suites"] = ["mme", "mlvu_dev"]
    params = validated(Params, values)
    assert {job.names["suite"] for job in shown("table1", params)} == {"mme"}
    assert {job.names["suite"] for job in shown("table2", params)} == {"mlvu_dev"}
    values["benchmarks"]["suites"] = ["mme"]
    with pytest.raises(ConfigError, match=r"'table2'. has no evaluate job.* kind video"):
        shown("table2", validated(Params, values))


def test_rows_that_a_study_lacks_are_named_with_the_lines_that_add_them() -> None:
    values = scale_values("mini", FOLDER)
    with pytest.raises(ConfigError) as caught:
        shown("table3", validated(Params, values))
    assert "rows that params.yaml lacks: objective moba, objective nsa" in str(caught.value)
    for name in ("moba", "nsa", "sharpness", "zipvl_sft"):  # the remedy
        assert f"objectives: {name}: {{objective: {name}}}" in str(caught.value)
        values["objectives"][name] = {"objective": name}
    assert shown("table3", validated(Params, values))
    with pytest.raises(ConfigError, match=r"'table9'. is not a table or figure.*table1"):
        shown("table9", validated(Params, values))


def test_the_study_has_a_page_for_each_table_that_its_rows_make() -> None:
    params = load_scale("mini", FOLDER)
    listed = jobs(params)
    names = {job.name for job in listed if job.stage.name == "table"}
    assert {"table1", "table2", "table7", "figure4a", "figure4d"} <= names
    assert {"table3", "table4", "table8"} & names == set()
    words = ["snakemake", "--cores", "2", "table1"]
    assert check_asked(words, params, listed) == ["table1: results/mini/table/table1/index.html"]
    with pytest.raises(ConfigError, match=r"rows that params\.yaml lacks: objective moba"):
        check_asked(["snakemake", "table3"], params, listed)
    assert lacking(params)["table3"] == 4
    assert "table1" not in lacking(params)


@pytest.mark.parametrize(
    ("tables", "names", "others"),
    [
        ([1], {"table1"}, {"profile__tiny-qwen2.5-vl", "calibrate__tiny-qwen2.5-vl"}),
        (["table1", "2", "4c"], {"table1", "table2", "figure4c"}, {"calibrate__tiny-qwen2.5-vl"}),
        (["figure5"], {"figure5"}, {"evaluate_base__tiny-qwen2.5-vl__full__all"}),
    ],
)
def test_all_is_what_tables_asks_for(tables: list[Any], names: set[str], others: set[str]) -> None:
    """Training and evaluation follow from the tables; each job appears once."""
    params = validated(Params, {**scale_values("mini", FOLDER), "tables": tables})
    listed = jobs(params)
    asked = [job.name for job in shown("all", params)]
    assert len(asked) == len(set(asked))
    assert {job.name for job in listed if job.stage.name == "table"} & {*asked} == names
    assert "report" in asked
    assert ("previews__all" in asked) == any(name.startswith("evaluate") for name in asked)
    assert not others & {*asked}
    (report,) = (job for job in listed if job.name == "report")
    assert set(report.inputs) <= {job.stamp for job in listed if job.name in asked}
    assert set(report.parameters["targets"]) == names


@pytest.mark.parametrize(
    ("tables", "message"),
    [(["tabel3"], "tables.*'tabel3'.*did you mean table3"), ([9], "no table or figure has this")],
)
def test_an_unknown_table_is_refused(tables: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        validated(Params, {**scale_values("mini", FOLDER), "tables": tables})


def test_a_table_whose_rows_are_missing_is_refused_where_it_is_asked_for() -> None:
    params = validated(Params, {**scale_values("mini", FOLDER), "tables": [1, 3]})
    with pytest.raises(ConfigError, match=r"rows that params\.yaml lacks: objective moba"):
        jobs(params)


def test_a_plan_counts_what_is_missing_by_measured_time_or_limit() -> None:
    params = load_scale("mini", FOLDER)
    listed = {job.name: job for job in jobs(params)}
    made = plan("table1", params)
    assert len(made.jobs) == len(made.to_make) == 10
    assert {job.basis for job in made.jobs} == {"limit"}
    assert sum(job.hours for job in made.jobs) == 10 * 0.5
    for name in ("benchmarks", "prepare", "base__tiny-qwen2.5-vl"):
        finish(listed[name], 10.0)
    finish(listed["evaluate_base__tiny-qwen2.5-vl__full__all"], 360.0)
    made = plan("table1", params)
    by_name = {job.entry.job.name: job for job in made.jobs}
    assert len(made.to_make) == 6
    zipvl = by_name["evaluate_base__tiny-qwen2.5-vl__zipvl__all"]
    assert (zipvl.hours, zipvl.basis) == (0.1, "measured")  # as the rule's finished job took
    assert by_name["evaluate_base__tiny-qwen2.5-vl__full__all"].hours == 0
    assert sentences(made)[0] == "table1: 10 jobs, 4 results valid, 6 to run"
    assert sentences(made)[1].startswith("at most 2.6 job hours, 0 GPU-hours; 5 jobs count")


def test_a_plan_names_downloads_and_counts_gpus() -> None:
    made = plan("table1", load_scale("paper", FOLDER))
    assert any(name.startswith("Qwen/Qwen2-VL-7B-Instruct@") for name in made.downloads)
    assert "benchmark ChartQA" in made.downloads
    assert len(set(made.downloads)) == len(made.downloads)
    text = "\n".join(sentences(made))
    assert "datasets/lmms-eval/VideoMMMU and set HF_TOKEN; " in text
    assert "licence of Qwen/Qwen2.5-VL-3B-Instruct: Qwen Research License" in text
    assert "Video-R1-data@main names no commit: fetch_rows uses the newest" in text
    train = next(job for job in made.jobs if job.entry.job.stage.run == "train")
    assert (train.gpus, train.hours, train.basis) == (8, 168, "limit")
    gpu_hours = sum(job.gpus * job.hours for job in made.jobs)
    assert f"{gpu_hours:.3g} GPU-hours" in sentences(made)[1]


def test_the_command_prints_plan_and_json() -> None:
    def run(*words: str) -> str:
        result = CliRunner().invoke(app, ["plan", *words], catch_exceptions=False)
        assert result.exit_code == 0
        return result.output

    assert "table1: 10 jobs, 0 results valid, 10 to run" in run("table1")
    assert "snakemake --cores all table1, or dvc repro table1\n" in run("table1")
    content: dict[str, Any] = json.loads(run("figure4c", "--json"))
    assert [job["name"] for job in content["jobs"]][-2:] == [
        "profile__tiny-qwen2.5-vl",
        "figure4c",
    ]
    assert content["downloads"] == []
    path = Path("params.yaml")
    path.write_text(path.read_text().replace("tables: []", "tables: [1]"))
    assert "dvc repro figure4c once tables in params.yaml names it" in run("figure4c")
    assert "or dvc repro table1\n" in run("table1")

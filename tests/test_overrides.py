"""`sf run STAGE --set NAME=VALUE` and `sf run STAGE --help`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from ruamel.yaml import YAML
from typer.testing import CliRunner

from sf.cli import app
from sf.config import load_params
from sf.errors import ConfigError
from sf.jobs import STAGES, stage_module
from sf.overrides import parameters_of
from sf.scales import render_scale
from workflow.jobs import JobSpec, jobs
from workflow.one_job import asked_job
from workflow.parameter_help import described

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the parameters of `mini`, of which one objective is trained."""
    yaml = YAML()
    params = yaml.load(render_scale("mini", ROOT / "params"))
    del params["objectives"]["distil"]
    with (tmp_path / "params.yaml").open("w") as stream:
        yaml.dump(params, stream)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train_job() -> JobSpec:
    return next(job for job in jobs(load_params(Path("params.yaml"))) if job.stage.run == "train")


@pytest.mark.parametrize(
    ("word", "section", "name", "value"),
    [
        ("learning_rate=1e-4", "train", "learning_rate", 1e-4),
        ("train.learning_rate=0.5", "train", "learning_rate", 0.5),
        ("collapse.entropy=0", "train", "collapse", {"entropy": 0.0}),
        ("collapse=null", "train", "collapse", None),
        ("lora={rank: 2, alpha: 4}", "train", "lora", {"rank": 2, "alpha": 4}),
        ("beta=0", "objective", "beta", 0.0),
        ("objective.retention_p={low: 0, high: 1}", "objective", "retention_p", None),
        ("max_completion_tokens=9", "answering", "max_completion_tokens", 9),
    ],
)
def test_a_word_changes_one_parameter_by_the_end_of_its_name(
    word: str, section: str, name: str, value: Any
) -> None:
    job = train_job()
    values, study = asked_job("train", [word])
    assert study == "own"
    expected = json.loads(json.dumps(job.parameters))
    if word.startswith("objective.retention_p"):
        value = {"low": 0.0, "high": 1.0}
    elif isinstance(value, dict):
        value = {**(expected[section][name] or {}), **value}
    expected[section][name] = value
    assert values.pop("output").startswith(f"results/own/{job.name}__")
    del expected["output"]
    assert values == expected


def test_each_change_has_a_folder_of_its_own_and_the_study_keeps_its_own() -> None:
    assert asked_job("train", []) == (train_job().parameters, "mini")
    assert asked_job("train", ["row=sparsity_forcing"]) == (train_job().parameters, "mini")
    folders = {asked_job("train", [f"beta={beta}"])[0]["output"] for beta in (0.2, 0.3, 0.2)}
    assert len(folders) == 2
    assert asked_job("train", ["beta=0.2", "output=elsewhere"])[0]["output"] == "elsewhere"


def test_words_choose_among_the_jobs_of_a_stage() -> None:
    values, _ = asked_job("evaluate", ["method=full"])
    assert values["row"] == "full"
    values, study = asked_job("evaluate", ["row=zipvl", "method=fastv"])
    assert (values["row"], values["method"], study) == ("zipvl", "fastv", "own")
    values, _ = asked_job("calibrate", ["split=heldout", "row=base"])
    assert values["output"] == "results/mini/accuracy_curve/tiny-qwen2.5-vl/base"


@pytest.mark.parametrize(
    ("stage", "words", "parts"),
    [
        ("train", ["learning_rte=1"], ("learning_rte", "did you mean train.learning_rate?")),
        ("train", ["train.beta=1"], ("train.beta", "did you mean objective.beta?")),
        ("train", ["learning_rate=fast"], ("train.learning_rate = 'fast'", "number")),
        ("train", ["beta=-1"], ("objective.beta = -1", "greater than or equal to 0")),
        ("train", ["retention_p=[0.5, 7]"], ("objective.retention_p.1 = 7", "less than or eq")),
        ("train", ["retention_p=[0.5, 0.9, 1.0]"], ("objective", "group_size 8 must be a mult")),
        ("train", ["lora.rank=2"], ("train.lora.alpha", "is required")),
        ("train", ["seed=-1"], ("seed = -1", "greater than or equal to 0")),
        ("train", ["steps"], ("'steps'", "must be NAME=VALUE")),
        ("train", ["=3"], ("'=3'", "must be NAME=VALUE")),
        ("train", ["steps=["], ("'steps=['", "is not a YAML value")),
        ("base", ["max_pixels=3"], ("did you mean",)),
        ("profile", ["profile.fit=true"], ("profile.fit", "its name is now profile.find_largest")),
        ("profile", ["fit_gib=8"], ("fit_gib", "its name is now profile.memory_limit_gib")),
        ("calibrate", ["row=base", "split=heldout", "retention_p=0.5"], ("2 parameters", "write")),
        ("evaluate", [], ("matches 3 jobs", "--set row=full")),
        ("evaluate", ["method=fastv"], ("matches 3 jobs", "--set row=full")),
        ("trian", [], ("'trian'", "choose one of", "train")),
    ],
)
def test_a_wrong_word_is_one_clear_error(
    stage: str, words: list[str], parts: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        asked_job(stage, words)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_runs_what_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr("sf.jobs.run_stage", lambda *words, **_: calls.append(words) or "done")
    result = CliRunner().invoke(app, ["run", "train", "--set", "learning_rate=1e-4"])
    assert result.exit_code == 0, result.output
    stage, values, study, command = calls.pop()
    assert (stage, study, values["train"]["learning_rate"]) == ("train", "own", 1e-4)
    assert command == "sf run train --study own --set learning_rate=1e-4"
    assert f"train: done, in {values['output']}" in result.output

    Path("job.json").write_text(json.dumps(train_job().parameters))
    words = ["run", "train", "--config", "job.json", "--study", "mine"]
    CliRunner().invoke(app, words, catch_exceptions=False)
    expected = (dict(train_job().parameters), "mine")
    assert calls.pop()[1:3] == expected
    CliRunner().invoke(app, [*words, "--set", "steps=7"], catch_exceptions=False)
    _, values, _, command = calls.pop()
    assert values["train"]["steps"] == 7
    assert values["output"].startswith("results/own/job__")
    assert command == "sf run train --study mine --config job.json --set steps=7"


@pytest.mark.parametrize("stage", STAGES)
def test_help_shows_every_parameter_with_meaning_value_and_source(stage: str) -> None:
    rows, name = described(stage)
    by_name = {job.name: job.parameters for job in jobs(load_params(Path("params.yaml")))}
    assert bool(name) is (stage != "fetch"), "only a study with sources on a hub fetches"
    model = stage_module(stage).Parameters
    names = [parameter.name for parameter in parameters_of(model, by_name.get(name, {}))]
    assert [row.name for row in rows] == names
    for row in rows:
        assert len(row.meaning.partition(" (")[0]) > 3, row
        if "." in row.name and row.value is not None and row.name != "profile.memory_limit_gib":
            assert row.source.startswith(("published", "assumed", "ours")), row


def test_help_names_where_the_values_of_a_row_come_from() -> None:
    text = Path("params.yaml").read_text()
    changed = "  sparsity_forcing: {objective: sparsity_forcing, beta: 3.0} # ours: much larger"
    old = "  sparsity_forcing: {objective: sparsity_forcing} # published"
    assert old in text
    Path("params.yaml").write_text(text.replace(old, changed))
    rows = {row.name: row for row in described("train")[0]}
    assert (rows["objective.beta"].value, rows["objective.beta"].source) == (
        3.0, "ours: much larger"
    )  # fmt: skip
    assert rows["objective.group_size"].source == "published: 8 rollouts per question"
    assert rows["train.weight_decay"].source == "assumed"
    assert rows["vision.image_max_pixels"].source == "ours: 64 visual tokens"


def test_help_is_printed_with_and_without_a_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sf.cli.study.stdout", Console(soft_wrap=True, width=200))
    shown = CliRunner().invoke(app, ["run", "train", "--help"])
    assert shown.exit_code == 0, shown.output
    for words in ("train.learning_rate", "peak learning rate of AdamW", "0.0003", "--set"):
        assert words in shown.output
    assert "those of params.yaml, job train__tiny-qwen2.5-vl__sparsity_forcing__0" in shown.output
    Path("params.yaml").unlink()
    shown = CliRunner().invoke(app, ["run", "train", "--help"])
    assert "parameters of train; defaults" in shown.output
    shown = CliRunner().invoke(app, ["run", "--help"])
    assert "NAME=VALUE" in shown.output

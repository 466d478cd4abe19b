"""The table of benchmarks against lmms-eval's packaged YAMLs and the published figures."""

from __future__ import annotations

import csv
from importlib.resources import files
from pathlib import Path
from typing import Any

import lmms_eval
import pytest
from lmms_eval.utils import load_yaml_config

from sf.errors import ConfigError
from sf.evaluation.benchmarks import (
    BENCHMARKS,
    EXTRA,
    SUITES,
    Task,
    benchmark_named,
    benchmarks_of,
    suite,
)
from sf.evaluation.scoring import RULES

PARTS = [task for col in (*BENCHMARKS, *EXTRA) for task in col.tasks]
TASKS = Path(lmms_eval.__file__).parent / "tasks"


def _packaged(task: Task, home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("HF_HOME", str(home))
    return load_yaml_config(str(TASKS / task.config))


@pytest.mark.parametrize("task", PARTS, ids=lambda task: task.name)
def test_part_agrees_with_packaged_task(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = _packaged(task, tmp_path, monkeypatch)
    assert packaged["task"] == task.name
    assert packaged["dataset_path"] == task.repository
    assert packaged.get("dataset_name", "") == task.subset
    assert packaged.get("validation_split", packaged["test_split"]) == task.split
    assert (packaged.get("dataset_kwargs") or {}).get("cache_dir", "") == task.media
    assert set(task.metrics) <= {metric["metric"] for metric in packaged["metric_list"]}
    own = (packaged.get("generation_kwargs") or {}).get("max_new_tokens")
    assert own in (None, task.max_new_tokens)
    assert packaged.get("process_docs") is None


def test_fourteen_columns_of_thirteen_benchmarks() -> None:
    assert len(BENCHMARKS) == 14
    assert len({col.name.removesuffix("_w_subtitle") for col in BENCHMARKS}) == 13
    assert [len(SUITES[name]) for name in ("image", "video", "all")] == [7, 7, 14]
    assert len({task.name for task in PARTS}) == len(PARTS) == len(RULES)


def test_suite_finds_groups_and_single_columns() -> None:
    assert suite("image")[0] is benchmark_named("mme")
    assert suite("egoschema") == (benchmark_named("egoschema"),)
    assert suite("robustness") == (benchmark_named("pope"),)
    assert [c.name for c in benchmarks_of(["pope", "chartqa", "image"])][-2:] == [
        "mmmu_pro",
        "pope",
    ]


@pytest.mark.parametrize(("wrong", "offered"), [("mmstr", "mmstar"), ("vidoemme", "videomme")])
def test_unknown_suite_offers_near_names(wrong: str, offered: str) -> None:
    with pytest.raises(ConfigError, match=f"did you mean .*{offered}"):
        suite(wrong)
    with pytest.raises(ConfigError, match=offered):
        benchmark_named(wrong)


def test_columns_are_those_of_the_published_tables() -> None:
    with (files("sf.report") / "published.csv").open() as stream:
        metrics = {line["metric"] for line in csv.DictReader(stream) if "table" in line["table"]}
    assert {col.name for col in BENCHMARKS} <= metrics

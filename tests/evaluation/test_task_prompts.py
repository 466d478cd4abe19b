"""Snapshots of lmms-eval's prompts and parsers, so that an upgrade's changes show here first.

`SF_WRITE_SNAPSHOTS=1 pytest tests/evaluation/test_task_prompts.py` writes them again from the same
rows.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import pytest

from sf.evaluation.benchmarks import BENCHMARKS, EXTRA
from sf.evaluation.scoring import sample_score
from sf.evaluation.tasks import benchmark_home, build_task, documents

SNAPSHOTS = Path(__file__).parent / "snapshots"
PARTS = [task for col in (*BENCHMARKS, *EXTRA) for task in col.tasks]


def _forms(reply: str) -> list[str]:
    """Forms in which models give the same reply, and two without an answer."""
    return [
        reply,
        f"{reply}.",
        f"({reply})",
        f"{reply}. some words",
        f"The answer is {reply}.",
        reply.lower(),
        f" {reply}\n",
        f"I think it is {reply}",
        "",
        "nothing of the kind",
    ]


def _read(name: str, content: dict[str, Any] | None = None) -> Any:
    """A snapshot, written first if requested."""
    path = SNAPSHOTS / name
    if content is not None and os.environ.get("SF_WRITE_SNAPSHOTS"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tasks(home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    with benchmark_home(home, tmp_path_factory.mktemp("arrow")):
        return {task.name: build_task(task, home) for task in PARTS}


def test_prompts(tasks: dict[str, Any]) -> None:
    """Prompts of frozen rows (`rows.json`, without pictures), and the generation options."""
    prompts = {}
    for name, row in _read("rows.json").items():
        options = dict(tasks[name].config.generation_kwargs)
        prompts[name] = {"prompt": tasks[name].doc_to_text(row["columns"]), "options": options}
    assert set(prompts) == set(tasks)
    assert prompts == _read("prompts.json", prompts)


def test_parsers(tasks: dict[str, Any]) -> None:
    """The score of each form of the right reply to a frozen row."""
    scores_by_task = {}
    for name, row in _read("rows.json").items():
        scores = {}
        for form in _forms(row["reply"]):
            random.seed(0)  # some parsers guess
            metrics = tasks[name].process_results(dict(row["columns"]), [form])
            scores[form] = sample_score(tasks[name], row["columns"], metrics).value
        scores_by_task[name] = scores
    assert scores_by_task == _read("parsers.json", scores_by_task)


def test_media_come_before_the_text(tasks: dict[str, Any]) -> None:
    for task in PARTS:
        _, turns = next(documents(tasks[task.name]))
        assert [turn["role"] for turn in turns] == ["user"]
        kinds = [item["type"] for item in turns[0]["content"]]
        assert kinds == ["video" if task.media else "image", "text"]


def test_videos_are_named_by_absolute_paths_in_the_home(tasks: dict[str, Any], home: Path) -> None:
    for task in PARTS:
        _, turns = next(documents(tasks[task.name]))
        media = turns[0]["content"][0]
        if task.media:
            assert Path(media["url"]).is_relative_to(home / task.media)
        else:
            assert media["url"].mode == "RGB"


def test_environment_is_as_before(home: Path, tmp_path: Path) -> None:
    before = {name: os.environ.get(name) for name in ("HF_HOME", "LMMS_EVAL_DATASETS_CACHE")}
    inside = {}

    def fail() -> None:
        with benchmark_home(home, tmp_path):
            inside.update(os.environ)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert inside["HF_HOME"] == str(home)
    assert {name: os.environ.get(name) for name in before} == before


def test_nothing_is_written_into_the_home(home: Path, tmp_path: Path) -> None:
    before = sorted(home.rglob("*"))
    with benchmark_home(home, tmp_path):
        for task in PARTS:
            list(documents(build_task(task, home)))
    assert sorted(home.rglob("*")) == before

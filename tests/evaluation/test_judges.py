"""What a judge would change: no benchmark calls one by default, then only those that say so."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from scripted import Scripted

from sf.evaluation import run
from sf.evaluation.benchmarks import BENCHMARKS, EXTRA, Benchmark

ALL = (*BENCHMARKS, *EXTRA)
DOCS = Path(__file__).parent.parent.parent / "docs" / "evaluation.md"


@pytest.mark.parametrize("judge", [False, True])
def test_only_the_columns_that_say_so_ask_a_judge(
    stand_ins: tuple[Path, dict[str, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    judge: bool,
) -> None:
    """Replies that no parser accepts, with a key for a judge that cannot be reached."""
    home, replies = stand_ins
    asked: set[str] = set()
    current: list[Benchmark] = []

    def refuse(*_: Any, **__: Any) -> None:
        asked.add(current[-1].name)
        raise requests.ConnectionError

    monkeypatch.setenv("OPENAI_API_KEY", "key")
    monkeypatch.setattr(requests, "post", refuse)
    monkeypatch.setattr(requests.Session, "send", refuse)
    monkeypatch.setattr(httpx.Client, "send", refuse)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(run, "build_task", partial(run.build_task, judge=judge))
    lm = Scripted({task: ["?!"] * len(texts) for task, texts in replies.items()})
    for benchmark in ALL:
        current.append(benchmark)
        run.evaluate_benchmarks(lm, [benchmark], home, tmp_path)  # type: ignore[arg-type]
    assert asked == ({benchmark.name for benchmark in ALL if benchmark.judge} if judge else set())


def test_the_documentation_states_each_column_as_it_is() -> None:
    lines = DOCS.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    start = next(at for at, row in enumerate(rows) if row[0] == "benchmark")
    for benchmark, row in zip(ALL, rows[start + 2 :], strict=False):
        title, tasks, metrics, factor, tokens, judge = row
        assert title.startswith(benchmark.title)
        assert tasks == ", ".join(task.name for task in benchmark.tasks)
        keys = dict.fromkeys(" + ".join(task.metrics) for task in benchmark.tasks)
        assert metrics.split(" (")[0] == ", ".join(keys)
        assert factor == f"{benchmark.factor:g}"
        assert tokens.split(" (")[0] == str(benchmark.tasks[0].max_new_tokens)
        assert judge == (benchmark.judge or "nothing")

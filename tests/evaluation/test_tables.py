"""Which samples each figure of an evaluation's tables describes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from sf.evaluation.aggregate import benchmark_draws
from sf.evaluation.benchmarks import benchmark_named
from sf.evaluation.intervals import bootstrap_mean, interval
from sf.evaluation.records import Record
from sf.evaluation.run import BenchmarkResult, Sample
from sf.evaluation.scoring import SampleScore
from sf.evaluation.tables import layers_table, scores_table, tasks_table, write_results


def ratio(at: int) -> float:
    return 0.2 + 0.01 * at


def result(name: str, values: dict[str, list[float]]) -> BenchmarkResult:
    """Samples whose costs grow with their number; the third reply of each task is unmatched."""
    samples = {
        task: [
            Sample(
                name, f"t{at}", SampleScore(value, matched=at != 2),
                Record(task, at, f"{task}{at}", "r", ratio(at), (ratio(at) - 0.1, ratio(at) + 0.1),
                       100 + at, 2 + at, 1000 * (at + 1), 0.5 + at, 4),
            )
            for at, value in enumerate(scores)
        ]
        for task, scores in values.items()
    }  # fmt: skip
    metrics = {task: {"m": sum(scores) / len(scores)} for task, scores in values.items()}
    return BenchmarkResult(benchmark_named(name), metrics, samples)


PRO = result("mmmu_pro", {"mmmu_pro_standard": [1, 0, 1], "mmmu_pro_vision": [0]})
CHART = result("chartqa", {"chartqa": [at / 39 for at in range(40)]})


@pytest.mark.parametrize("seed", [0, 3])
def test_a_line_of_scores_is_of_its_benchmarks_samples(seed: int) -> None:
    line, _ = scores_table([PRO, CHART], seed).to_dict("records")
    ratios = [ratio(at) for at in (0, 1, 2, 0)]
    assert line["benchmark"] == "mmmu_pro"
    assert line["score"] == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert np.isnan(line["low"])  # a task of one sample says nothing about its spread
    assert (line["scale"], line["kind"], line["samples"]) == (100, "image", 4)
    assert line["token_ratio"] == pytest.approx(np.mean(ratios))
    assert (line["prompt_tokens"], line["new_tokens"], line["kv_bytes"]) == (100.75, 2.75, 1750)
    assert line["unmatched"] == 1
    chart = scores_table([CHART], seed).iloc[0]
    bounds = bootstrap_mean([ratio(at) for at in range(40)], seed)
    assert (chart["token_ratio_low"], chart["token_ratio_high"]) == bounds
    draws = benchmark_draws(benchmark_named("chartqa"), CHART.scores, seed)
    assert (chart["low"], chart["high"]) == interval(draws)
    assert chart["score"] == pytest.approx(50)


def test_layers_and_tasks_stand_apart_by_benchmark() -> None:
    layers = layers_table([PRO, CHART])
    assert list(zip(layers["benchmark"], layers["layer"], strict=True)) == [
        ("mmmu_pro", 0), ("mmmu_pro", 1), ("chartqa", 0), ("chartqa", 1),
    ]  # fmt: skip
    assert layers["token_ratio"].tolist() == pytest.approx([0.1075, 0.3075, 0.295, 0.495])
    tasks = tasks_table([PRO, CHART])
    assert tasks["task"].tolist() == ["mmmu_pro_standard", "mmmu_pro_vision", "chartqa"]
    assert tasks["samples"].tolist() == [3, 1, 40]
    assert tasks["value"].tolist() == pytest.approx([2 / 3, 0, 0.5])


def test_files_say_what_answered_and_each_sample(tmp_path: Path) -> None:
    lm: Any = SimpleNamespace(
        method="zipvl", value=0.9, checkpoint="digest", media="training", batch_size=4,
        vision=SimpleNamespace(model_dump=lambda: {"video_fps": 2.0}),
        model=SimpleNamespace(dtype="torch.bfloat16"),
    )  # fmt: skip
    figures = write_results(tmp_path, [PRO, CHART], lm, seed=0, model="m", row="zipvl")
    assert figures["chartqa"] == pytest.approx(50)
    assert figures["chartqa_token_ratio"] == pytest.approx(0.395)
    seconds = [0.5, 1.5, 2.5, 0.5, *(0.5 + at for at in range(40))]
    assert figures["seconds_per_sample"] == pytest.approx(np.mean(seconds))
    facts = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    values = [facts[name] for name in ("method", "value", "checkpoint", "batch", "dtype", "model")]
    assert values == ["zipvl", 0.9, "digest", 4, "bfloat16", "m"]
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert [line["source"] for line in lines[:4]] == [
        *("mmmu_pro_standard0", "mmmu_pro_standard1", "mmmu_pro_standard2", "mmmu_pro_vision0"),
    ]
    assert [line["score"] for line in lines[:5]] == [1, 0, 1, 0, 0]
    assert [line["matched"] for line in lines[:4]] == [True, True, False, True]
    assert pd.read_csv(tmp_path / "tables/scores.csv")["benchmark"].tolist() == [
        "mmmu_pro",
        "chartqa",
    ]

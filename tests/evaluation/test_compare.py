"""Paired comparisons against the exact test, and their invariances."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

from sf.errors import DataError
from sf.evaluation.aggregate import benchmark_score, unit_values
from sf.evaluation.benchmarks import BENCHMARKS, Task, benchmark_named
from sf.evaluation.compare import Evaluation, holm, paired, paired_table
from sf.evaluation.scoring import RULES, SampleScore


def _scores(values: list[float]) -> dict[str, list[SampleScore]]:
    return {"chartqa": [SampleScore(value) for value in values]}


def _random(task: Task, rng: np.random.Generator) -> list[SampleScore]:
    groups = ("a", "b", "c") if RULES[task.name].groups != "one" else ("",)
    pairs = RULES[task.name].pairs
    return [
        SampleScore(float(rng.random() < 0.6), group, f"{group}{n // 2}" if pairs else "")
        for group in groups
        for n in range(10)
    ]


def test_sign_flips_agree_with_mcnemars_exact_test() -> None:
    """30 questions that both get right; 11 that only the second does, 3 that only the first."""
    first = [1.0] * 30 + [0.0] * 11 + [1.0] * 3
    second = [1.0] * 30 + [1.0] * 11 + [0.0] * 3
    comparison = paired(
        benchmark_named("chartqa"), _scores(first), _scores(second), seed=0, draws=20_000
    )
    assert comparison.difference == pytest.approx(100 * 8 / 44)
    assert comparison.p_value == pytest.approx(binomtest(3, 14).pvalue, abs=0.006)
    assert comparison.low < comparison.difference < comparison.high


def test_no_difference_is_impossible_by_chance() -> None:
    """The swap that was observed counts among the permutations: p is never 0."""
    first, second = _scores([0.0] * 40), _scores([1.0] * 40)
    assert paired(benchmark_named("chartqa"), first, second, seed=0, draws=99).p_value == 0.01


def test_swaps_and_draws_are_those_of_the_seed() -> None:
    rng = np.random.default_rng(3)
    sides = [_scores((rng.random(60) < 0.5).astype(float).tolist()) for _ in range(2)]
    first, again, other = (paired(benchmark_named("chartqa"), *sides, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first.p_value != other.p_value
    assert (first.low, first.high) != (other.low, other.high)


def test_pairing_narrows_the_interval() -> None:
    rng = np.random.default_rng(0)
    first = (rng.random(200) < 0.5).astype(float)
    second = first.copy()
    second[:6] = 1.0
    comparison = paired(
        benchmark_named("chartqa"), _scores(first.tolist()), _scores(second.tolist()), seed=0
    )
    assert comparison.high - comparison.low < 5  # unpaired: about 20


def test_a_system_does_not_differ_from_itself() -> None:
    scores = _scores([0.0, 1.0, 1.0])
    comparison = paired(benchmark_named("chartqa"), scores, scores, seed=0)
    assert (comparison.difference, comparison.low, comparison.high, comparison.p_value) == (
        0,
        0,
        0,
        1,
    )


def test_a_sample_that_one_side_leaves_out_stays_paired() -> None:
    """VideoMMMU leaves out an empty open answer: it counts as wrong, on its own question."""
    tasks = [task.name for task in benchmark_named("video_mmmu").tasks]
    right = {task: [SampleScore(1.0)] * 3 for task in tasks}
    for at in range(3):
        scores = [SampleScore(1.0), SampleScore(1.0), SampleScore(1.0)]
        scores[at] = SampleScore(0.0, counted=False)
        partly = dict.fromkeys(tasks, scores)
        forward = paired(benchmark_named("video_mmmu"), right, partly, seed=0)
        back = paired(benchmark_named("video_mmmu"), partly, right, seed=0)
        assert forward.p_value == back.p_value < 1
        assert forward.difference == back.difference == 0  # over those that count all are right
        changes = [
            unit_values(task, partly[task.name]) - unit_values(task, right[task.name])
            for task in benchmark_named("video_mmmu").tasks
        ]
        for change in changes:
            assert change.tolist() == pytest.approx([-1 / 3 if n == at else 0 for n in range(3)])


@pytest.mark.parametrize("name", [col.name for col in BENCHMARKS])
def test_units_add_up_to_the_figure(name: str) -> None:
    rng = np.random.default_rng(1)
    col = benchmark_named(name)
    scores = {task.name: _random(task, rng) for task in col.tasks}
    summed = [unit_values(task, scores[task.name]).sum() for task in col.tasks]
    assert col.factor * np.mean(summed) == pytest.approx(benchmark_score(col, scores))


def test_holm_adjusts_stepwise() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


def _write(folder: Path, values: list[float], source: str = "s") -> Path:
    folder.mkdir()
    lines = []
    for number, value in enumerate(values):
        score = asdict(SampleScore(value))
        line = {"benchmark": "chartqa", "task": "chartqa", "source": f"{source}{number}"}
        lines.append(json.dumps({**line, "score": score.pop("value"), **score}))
    (folder / "samples.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_table_compares_finished_results(tmp_path: Path) -> None:
    first = _write(tmp_path / "a", [0.0, 1.0, 0.0, 1.0])
    second = _write(tmp_path / "b", [1.0, 1.0, 1.0, 1.0])
    line = paired_table(Evaluation(first), Evaluation(second), seed=0).iloc[0]
    assert (line["first"], line["second"], line["difference"], line["samples"]) == (50, 100, 50, 4)
    assert line["p_holm"] == line["p_value"]


def test_scores_are_read_as_they_were_written(tmp_path: Path) -> None:
    scores = [SampleScore(0.5, "g", "u", counted=False), SampleScore(1.0, matched=False)]
    lines = []
    for number, score in enumerate(scores):
        fields = {"score" if name == "value" else name: v for name, v in asdict(score).items()}
        lines.append({"benchmark": "mlvu_dev", "task": "mlvu_dev", "source": f"{number}", **fields})
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    evaluation, benchmark = Evaluation(tmp_path), benchmark_named("mlvu_dev")
    assert evaluation.benchmarks() == [benchmark]
    assert evaluation.scores(benchmark) == {"mlvu_dev": scores}
    assert evaluation.asked(benchmark) == {"mlvu_dev": ["0", "1"]}
    assert evaluation.asked(benchmark_named("mme")) == {}


def test_a_second_comparison_of_an_evaluation_gives_the_same(tmp_path: Path) -> None:
    """It is read and resampled once; another seed, or another partner, changes nothing of it."""
    rng = np.random.default_rng(0)
    names = ("a", "b", "c")
    values = [(rng.random(50) < 0.5).astype(float).tolist() for _ in names]
    folders = [_write(tmp_path / name, v) for name, v in zip(names, values, strict=True)]
    first, second, third = (Evaluation(folder) for folder in folders)
    for seed in (0, 1, 0):
        paired_table(first, third, seed)
        expected = paired(benchmark_named("chartqa"), *map(_scores, values[:2]), seed=seed)
        line = paired_table(first, second, seed).iloc[0]
        named = {name: line[name] for name in ("difference", "low", "high", "p_value")}
        assert named == asdict(expected)


def test_other_questions_are_refused(tmp_path: Path) -> None:
    first = Evaluation(_write(tmp_path / "a", [0.0, 1.0]))
    other = Evaluation(_write(tmp_path / "b", [0.0, 1.0], source="t"))
    with pytest.raises(DataError, match="did not answer the same questions"):
        paired_table(first, other, seed=0)
    with pytest.raises(DataError, match=r"has no samples\.jsonl"):
        Evaluation(tmp_path)

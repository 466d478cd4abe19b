"""Scores come from lmms-eval, and the shares of the samples add up to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scripted import Scripted

from sf.errors import DataError, EvaluationFailed
from sf.evaluation.aggregate import benchmark_score
from sf.evaluation.benchmarks import BENCHMARKS, EXTRA, benchmark_named
from sf.evaluation.run import BenchmarkResult, evaluate_benchmarks
from sf.evaluation.scoring import RULES, Rule

ALL = (*BENCHMARKS, *EXTRA)
Replies = dict[str, list[str]]
Evaluated = Callable[[Replies], dict[str, BenchmarkResult]]


@pytest.fixture
def evaluated(home: Path, tmp_path: Path) -> Evaluated:
    def evaluate(replies: Replies) -> dict[str, BenchmarkResult]:
        benchmarks = [c for c in ALL if all(task.name in replies for task in c.tasks)]
        results = evaluate_benchmarks(Scripted(replies), benchmarks, home, tmp_path)  # type: ignore[arg-type]
        return {result.benchmark.name: result for result in results}

    return evaluate


def test_right_replies_reach_the_full_scale(
    stand_ins: tuple[Path, Replies], evaluated: Evaluated
) -> None:
    results = evaluated(stand_ins[1])
    scores = {name: benchmark_score(r.benchmark, r.scores) for name, r in results.items()}
    assert scores == pytest.approx({col.name: col.scale for col in ALL})
    assert results["pope"].metrics["pope"]["pope_f1_score"] == 1.0  # lmms-eval's further metrics
    assert results["mmstar"].metrics["mmstar"]["coarse perception"] == 1.0


def test_wrong_replies_score_nothing(stand_ins: tuple[Path, Replies], evaluated: Evaluated) -> None:
    flipped = {"Yes": "No", "No": "Yes", "yes": "no", "no": "yes"}
    wrong = {
        task: [flipped.get(reply, "zzz") for reply in replies]
        for task, replies in stand_ins[1].items()
    }
    guessing = {"mmmu_pro_standard", "egoschema_subset"}  # guess when nothing can be parsed
    wrong |= {task: ["A" if r != "A" else "B" for r in stand_ins[1][task]] for task in guessing}
    results = evaluated(wrong)
    assert {name: benchmark_score(r.benchmark, r.scores) for name, r in results.items()} == {
        col.name: 0.0 for col in ALL
    }
    matched = [s.score.matched for s in results["tempcompass"].samples["tempcompass_multi_choice"]]
    assert not any(matched)


def test_mixed_replies_agree_with_lmms_eval(
    stand_ins: tuple[Path, Replies], evaluated: Evaluated
) -> None:
    """`evaluate_benchmarks` compares; in the mix no category is all right or all wrong."""
    rng = np.random.default_rng(0)
    mixed = {
        task: [reply if rng.random() < 0.5 else "B" for reply in replies]
        for task, replies in stand_ins[1].items()
    }
    mixed["video_mmmu_adaptation"][0] = ""  # taken for an API error: leaves the denominator
    results = evaluated(mixed)
    scores = {name: benchmark_score(r.benchmark, r.scores) for name, r in results.items()}
    assert all(0 <= scores[col.name] <= col.scale for col in ALL)
    assert (
        len({round(score / benchmark_named(name).scale, 3) for name, score in scores.items()}) > 3
    )
    adaptation = results["video_mmmu"].scores["video_mmmu_adaptation"]
    assert [score.counted for score in adaptation] == [False, True, True, True]


def test_an_aggregate_that_samples_do_not_form_is_refused(
    stand_ins: tuple[Path, Replies], evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(RULES, "mmstar", Rule(RULES["mmstar"].read, factor=2.0, groups="mean"))  # type: ignore[arg-type]
    with pytest.raises(EvaluationFailed) as caught:
        evaluated({task: stand_ins[1][task] for task in ("mmstar", "chartqa")})
    (failure,) = caught.value.exceptions
    assert isinstance(failure, DataError)
    assert "lmms-eval's aggregate is 1.0, the samples' scores give 2.0" in str(failure)

"""A benchmark's score from its samples' scores, and its bootstrap interval.

The percentile bootstrap resamples units: samples about one picture or video are drawn together, and
if a benchmark averages over categories, units are drawn within each. If every sample is correct
(or wrong), the interval has zero width, which says nothing about unseen samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from sf.evaluation.benchmarks import Benchmark, Task
from sf.evaluation.intervals import DRAWS
from sf.evaluation.scoring import RULES, Rule, SampleScore

__all__ = [
    "Group",
    "benchmark_draws",
    "benchmark_score",
    "task_score",
    "unit_values",
]

_CHUNK = 1_000_000  # indices drawn at a time: bounds the memory of large benchmarks


@dataclass(frozen=True)
class Group:
    """One category's units.

    Attributes:
        sums: float64 (units,), sum of a unit's sample scores.
        counts: float64 (units,), samples in it.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.float64]

    def score(self) -> float:
        """Mean sample score of the category."""
        return float(self.sums.sum() / self.counts.sum())

    def draws(self, rng: np.random.Generator, draws: int) -> NDArray[np.float64]:
        """Scores (draws,) of resampled units; NaN for a single unit, whose spread is unknown."""
        units = len(self.sums)
        if units < 2:
            return np.full(draws, np.nan)
        scores = np.empty(draws)
        step = max(1, _CHUNK // units)
        for start in range(0, draws, step):
            index = rng.integers(0, units, size=(min(step, draws - start), units))
            sums, counts = self.sums[index].sum(axis=1), self.counts[index].sum(axis=1)
            scores[start : start + step] = sums / counts
        return scores


def _groups(rule: Rule, scores: Sequence[SampleScore]) -> dict[str, Group]:
    members: dict[str, dict[str, list[float]]] = {}
    for number, score in enumerate(scores):
        if score.counted:
            units = members.setdefault(score.group, {})
            units.setdefault(score.unit or f"#{number}", []).append(score.value)
    return {
        name: Group(
            np.array([_pair(values) if rule.pairs else sum(values) for values in units.values()]),
            np.array([1 if rule.pairs else len(values) for values in units.values()], np.float64),
        )
        for name, units in members.items()
    }


def _pair(values: Sequence[float]) -> float:
    """MME: the share of right answers about one picture, and 1 more when both are right."""
    return sum(values) / len(values) + float(all(value == 1 for value in values))


def _combined(rule: Rule, scores: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The task's score from its categories' scores (groups, draws)."""
    if not scores:
        return np.zeros(1)
    total = rule.factor * np.sum(scores, axis=0)
    return total / (rule.num_groups or len(scores)) if rule.groups == "mean" else np.asarray(total)


def task_score(task: Task, scores: Sequence[SampleScore]) -> float:
    """A task's score on lmms-eval's scale, which must equal lmms-eval's aggregate.

    Args:
        task: the task.
        scores: of all its samples.
    """
    rule = RULES[task.name]
    by_group = [np.array([group.score()]) for group in _groups(rule, scores).values()]
    score = float(_combined(rule, by_group)[0])
    return score * len(scores) / task.total if task.total else score


def benchmark_score(benchmark: Benchmark, scores: Mapping[str, Sequence[SampleScore]]) -> float:
    """The benchmark's score on the paper's scale.

    OCRBench's aggregate always divides by 1000; this score divides by the questions asked.

    Args:
        benchmark: the benchmark.
        scores: for each of its tasks, all samples' scores.
    """
    figures = []
    for task in benchmark.tasks:
        score = task_score(task, scores[task.name])
        figures.append(score * task.total / len(scores[task.name]) if task.total else score)
    return benchmark.factor * sum(figures) / len(figures)


def benchmark_draws(
    benchmark: Benchmark,
    scores: Mapping[str, Sequence[SampleScore]],
    seed: int,
    draws: int = DRAWS,
) -> NDArray[np.float64]:
    """Bootstrap replicates (draws,) of the benchmark's figure; see the module's text.

    Random numbers depend on the seed and the task alone, so the replicates of two methods on the
    same samples are paired.
    """
    parts = []
    for task in benchmark.tasks:
        rule = RULES[task.name]
        rng = np.random.default_rng([seed, crc32(task.name.encode())])
        by_group = [g.draws(rng, draws) for g in _groups(rule, scores[task.name]).values()]
        parts.append(np.broadcast_to(_combined(rule, by_group), (draws,)))
    return np.asarray(benchmark.factor * np.mean(parts, axis=0))


def unit_values(task: Task, scores: Sequence[SampleScore]) -> NDArray[np.float64]:
    """Each unit's part of its task's share of a benchmark's score, before `Benchmark.factor`.

    Samples that the benchmark leaves out of its denominator count as wrong, so that two systems'
    units are the same.

    Args:
        task: the task.
        scores: of all its samples.

    Returns:
        (units,), in the order in which categories and units first appear; the sum is the score.
    """
    rule = RULES[task.name]
    all_counted = [s if s.counted else replace(s, counted=True) for s in scores]
    groups = _groups(rule, all_counted)
    share = 1 / (rule.num_groups or len(groups)) if rule.groups == "mean" else 1.0
    parts = [group.sums / group.counts.sum() for group in groups.values()]
    return rule.factor * share * np.concatenate(parts)

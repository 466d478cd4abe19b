"""Paired comparison of two evaluations of the same questions: difference, interval, p-value.

Pairing removes the difficulty of a question that both rows share: samples are resampled and swapped
for both at once. Units and categories are those of `sf.evaluation.aggregate`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sf.errors import DataError
from sf.evaluation.aggregate import benchmark_draws, benchmark_score, unit_values
from sf.evaluation.benchmarks import BENCHMARKS, EXTRA, Benchmark
from sf.evaluation.intervals import DRAWS, interval
from sf.evaluation.scoring import SampleScore

__all__ = ["Evaluation", "Paired", "holm", "paired", "paired_table"]

_CHUNK = 1_000_000  # signs drawn at a time

Scores = Mapping[str, Sequence[SampleScore]]


@dataclass(frozen=True)
class Paired:
    """Second minus first, on the paper's scale.

    Attributes:
        difference: of the two scores.
        low, high: paired bootstrap 95 % interval.
        p_value: two-sided, of a sign-flip permutation test over units: how often a difference at
            least as large appears when each unit's two results are swapped at random.
    """

    difference: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class _Side:
    """What a comparison needs of one row's scores.

    Attributes:
        score: of the benchmark.
        draws: (draws,), its bootstrap replicates.
        units: (units,), each unit's part of the score. Open answers that VideoMMMU excludes from
            its denominator count as wrong here.
    """

    score: float
    draws: NDArray[np.float64]
    units: NDArray[np.float64]


def _side(benchmark: Benchmark, scores: Scores, seed: int, draws: int = DRAWS) -> _Side:
    return _Side(
        benchmark_score(benchmark, scores),
        benchmark_draws(benchmark, scores, seed, draws),
        np.concatenate([unit_values(task, scores[task.name]) for task in benchmark.tasks]),
    )


def paired(
    benchmark: Benchmark, first: Scores, second: Scores, seed: int, draws: int = DRAWS
) -> Paired:
    """Compare two evaluations of one benchmark.

    Args:
        benchmark: the benchmark.
        first: for each of its tasks, all samples' scores under the first row.
        second: the same samples under the second row.
        seed: of resampling and swapping.
        draws: bootstrap replicates, and permutations.
    """
    first_side, second_side = (_side(benchmark, side, seed, draws) for side in (first, second))
    return _paired(benchmark, first_side, second_side, seed)


def _paired(benchmark: Benchmark, first: _Side, second: _Side, seed: int) -> Paired:
    low, high = interval(second.draws - first.draws)
    effects = (second.units - first.units) * benchmark.factor / len(benchmark.tasks)
    rng = np.random.default_rng([seed, crc32(benchmark.name.encode())])
    draws, step = len(first.draws), max(1, _CHUNK // len(effects))
    swapped = np.empty(draws)
    for at in range(0, draws, step):
        kept = rng.integers(0, 2, (min(step, draws - at), len(effects))).astype(np.float64)
        swapped[at : at + step] = 2 * (kept @ effects) - effects.sum()
    observed = abs(effects.sum())
    extreme = int((np.abs(swapped) >= observed - 1e-9 * max(1.0, observed)).sum())
    return Paired(
        difference=second.score - first.score,
        low=low,
        high=high,
        p_value=(1 + extreme) / (1 + draws),
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment for several tests at once, in the given order."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = running
    return [float(value) for value in adjusted]


class Evaluation:
    """A finished evaluation, read and resampled once for any number of comparisons.

    Args:
        folder: result of the `evaluate` stage.

    Raises:
        DataError: there is no samples.jsonl.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._asked: dict[str, dict[str, list[str]]] = {}
        self._scores: dict[str, dict[str, list[SampleScore]]] = {}
        self._sides: dict[tuple[str, int], _Side] = {}
        path = folder / "samples.jsonl"
        if not path.is_file():
            raise DataError("evaluation", str(folder), "has no samples.jsonl", "run the evaluation")
        with path.open(encoding="utf-8") as stream:
            for line in map(json.loads, stream):
                score = SampleScore(
                    value=line["score"],
                    group=line["group"],
                    unit=line["unit"],
                    counted=line["counted"],
                    matched=line["matched"],
                )
                benchmark, task = line["benchmark"], line["task"]
                asked = self._asked.setdefault(benchmark, {})
                asked.setdefault(task, []).append(line["source"])
                self._scores.setdefault(benchmark, {}).setdefault(task, []).append(score)

    def benchmarks(self) -> list[Benchmark]:
        """Its benchmarks, in the tables' order."""
        return [one for one in (*BENCHMARKS, *EXTRA) if one.name in self._scores]

    def asked(self, benchmark: Benchmark) -> dict[str, list[str]]:
        """The digests of a benchmark's questions by task, in order; {} if it was not run."""
        return self._asked.get(benchmark.name, {})

    def scores(self, benchmark: Benchmark) -> Scores:
        """The scores of a benchmark's questions by task, in order; {} if it was not run."""
        return self._scores.get(benchmark.name, {})

    def side(self, benchmark: Benchmark, seed: int) -> _Side:
        """Its part of a comparison with that seed."""
        key = benchmark.name, seed
        if key not in self._sides:
            self._sides[key] = _side(benchmark, self.scores(benchmark), seed)
        return self._sides[key]


def paired_table(first: Evaluation, second: Evaluation, seed: int) -> pd.DataFrame:
    """Compare two finished evaluations, benchmark by benchmark.

    Args:
        first: for example of method full.
        second: of another row.
        seed: of resampling and swapping.

    Returns:
        Columns benchmark, first, second, difference, low, high, p_value, p_holm (adjusted for the
        number of benchmarks), samples.

    Raises:
        DataError: the two did not answer the same questions.
    """
    lines = []
    for benchmark in first.benchmarks():
        asked = first.asked(benchmark)
        if asked != second.asked(benchmark):
            rule = f"{first.folder} and {second.folder} did not answer the same questions"
            raise DataError(benchmark.name, None, rule, "evaluate both on the same benchmarks")
        sides = first.side(benchmark, seed), second.side(benchmark, seed)
        comparison = _paired(benchmark, *sides, seed)
        lines.append(
            {
                "benchmark": benchmark.name,
                "first": sides[0].score,
                "second": sides[1].score,
                "difference": comparison.difference,
                "low": comparison.low,
                "high": comparison.high,
                "p_value": comparison.p_value,
                "samples": sum(len(questions) for questions in asked.values()),
            }
        )
    table = pd.DataFrame(lines)
    table.insert(7, "p_holm", holm(table["p_value"].tolist()))
    return table

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

__all__ = ["Paired", "holm", "paired", "paired_table"]

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


def _effects(benchmark: Benchmark, first: Scores, second: Scores) -> NDArray[np.float64]:
    """Each unit's contribution to the difference of the benchmark's scores, (units,).

    Open answers that VideoMMMU excludes from its denominator count as wrong here.
    """
    effects = []
    for task in benchmark.tasks:
        a, b = (unit_values(task, side[task.name]) for side in (first, second))
        effects.append((b - a) * benchmark.factor / len(benchmark.tasks))
    return np.concatenate(effects)


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
    a, b = (benchmark_draws(benchmark, side, seed, draws) for side in (first, second))
    low, high = interval(b - a)
    effects = _effects(benchmark, first, second)
    rng = np.random.default_rng([seed, crc32(benchmark.name.encode())])
    swapped = np.array(
        [(effects * rng.choice((-1.0, 1.0), len(effects))).sum() for _ in range(draws)]
    )
    observed = abs(effects.sum())
    extreme = int((np.abs(swapped) >= observed - 1e-9 * max(1.0, observed)).sum())
    return Paired(
        difference=benchmark_score(benchmark, second) - benchmark_score(benchmark, first),
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


def _read(folder: Path) -> dict[str, dict[str, list[tuple[str, SampleScore]]]]:
    """Benchmark -> task -> (question's digest, score) of a finished evaluation, in order.

    Raises:
        DataError: there is no samples.jsonl.
    """
    path = folder / "samples.jsonl"
    if not path.is_file():
        raise DataError("evaluation", str(folder), "has no samples.jsonl", "run the evaluation")
    scores: dict[str, dict[str, list[tuple[str, SampleScore]]]] = {}
    with path.open(encoding="utf-8") as stream:
        for line in map(json.loads, stream):
            score = SampleScore(
                value=line["score"],
                group=line["group"],
                unit=line["unit"],
                counted=line["counted"],
                matched=line["matched"],
            )
            tasks = scores.setdefault(line["benchmark"], {})
            tasks.setdefault(line["task"], []).append((line["source"], score))
    return scores


def paired_table(first: Path, second: Path, seed: int) -> pd.DataFrame:
    """Compare two finished evaluations, benchmark by benchmark.

    Args:
        first: result of the `evaluate` stage, for example of method full.
        second: the same of another row.
        seed: of resampling and swapping.

    Returns:
        Columns benchmark, first, second, difference, low, high, p_value, p_holm (adjusted for the
        number of benchmarks), samples.

    Raises:
        DataError: a result is missing, or the two did not answer the same questions.
    """
    sides = _read(first), _read(second)
    lines = []
    for benchmark in (c for c in (*BENCHMARKS, *EXTRA) if c.name in sides[0]):
        tasks = [side.get(benchmark.name, {}) for side in sides]
        asked = [{task: [q for q, _ in samples] for task, samples in t.items()} for t in tasks]
        if asked[0] != asked[1]:
            rule = f"{first} and {second} did not answer the same questions"
            raise DataError(benchmark.name, None, rule, "evaluate both on the same benchmarks")
        scores = [{task: [s for _, s in samples] for task, samples in t.items()} for t in tasks]
        comparison = paired(benchmark, scores[0], scores[1], seed)
        lines.append(
            {
                "benchmark": benchmark.name,
                "first": benchmark_score(benchmark, scores[0]),
                "second": benchmark_score(benchmark, scores[1]),
                "difference": comparison.difference,
                "low": comparison.low,
                "high": comparison.high,
                "p_value": comparison.p_value,
                "samples": sum(len(samples) for samples in asked[0].values()),
            }
        )
    table = pd.DataFrame(lines)
    table.insert(7, "p_holm", holm(table["p_value"].tolist()))
    return table

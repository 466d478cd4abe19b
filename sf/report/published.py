"""The published values (arXiv 2504.18579, v1 and final), from `published.csv`.

Values missing from the file are not published in our sources; tables show "n/p", never a guess.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from sf.evaluation.benchmarks import BENCHMARKS, Benchmark

__all__ = [
    "NOT_PUBLISHED",
    "VERSIONS",
    "at_200k",
    "average",
    "figure",
    "figure_of",
    "latest",
    "models_of",
    "models_with",
]

NOT_PUBLISHED = "n/p"
TABLES = {"image": "table1_image", "video": "table2_video"}
VERSIONS = ("final", "v1")  # newest first


@cache
def _figures() -> dict[tuple[str, str, str, str, str], float]:
    """{(version, table, model, method, metric): value}"""
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        rows = [tuple(row) for row in csv.reader(file)][1:]
    return {(row[0], row[1], row[2], row[3], row[4]): float(row[5]) for row in rows}


def figure(kind: str, model: str, row: str, metric: str, version: str) -> float | None:
    """A published value of table 1 ("image") or 2 ("video"), in the paper's scale.

    Args:
        kind: "image" or "video".
        model: as spelt in the file, e.g. "qwen2.5-vl-7b".
        row: full, zipvl, sparsity_forcing, ...
        metric: a benchmark's name, "token_ratio_percent", "image_average" or "video_average".
        version: one of `VERSIONS`.
    """
    return _figures().get((version, TABLES[kind], model, row, metric))


def latest(kind: str, model: str, row: str, metric: str) -> tuple[float | None, str]:
    """The value of the final version, else of the first one, and the version; else (None, "")."""
    for version in VERSIONS:
        value = figure(kind, model, row, metric, version)
        if value is not None:
            return value, version
    return None, ""


def figure_of(table: str, model: str, row: str, metric: str) -> float | None:
    """A value of a table of the file, from the newest version that has it.

    Args:
        table: its name in the file, e.g. "table3_baselines".
        model, row, metric: see `figure`.
    """
    values = (_figures().get((version, table, model, row, metric)) for version in VERSIONS)
    return next((value for value in values if value is not None), None)


def models_of(table: str) -> list[str]:
    """The models of a table of the file, in file order."""
    return list(dict.fromkeys(key[2] for key in _figures() if key[1] == table))


def at_200k(metric: str) -> tuple[float, str]:
    """A ratio of figure 4, full over sparse at 200k tokens, and its model.

    Args:
        metric: "decode_speedup" or "memory_ratio".
    """
    name = f"{metric}_at_200k"
    (ratio,) = [(v, key[2]) for key, v in _figures().items() if key[1::3] == ("figure4", name)]
    return ratio


def models_with(kind: str, row: str) -> list[str]:
    """Models for which table 1 or 2 has at least one score of a row, in file order."""
    names = {benchmark.name for benchmark in BENCHMARKS} | {f"{kind}_average"}
    models = [
        model
        for _, table, model, method, metric in _figures()
        if table == TABLES[kind] and method == row and metric in names
    ]
    return list(dict.fromkeys(models))


def average(scores: Mapping[str, float], benchmarks: Sequence[Benchmark]) -> float | None:
    """The mean of some benchmarks in percent of their scales; None if any is missing.

    MME is scaled by 2800 and OCRBench by 1000, which reproduces the published image averages (73.8,
    69.9, 72.9, 73.6).

    Args:
        scores: by benchmark name, in the paper's scale.
        benchmarks: of a table, or of a part of it.
    """
    if any(benchmark.name not in scores for benchmark in benchmarks):
        return None
    shares = [100.0 * scores[benchmark.name] / benchmark.scale for benchmark in benchmarks]
    return sum(shares) / len(shares)

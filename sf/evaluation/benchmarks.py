"""The benchmarks of the paper's tables 1 and 2: thirteen, of which VideoMME counts twice.

Each is one figure in a table, the mean of one or several lmms-eval tasks with their own prompts,
parser and aggregation; `Benchmark.factor` brings it to the scale that the paper prints. VideoMME is
evaluated without and with subtitles.

Facts about the tasks: lmms-eval 0.7.3 (`lmms_eval/tasks/`). Some of its parsers changed after the
paper's time, so absolute scores need not agree with the published ones to the last decimal; their
benchmarks say so (`parser_changed`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from sf.errors import ConfigError
from sf.evaluation.benchmark import Benchmark, Task
from sf.evaluation.image_benchmarks import EXTRA, IMAGE
from sf.evaluation.video_benchmarks import VIDEO

__all__ = [
    "AVERAGES",
    "BENCHMARKS",
    "EXTRA",
    "FAMILIES",
    "RIGHT",
    "SUITES",
    "Benchmark",
    "Task",
    "benchmark_named",
    "benchmarks_of",
    "parts_of",
    "suite",
]


BENCHMARKS: tuple[Benchmark, ...] = (*IMAGE, *VIDEO)

SUITES: Mapping[str, tuple[Benchmark, ...]] = {
    "image": IMAGE,
    "video": VIDEO,
    "all": BENCHMARKS,
    "robustness": EXTRA,
}

FAMILIES: Mapping[str, tuple[Benchmark, ...]] = {
    "text-heavy images": tuple(one for one in IMAGE if one.text_heavy),
    "other images": tuple(one for one in IMAGE if not one.text_heavy),
    "videos": VIDEO,
}
"""The benchmarks of the tables by what their questions are about."""

_PARTS: Mapping[str, str] = {
    "image_text_average": "text-heavy images",
    "image_other_average": "other images",
}
"""Averages over a part of table 1, which the paper does not have, and the family of each."""

AVERAGES: Mapping[str, tuple[Benchmark, ...]] = {
    "image_average": IMAGE,
    **{name: FAMILIES[family] for name, family in _PARTS.items()},
    "video_average": VIDEO,
}
"""The benchmarks of each average, by its name in results, published values and MLflow."""

RIGHT = 0.5
"""A sample's score (0 to 1) from which its reply counts as correct."""


def parts_of(kind: str) -> dict[str, str]:
    """The averages over a part of a table, which the paper does not have: name to column title.

    Args:
        kind: of the benchmarks, "image" or "video"; there is no part of both.
    """
    return {
        name: f"{family} average (ours)"
        for name, family in _PARTS.items()
        if kind and name.startswith(kind)
    }


def benchmark_named(name: str) -> Benchmark:
    """The benchmark of that name.

    Raises:
        ConfigError: there is none; the message offers the nearest names.
    """
    for candidate in (*BENCHMARKS, *EXTRA):
        if candidate.name == name:
            return candidate
    raise _unknown(name, [c.name for c in (*BENCHMARKS, *EXTRA)])


def suite(name: str) -> tuple[Benchmark, ...]:
    """A group's benchmarks, or the one benchmark of that name.

    Raises:
        ConfigError: neither a group nor a benchmark; the message offers the nearest names.
    """
    if name in SUITES:
        return SUITES[name]
    named = tuple(c for c in (*BENCHMARKS, *EXTRA) if c.name == name)
    if not named:
        raise _unknown(name, [*SUITES, *(c.name for c in (*BENCHMARKS, *EXTRA))])
    return named


def benchmarks_of(suites: Sequence[str]) -> list[Benchmark]:
    """The benchmarks of several suites, each once, in the tables' order.

    Raises:
        ConfigError: as `suite`.
    """
    names = {benchmark.name for name in suites for benchmark in suite(name)}
    return [benchmark for benchmark in (*BENCHMARKS, *EXTRA) if benchmark.name in names]


def _unknown(name: str, known: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return ConfigError("suite", name, "no benchmark and no group has this name", hint)

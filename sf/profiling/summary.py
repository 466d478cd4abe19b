"""From repeats to a table: medians, intervals, speed-ups with a verdict, break-even length.

The interval of a median consists of order statistics, so it makes no assumption about the
distribution of times. With n repeats, the widest such interval, [min, max], covers the median with
probability 1 - 2^(1 - n): 95 % needs six repeats. The actual coverage is given with every interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from sf.profiling.timing import Run

__all__ = [
    "LINE",
    "MEASURED",
    "NOTES",
    "NO_DIFFERENCE",
    "SPEEDUP",
    "Median",
    "break_even",
    "median",
    "speedups",
    "three_digits",
    "tidy",
]

LINE = (  # columns of the tidy table
    *("model", "length", "batch", "side", "token_ratio", "metric", "unit"),
    *("value", "low", "high", "coverage", "repeats", "status"),
)
SPEEDUP = (
    *("model", "length", "batch", "token_ratio", "metric"),
    *("ratio", "low", "high", "coverage", "verdict"),
)
NOTES = ("weights", "ratio_set_by", "dense", "note")  # added to each line of both tables
FULL = "full"
SPARSE = "sparse"
TIMES = ("prefill_ms", "first_token_ms", "decode_ms", "step_ms")
PROCESSOR = "processor_ms"  # before prefill, the same for both sides
ALWAYS = ("prefill_ms", "decode_ms", "step_ms")  # metrics of every measurement
SIZES = (
    *("kv_bytes", "peak_prefill_bytes", "peak_decode_bytes", "held_decode_bytes"),
    "reserved_bytes",
)
THROUGHPUT = "tokens_per_s"  # of the decode loop, all rows together
MEASURED, DOES_NOT_FIT = "measured", "does not fit"  # status of a line
NO_DIFFERENCE = "no difference"


@dataclass(frozen=True)
class Median:
    """A median, its interval and the interval's coverage (0 to 1)."""

    value: float
    low: float
    high: float
    coverage: float


def median(values: Sequence[float], level: float = 0.95) -> Median:
    """Median with the narrowest symmetric order-statistic interval that covers `level`.

    Args:
        values: at least one number; a single one has no interval (nan) and coverage 0.
        level: target coverage; if n is too small for it, the interval is [min, max] and
            `coverage` is below `level`.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    count = len(ordered)
    middle = float(np.median(ordered))
    if count < 2:
        return Median(middle, float("nan"), float("nan"), 0.0)
    best = 0
    for cut in range((count - 1) // 2 + 1):
        if _coverage(count, cut) >= level:
            best = cut
    return Median(
        middle, float(ordered[best]), float(ordered[count - 1 - best]), _coverage(count, best)
    )


def _coverage(count: int, cut: int) -> float:
    return 1.0 - 2.0 * sum(comb(count, below) for below in range(cut + 1)) / 2.0**count


def tidy(model: str, length: int, batch: int, runs: Mapping[str, Run]) -> list[dict[str, object]]:
    """One line per side and metric of one measurement.

    Returns:
        Columns model, length, batch, side, token_ratio, metric, unit, value, low, high,
        coverage, repeats, status. Sizes are exact and have no interval. Metrics that the device
        or the side does not provide have no line.
    """
    lines = []
    for side, run in runs.items():
        head = {
            "model": model,
            "length": length,
            "batch": batch,
            "side": side,
            "token_ratio": run.token_ratio,
        }
        times = {name: getattr(run, name) for name in (PROCESSOR, *TIMES)}
        times |= {f"prefill_{part}_ms": values for part, values in run.parts_ms.items()}
        times[THROUGHPUT] = [1e3 * batch / value for value in run.step_ms]
        for name, values in times.items():
            if not values:
                continue
            middle = median(values)
            lines.append(
                {
                    **head,
                    "metric": name,
                    "unit": "tokens/s" if name == THROUGHPUT else "ms",
                    "value": middle.value,
                    "low": middle.low,
                    "high": middle.high,
                    "coverage": middle.coverage,
                    "repeats": len(values),
                    "status": MEASURED,
                }
            )
        lines.extend(
            {
                **head,
                "metric": name,
                "unit": "bytes",
                "value": float(getattr(run, name)),
                "repeats": 1,
                "status": MEASURED,
            }
            for name in SIZES
            if getattr(run, name) is not None
        )
    return lines


def not_fitting(model: str, length: int, batch: int, side: str) -> list[dict[str, object]]:
    """The lines of a measurement that does not fit in the device's memory."""
    return [
        {
            "model": model,
            "length": length,
            "batch": batch,
            "side": side,
            "metric": name,
            "unit": "ms" if name in TIMES else "bytes",
            "repeats": 0,
            "status": DOES_NOT_FIT,
        }
        for name in (*ALWAYS, *SIZES)
    ]


def speedups(
    model: str, length: int, batch: int, runs: Mapping[str, Run]
) -> list[dict[str, object]]:
    """The speed-ups and savings of the sparse side over the full one.

    Times are divided repeat by repeat, because both runs of a repeat see the same machine state.

    Returns:
        Columns model, length, batch, token_ratio, metric, ratio, low, high, coverage, verdict:
        "faster", "slower" or, if the interval contains 1, "no difference"; for sizes, which are
        exact, "smaller", "larger" or "no difference".
    """
    full, sparse = runs[FULL], runs[SPARSE]
    head = {
        "model": model,
        "length": length,
        "batch": batch,
        "token_ratio": sparse.token_ratio,
    }
    lines = []
    for name in TIMES:
        if not getattr(full, name) or not getattr(sparse, name):
            continue
        pairs = zip(getattr(full, name), getattr(sparse, name), strict=True)
        middle = median([left / right for left, right in pairs])
        verdict = "faster" if middle.low > 1 else "slower" if middle.high < 1 else NO_DIFFERENCE
        lines.append(
            {
                **head,
                "metric": name,
                "ratio": middle.value,
                "low": middle.low,
                "high": middle.high,
                "coverage": middle.coverage,
                "verdict": verdict,
            }
        )
    for name in SIZES:
        if not getattr(full, name) or not getattr(sparse, name):
            continue
        ratio = getattr(full, name) / getattr(sparse, name)
        verdict = "smaller" if ratio > 1 else "larger" if ratio < 1 else NO_DIFFERENCE
        lines.append(
            {**head, "metric": name, "ratio": ratio, "low": ratio, "high": ratio}
            | {"coverage": 1.0, "verdict": verdict}
        )
    return lines


def break_even(table: pd.DataFrame, metric: str) -> int | None:
    """The shortest measured length from which the sparse side is always faster.

    Args:
        table: from `speedups`, of one model and batch.
        metric: one of `TIMES`.

    Returns:
        The length, or None if the sparse side is not faster at the longest one.
    """
    part = table[table["metric"] == metric].sort_values("length", ascending=False)
    shortest = None
    for length, verdict in zip(part["length"], part["verdict"], strict=True):
        if verdict != "faster":
            break
        shortest = int(length)
    return shortest


def three_digits(value: float) -> str:
    """A number with at least three digits: 1,234 for 1234.5, 12.3 for 12.34."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

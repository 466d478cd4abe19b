"""The hyperparameter value at which a method keeps a given share of the tokens.

Methods are comparable only at equal cost, and each has its own hyperparameter. The token ratio of
the method's trace is measured on manifest rows (the calibration split); it is monotone in the
hyperparameter, so the search brackets the target ratio and narrows the bracket.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd

from sf.baselines import resolve
from sf.errors import ConfigError
from sf.evaluation.answer import Answer, Limits, answers_under
from sf.evaluation.resumable_log import ResumableLog

if TYPE_CHECKING:
    from sf.baselines import Hyperparameter
    from sf.data.manifest import Row
    from sf.sections import Vision

__all__ = ["Match", "find_value", "match_method", "match_table"]

MOST = 14  # measurements of one search
_STEP = 4.0  # factor of a step towards an open end
_APART = 16.0  # brackets with a larger ratio are divided geometrically
_EDGE = 0.1  # minimum distance of an interpolated value from the ends, as a share of the bracket
_NEAR = 1e-6


@dataclass(frozen=True)
class Match:
    """The result of a search.

    Attributes:
        target: the target token ratio.
        value: of the hyperparameter.
        ratio: measured there.
        reached: whether it is within the tolerance. If not, `value` is the nearest measured one.
        probes: (value, ratio) of every measurement, in order.
    """

    target: float
    value: float
    ratio: float
    reached: bool
    probes: tuple[tuple[float, float], ...]


def find_value(
    hyperparameter: Hyperparameter,
    measure: Callable[[float], float],
    target: float,
    *,
    tolerance: float = 0.01,
    most: int = MOST,
) -> Match:
    """Search the hyperparameter's range.

    Args:
        hyperparameter: the hyperparameter. The ratio must not fall if it is declared to rise.
        measure: token ratio at a value, in (0, 1].
        target: target ratio in (0, 1].
        tolerance: largest accepted distance from the target.
        most: maximum number of measurements.

    Raises:
        ConfigError: `target` or `tolerance` is out of range.
    """
    if not 0 < target <= 1:
        raise ConfigError(
            "evaluate.match.token_ratio",
            target,
            "a token ratio lies in (0, 1]",
            "give such a share",
        )
    if not 0 < tolerance < 1:
        raise ConfigError("evaluate.match.tolerance", tolerance, "must lie in (0, 1)", "use 0.01")
    known = {} if hyperparameter.dense is None else {hyperparameter.dense: 1.0}
    probes: dict[float, float] = {}
    following: float | None = hyperparameter.default or (
        1.0 if hyperparameter.whole else hyperparameter.default
    )
    if target == 1 and hyperparameter.dense is not None:
        following = hyperparameter.dense
    best = math.nan
    while following is not None and following not in probes and len(probes) < most:
        probes[following] = known[following] = measure(following)
        best = min(probes, key=lambda value: abs(probes[value] - target))
        if abs(probes[best] - target) <= tolerance:
            break
        following = _next(hyperparameter, known, target, halve=len(probes) % 3 == 0)
    ratio = probes[best]
    reached = abs(ratio - target) <= tolerance
    return Match(target, best, ratio, reached, tuple(probes.items()))


def _next(
    hyperparameter: Hyperparameter, known: Mapping[float, float], target: float, halve: bool
) -> float | None:
    """The next value to measure; None if no value is left to try."""
    sign = 1 if hyperparameter.rises else -1
    fewer = [value for value, ratio in known.items() if ratio < target]
    more = [value for value, ratio in known.items() if ratio >= target]
    if fewer and more:
        low = max(fewer, key=lambda value: sign * value)
        high = min(more, key=lambda value: sign * value)
        return _inside(hyperparameter, (low, known[low]), (high, known[high]), target, halve)
    side = sorted(more, key=lambda v: sign * v) or sorted(fewer, key=lambda v: -sign * v)
    value, ratios = side[0], [known[v] for v in side[:3]]
    if len(ratios) == 3 and max(ratios) - min(ratios) < _NEAR:
        return None  # the ratio has a floor or a ceiling there
    upwards = hyperparameter.rises != bool(more)
    if upwards:
        return None if value == hyperparameter.high else min(hyperparameter.high, value * _STEP)
    end = 1.0 if hyperparameter.whole else hyperparameter.low
    if value == end:
        return None
    closer = value / _STEP
    if hyperparameter.whole:
        return max(end, math.floor(closer))
    if closer > end + _NEAR:
        return closer
    return end if hyperparameter.low_allowed else None


def _inside(
    hyperparameter: Hyperparameter,
    low: tuple[float, float],
    high: tuple[float, float],
    target: float,
    halve: bool,
) -> float | None:
    """A value between two that bracket the target ratio: interpolated, or the middle."""
    a, b = low[0], high[0]
    share = 0.5 if halve else (target - low[1]) / (high[1] - low[1])
    share = min(max(share, _EDGE), 1 - _EDGE)
    if min(a, b) > 0 and max(a, b) / min(a, b) > _APART:
        value = math.exp((1 - share) * math.log(a) + share * math.log(b))
    else:
        value = (1 - share) * a + share * b
    if hyperparameter.whole:
        value = min(max(round(value), min(a, b) + 1), max(a, b) - 1)
        return value if abs(a - b) > 1 else None
    return value if abs(a - b) > _NEAR * max(abs(a), abs(b)) else None


def match_method(
    model: Any,
    processor: Any,
    rows: Sequence[Row],
    vision: Vision,
    method: str,
    target: float,
    log: ResumableLog[Answer],
    *,
    tolerance: float,
    **limits: Unpack[Limits],
) -> tuple[Match, pd.DataFrame]:
    """Search a method's hyperparameter on manifest rows.

    Args:
        model: in evaluation mode, on its device.
        processor: its processor.
        rows: rows for the measurement; every value is measured on all of them.
        vision: pixel and frame bounds.
        method: a key of `sf.baselines.METHODS`, with a hyperparameter.
        target: target token ratio, mean over rows and layers.
        log: answers of an earlier run of the same call, to which this one appends.
        tolerance: of the ratio.
        **limits: decoding and scoring settings.

    Returns:
        The match, and a line per measurement: method, hyperparameter, value, token_ratio, accuracy,
        rows.

    Raises:
        ConfigError: a method without a hyperparameter, a target ratio out of range, or no rows.
    """
    hyperparameter = resolve(model, method).hyperparameter
    if hyperparameter is None:
        raise ConfigError(
            "method", method, "has no hyperparameter to adjust", "choose one that drops tokens"
        )
    if not rows:
        raise ConfigError("calibration rows", 0, "needed to measure the ratio", "prepare some")
    lines: list[dict[str, object]] = []

    def measure(value: float) -> float:
        answered = answers_under(
            model,
            processor,
            rows,
            vision,
            {(method, value): resolve(model, method, value)},
            log,
            title=f"{method} at {value:g}",
            **limits,
        )
        answers = [answer for _, _, answer in answered]
        ratio = sum(answer.token_ratio for answer in answers) / len(answers)
        accuracy = sum(answer.correct for answer in answers) / len(answers)
        lines.append(
            {
                "method": method,
                "hyperparameter": hyperparameter.name,
                "value": value,
                "token_ratio": ratio,
                "accuracy": accuracy,
                "rows": len(answers),
            }
        )
        return ratio

    return find_value(hyperparameter, measure, target, tolerance=tolerance), pd.DataFrame(lines)


def match_table(method: str, match: Match, probes: pd.DataFrame) -> pd.DataFrame:
    """One line: method, hyperparameter, target, value, token_ratio, accuracy, reached, …, rows."""
    at = probes[probes["value"] == match.value].iloc[0]
    line = {
        "method": method,
        "hyperparameter": at["hyperparameter"],
        "target": match.target,
        "value": match.value,
        "token_ratio": match.ratio,
        "accuracy": at["accuracy"],
        "reached": match.reached,
        "measurements": len(probes),
        "rows": at["rows"],
    }
    return pd.DataFrame([line])

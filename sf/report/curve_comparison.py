"""Comparison before and after training at the same token ratio.

A point of a trained model is compared with the base model's curve at the same ratio, by linear
interpolation between the two neighbouring points. Both models answered the same rows, so rows are
resampled jointly, and the difficulty of a question cancels out of the difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sf.errors import DataError
from sf.evaluation.intervals import interval, resamples

__all__ = [
    "Curve",
    "Difference",
    "at_matched_ratio",
    "at_retention_p",
    "both_curves",
    "interpolated",
    "points_above",
    "row_weights",
]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Ratio and correctness of every row at every `retention_p`; (points, rows), ascending."""

    retention_p: Array
    ratio: Array
    correct: Array


@dataclass(frozen=True)
class Difference:
    """A metric before and after, the change, and its paired 95 % interval."""

    before: float
    after: float
    change: float
    low: float
    high: float


def curve_of(answers: pd.DataFrame, order: list[str]) -> Curve:
    ratio = answers.pivot(index="retention_p", columns="id", values="token_ratio")[
        order
    ].sort_index()
    correct = answers.pivot(index="retention_p", columns="id", values="correct")[order].sort_index()
    return Curve(
        ratio.index.to_numpy(np.float64),
        ratio.to_numpy(np.float64),
        correct.to_numpy(np.float64),
    )


def both_curves(base: pd.DataFrame, trained: pd.DataFrame) -> tuple[Curve, Curve]:
    """Two models' answers to the same rows, in the same order.

    Raises:
        DataError: the two models did not answer the same rows.
    """
    order = sorted(set(base["id"]))
    if set(trained["id"]) != set(order):
        raise DataError(
            "answers",
            f"{len(order)} and {trained['id'].nunique()} rows",
            "before and after must have answered the same rows",
            "run the stage accuracy_curve of both on one manifest",
        )
    return curve_of(base, order), curve_of(trained, order)


def row_weights(rows: int, seed: int) -> Array:
    """(draws, rows): frequency of each row divided by rows; the first draw is the data."""
    drawn = resamples(rows, seed)
    counts = np.zeros((len(drawn) + 1, rows))
    counts[0] = 1.0
    np.add.at(counts[1:], (np.arange(len(drawn))[:, None], drawn), 1.0)
    return counts / rows


def at_matched_ratio(base: pd.DataFrame, trained: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Compare every sparse point of the trained model with the base curve at its ratio.

    Args:
        base: answers of the base model: columns retention_p, id, token_ratio, correct.
        trained: answers of the trained model to the same rows.
        seed: of the bootstrap.

    Returns:
        Per retention_p below 1: retention_p, token_ratio, accuracy, base_accuracy (at that ratio),
        difference, low, high, verdict ("above" or "below" if the 95 % interval excludes 0, else "no
        difference"; "outside" if the base curve does not reach the ratio; no extrapolation).

    Raises:
        DataError: the two models did not answer the same rows.
    """
    before, after = both_curves(base, trained)
    weights = row_weights(before.ratio.shape[1], seed)
    base_ratio, base_right = weights @ before.ratio.T, weights @ before.correct.T
    ratio, right = weights @ after.ratio.T, weights @ after.correct.T
    lines = []
    for at, retention_p in enumerate(after.retention_p):
        if retention_p >= 1.0:
            continue
        base_accuracy = np.array(
            [
                interpolated(ratio[draw, at], base_ratio[draw], base_right[draw])
                for draw in range(len(weights))
            ]
        )
        line = {
            "retention_p": retention_p,
            "token_ratio": ratio[0, at],
            "accuracy": right[0, at],
        }
        if np.isnan(base_accuracy[0]):
            lines.append({**line, "verdict": "outside"})
            continue
        draws = right[1:, at] - base_accuracy[1:]
        low, high = interval(draws[~np.isnan(draws)])  # some draws are outside the base curve
        lines.append(
            {
                **line,
                "base_accuracy": base_accuracy[0],
                "difference": right[0, at] - base_accuracy[0],
                "low": low,
                "high": high,
                "verdict": "above" if low > 0 else "below" if high < 0 else "no difference",
            }
        )
    names = ["retention_p", "token_ratio", "accuracy", "base_accuracy", "difference"]
    return pd.DataFrame(lines, columns=[*names, "low", "high", "verdict"])


def interpolated(ratio: float, ratios: Array, values: Array) -> float:
    """Value of a curve at a ratio; nan outside the curve."""
    order = np.argsort(ratios)
    return float(np.interp(ratio, ratios[order], values[order], left=np.nan, right=np.nan))


def points_above(matched: pd.DataFrame) -> int:
    """Number of points at which the trained model is better by more than the 95 % interval."""
    return int((matched["verdict"] == "above").sum())


def at_retention_p(
    base: pd.DataFrame, trained: pd.DataFrame, retention_p: float, seed: int
) -> dict[str, Difference] | None:
    """Token ratio and accuracy at one threshold before and after; None if a curve lacks it.

    Returns:
        {"token_ratio": ..., "accuracy": ...}, shares in [0, 1].
    """
    before, after = both_curves(base, trained)
    places = [
        np.flatnonzero(np.isclose(curve.retention_p, retention_p)) for curve in (before, after)
    ]
    if any(len(place) == 0 for place in places):
        return None
    left, right = (int(place[0]) for place in places)
    weights = row_weights(before.ratio.shape[1], seed)
    differences = {}
    for name, old, new in (
        ("token_ratio", before.ratio[left], after.ratio[right]),
        ("accuracy", before.correct[left], after.correct[right]),
    ):
        draws = weights @ (new - old)
        low, high = interval(draws[1:])
        differences[name] = Difference(
            float(old.mean()), float(new.mean()), float(draws[0]), low, high
        )
    return differences

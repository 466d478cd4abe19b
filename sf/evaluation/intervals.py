"""95 % intervals: Wilson for shares, bootstrap over samples for the rest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "DRAWS",
    "bootstrap_clusters",
    "bootstrap_mean",
    "interval",
    "resamples",
    "wilson",
]

DRAWS = 2000


def wilson(successes: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share.

    Args:
        successes: number of correct samples out of `count`.
        count: number of samples; 0 gives (0, 1).
        level: coverage.

    Returns:
        (low, high) in [0, 1].
    """
    if not 0 <= successes <= count:
        raise ValueError(f"successes = {successes}. Must lie in [0, {count}].")
    if count == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    bounds = binomtest(round(successes), count).proportion_ci(level, method="wilson")
    return float(bounds.low), float(bounds.high)


def resamples(count: int, seed: int, draws: int = DRAWS) -> NDArray[np.int64]:
    """Indices (draws, count) of bootstrap samples, the same for the same count and seed."""
    return np.random.default_rng(seed).integers(0, count, size=(draws, count))


def interval(draws: NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap replicates (draws,); NaN if any of them is NaN."""
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_mean(values: ArrayLike, seed: int, level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean.

    Args:
        values: (samples,) finite numbers.
        seed: of the resampling.
        level: coverage.

    Returns:
        (low, high); (nan, nan) for fewer than two samples.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size < 2:
        return float("nan"), float("nan")
    return interval(data[resamples(data.size, seed)].mean(axis=1), level)


def bootstrap_clusters(
    values: ArrayLike, clusters: Sequence[object] | NDArray[np.str_], seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of clustered values; clusters are resampled.

    Args:
        values: (samples,) finite numbers.
        clusters: (samples,), the cluster of each value, such as its image.
        seed: of the resampling.
        level: coverage.

    Returns:
        (low, high); (nan, nan) for fewer than two clusters.
    """
    data = np.asarray(values, dtype=np.float64)
    _, owner = np.unique(np.asarray(clusters), return_inverse=True)
    counts = np.bincount(owner)
    if len(counts) < 2:
        return float("nan"), float("nan")
    sums = np.bincount(owner, weights=data)
    drawn = resamples(len(counts), seed)
    return interval(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), level)

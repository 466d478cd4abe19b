"""95 % intervals: Wilson for shares, bootstrap over samples for the rest."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "bootstrap_clusters",
    "bootstrap_mean",
    "bootstrap_median",
    "resamples",
    "wilson",
]

DRAWS = 2000


def wilson(successes: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a share.

    Args:
        successes: how many of `count` were right.
        count: samples; 0 gives (0, 1), nothing being known.
        level: coverage.

    Returns:
        (low, high) in [0, 1].
    """
    if not 0 <= successes <= count:
        raise ValueError(f"successes = {successes}. Must lie in [0, {count}].")
    if count == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / count
    centre = share + z * z / (2 * count)
    half = z * float(np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)))
    scale = 1 + z * z / count
    low = 0.0 if successes == 0 else (centre - half) / scale  # exactly: rounding leaves 1e-18
    high = 1.0 if successes == count else (centre + half) / scale
    return low, high


def resamples(count: int, seed: int, draws: int = DRAWS) -> NDArray[np.int64]:
    """Indices (draws, count) of bootstrap samples, the same for the same count and seed."""
    return np.random.default_rng(seed).integers(0, count, size=(draws, count))


def _bounds(draws: NDArray[np.float64], level: float) -> tuple[float, float]:
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
        (low, high); (nan, nan) for fewer than two samples, from which nothing follows.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size < 2:
        return float("nan"), float("nan")
    return _bounds(data[resamples(data.size, seed)].mean(axis=1), level)


def bootstrap_median(
    values: Sequence[float] | NDArray[np.float64], seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a median; as `bootstrap_mean` otherwise."""
    data = np.asarray(values, dtype=np.float64)
    if data.size < 2:
        return float("nan"), float("nan")
    return _bounds(np.median(data[resamples(data.size, seed)], axis=1), level)


def bootstrap_clusters(
    values: ArrayLike, clusters: Sequence[object] | NDArray[np.str_], seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean whose values come in clusters, drawn as a whole.

    Args:
        values: (samples,) finite numbers.
        clusters: (samples,), what each value belongs to, such as its image.
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
    return _bounds(sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1), level)

"""Groups of neighbouring layers, for tables and drawings of kept tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAJORITY", "group_names", "keep_rates", "layer_groups"]

THIRDS = ("first", "middle", "last")
MAJORITY = 0.5
"""Share of a group's layers from which the group counts as keeping a cell."""


@cache  # called for every sample of a study
def layer_groups(layers: int, count: int = 3) -> tuple[range, ...]:
    """Neighbouring layers in up to `count` groups of nearly equal size."""
    edges = [round(at * layers / count) for at in range(count + 1)]
    return tuple(range(low, high) for low, high in pairwise(edges) if high > low)


def keep_rates(kept_JTHW: NDArray[np.bool_], groups: Sequence[range]) -> NDArray[np.float64]:
    """(G, T, H, W): the share of each group's layers that kept a cell."""
    return np.stack([kept_JTHW[list(group)].mean(0, dtype=np.float64) for group in groups])


@cache
def group_names(groups: tuple[range, ...]) -> tuple[str, ...]:
    """ "first third (layers 1-9)" and so on; layers count from 1."""
    spans = tuple(
        f"layer {group[0] + 1}" if len(group) == 1 else f"layers {group[0] + 1}-{group[-1] + 1}"
        for group in groups
    )
    if len(groups) != len(THIRDS):
        return spans
    return tuple(f"{third} third ({span})" for third, span in zip(THIRDS, spans, strict=True))

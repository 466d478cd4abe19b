"""Flatness of attention rows: regularisers of the "sharpness" row of the paper's comparison.

Neither the paper (arXiv 2504.18579) nor its first version gives the form; these two are ours. Both
look at the probe queries' rows (the same rows as selection's: 128 of a long prompt, all of a short
one), take the mean over heads and rows, lie in [0, 1] and fall as attention gets sharper.

Shape suffixes: B rows, H heads, G KV heads, R heads of one KV head, P probes, L prompt columns,
D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sf.training.pathwise import Measure, probe_rows

__all__ = ["KINDS", "row_entropy", "row_spread"]


def _mean_over_rows(total_BP: Tensor, counted_BP: Tensor, heads: int) -> Tensor:
    """(B,): the sum over heads, as the mean over heads and counted rows; 0 without any."""
    kept = total_BP.masked_fill(~counted_BP, 0.0).sum(1)
    return kept / (heads * counted_BP.sum(1).clamp(min=1))


def _entropy(weight_BRPL: Tensor) -> Tensor:
    """Entropy of each row in nats, summed over heads: (B, P)."""
    return -torch.special.xlogy(weight_BRPL, weight_BRPL.clamp(min=1e-12)).sum((1, 3))


def row_entropy(
    query_BHLD: Tensor, key_BGLD: Tensor, valid_BL: Tensor, probes: Any, scaling: float
) -> Tensor:
    """H(a) / log(n) of an attention row a over the n keys it can see, mean over heads and rows.

    A row that sees one key has nothing to sharpen and does not count.

    Args:
        query_BHLD, key_BGLD: after rope.
        valid_BL: bool, False on padding.
        probes: `sf.selection.Probes`, the same as selection's.
        scaling: of the scores.

    Returns:
        (B,) float32 in [0, 1]; 1 for even rows.
    """
    total_BP, column_BP, present_BP = probe_rows(
        query_BHLD, key_BGLD, valid_BL, probes, scaling, _entropy
    )
    seen_BP = valid_BL.long().cumsum(-1).gather(1, column_BP)
    counted_BP = present_BP & (seen_BP > 1)
    most_BP = seen_BP.clamp(min=2).to(total_BP.dtype).log()
    return _mean_over_rows(total_BP / most_BP, counted_BP, query_BHLD.shape[1])


def row_spread(
    query_BHLD: Tensor, key_BGLD: Tensor, valid_BL: Tensor, probes: Any, scaling: float
) -> Tensor:
    """1 - max(a) of an attention row a (its L-infinity norm), mean over heads and rows.

    Args and Returns: as `row_entropy`.
    """
    total_BP, _, present_BP = probe_rows(
        query_BHLD, key_BGLD, valid_BL, probes, scaling, lambda weight: weight.amax(-1).sum(1)
    )
    heads = query_BHLD.shape[1]
    return _mean_over_rows(heads - total_BP, present_BP, heads)


KINDS: Mapping[str, Measure] = {"entropy": row_entropy, "linf": row_spread}
"""Values of the parameter `sharpness_kind`."""

"""Probe mass of one long row in blocks of probes, without storing heads x probes x length scores.

A probe at column c sees c + 1 keys. Probes are processed in order, so a block multiplies only with
the keys that its last probe sees, and masks only the keys between its first and its last probe.

Shape suffixes: G KV heads, R query heads per KV head, P probes, L columns, D head size,
S = score rows of a block (R x its probes), K = keys it sees.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["row_mass"]

# Score elements of a block: 4 MiB in float32, which largely fits in a core's cache.
_BLOCK_ELEMENTS = 1 << 20
_LEAST_ROWS = 64


def row_mass(probe_GRPD: Tensor, key_GLD: Tensor, columns: list[int]) -> Tensor:
    """Attention of the probes, averaged over heads and summed over probes.

    Args:
        probe_GRPD: scaled queries, float32 or float64.
        key_GLD: all keys of the row, same dtype.
        columns: the probes' columns, ascending.

    Returns:
        (L,) in the same dtype; sums to P.
    """
    groups, repeats, probes, _ = probe_GRPD.shape
    length = key_GLD.shape[1]
    mass_L = key_GLD.new_zeros(length)
    if probes == 0:
        return mass_L
    rows = max(_LEAST_ROWS, _BLOCK_ELEMENTS // length)
    step = max(1, min(probes, rows // repeats))
    score, weight = (key_GLD.new_empty(repeats * step * length) for _ in range(2))
    for first in range(0, probes, step):
        last = min(first + step, probes)
        seen = columns[last - 1] + 1
        always = columns[first] + 1
        hidden_PK = _hidden(columns[first:last], always, seen, key_GLD)
        size = repeats * (last - first)
        for group in range(groups):
            block_SD = probe_GRPD[group, :, first:last].reshape(size, -1)
            score_SK, weight_SK = (part[: size * seen].view(size, seen) for part in (score, weight))
            torch.mm(block_SD, key_GLD[group, :seen].t(), out=score_SK)
            if hidden_PK is not None:
                score_SK.view(repeats, -1, seen)[:, :, always:].add_(hidden_PK)
            torch.softmax(score_SK, dim=-1, out=weight_SK)
            mass_L[:seen] += weight_SK.sum(0)
    return mass_L.div_(groups * repeats)


def _hidden(columns: list[int], always: int, seen: int, like: Tensor) -> Tensor | None:
    """-inf where a key between the first and the last probe comes after a probe, else 0."""
    if seen == always:
        return None
    key_K = torch.arange(always, seen, device=like.device)
    column_P1 = torch.tensor(columns, device=like.device)[:, None]
    hidden_PK = torch.zeros(len(columns), seen - always, dtype=like.dtype, device=like.device)
    return hidden_PK.masked_fill_(key_K > column_P1, float("-inf"))

"""Steps 1-7 of the method written slowly, in float64 NumPy, one head and one key at a time.

Written from the paper notes alone; shares no code with `sf`. Also a mask-form attention for whole
models: the same result by masking instead of gathering.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass
class Row:
    """The oracle's result for one unpadded row: kept (L,), and the scores behind it."""

    kept: np.ndarray
    mass: np.ndarray
    normalised: np.ndarray
    target: float
    num_probes: int


def probe_positions(length: int, recent: int, spread: int) -> list[int]:
    """Step 1: every query, or the recent ones and the midpoints of equal parts of the rest."""
    if length <= recent + spread:
        return list(range(length))
    rest = length - recent
    return [math.floor((2 * i + 1) * rest / (2 * spread)) for i in range(spread)] + list(
        range(rest, length)
    )


def select(query: np.ndarray, key: np.ndarray, p: float, recent: int = 64, spread: int = 64) -> Row:
    """Steps 1-4 for a row: query (H, L, D), key (G, L, D), float64."""
    heads, length, size = query.shape
    share = heads // key.shape[0]
    probes = probe_positions(length, recent, spread)
    mass = np.zeros(length)
    for probe in probes:
        for head in range(heads):
            seen = key[head // share, : probe + 1]
            score = seen @ query[head, probe] / math.sqrt(size)
            weight = np.exp(score - score.max())
            mass[: probe + 1] += weight / weight.sum() / heads
    normalised = np.array(
        [mass[k] / sum(1 for probe in probes if probe >= k) for k in range(length)]
    )
    target = p * len(probes)
    count, total = 0, 0.0
    for value in sorted(mass, reverse=True):
        if total >= target:
            break
        count, total = count + 1, total + value
    if p == 1:
        count = length
    kept = np.zeros(length, dtype=bool)
    for k in sorted(range(length), key=lambda k: (-normalised[k], k))[:count]:
        kept[k] = True
    kept[-1] = True
    return Row(kept, mass, normalised, target, len(probes))


def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, active: np.ndarray) -> np.ndarray:
    """Step 5: (L, H, D), causal among the active columns, zero elsewhere."""
    heads, length, size = query.shape
    share = heads // key.shape[0]
    out = np.zeros((length, heads, value.shape[-1]))
    for i in np.flatnonzero(active):
        columns = [k for k in np.flatnonzero(active) if k <= i]
        for head in range(heads):
            score = key[head // share, columns] @ query[head, i] / math.sqrt(size)
            weight = np.exp(score - score.max())
            out[i, head] = weight / weight.sum() @ value[head // share, columns]
    return out


def assert_follows(kept: np.ndarray, row: Row, slack: float = 1e-9) -> None:
    """`kept` follows from the row's scores; sums and scores within `slack` count as ties."""
    chosen = kept.copy()
    chosen[-1] = False
    rest = ~kept
    if rest.any() and chosen.any():
        assert row.normalised[chosen].min() >= row.normalised[rest].max() - slack
    order = np.sort(row.mass)[::-1]
    held = np.concatenate([[0.0], np.cumsum(order)])
    least = int(np.argmax(held >= row.target - slack)) if held[-1] >= row.target - slack else None
    most = int(np.argmax(held >= row.target + slack)) if held[-1] >= row.target + slack else None
    low = len(kept) if least is None else least
    high = len(kept) if most is None else most
    # The last token may have come on top of the count, or be one of it.
    assert kept[-1]
    assert low <= kept.sum() <= high + 1
    if kept.sum() == high + 1:
        others = row.normalised[:-1]
        assert row.normalised[-1] <= np.sort(others)[::-1][: max(high, 1)].min() + slack


class MaskForm:
    """An attention function that masks instead of gathering, and selects with `select`.

    Register `attention` and `mask`, then set `valid` (B, L) and `p` per row before a forward.
    """

    def __init__(self, p: list[float], prompt_width: int, kept: list[Tensor] | None = None) -> None:
        self.p, self.prompt_width = p, prompt_width
        self.given = kept
        self.kept: dict[int, Tensor] = {}
        self.valid: Tensor | None = None

    def mask(self, **request: object) -> None:
        self.valid = request.get("attention_mask")
        if self.valid is None:
            self.valid = torch.ones(request["batch_size"], request["kv_length"], dtype=torch.bool)

    def attention(self, module, query, key, value, attention_mask, scaling=None, **kwargs):
        width, valid = self.prompt_width, self.valid
        if self.given is None:
            factor = (scaling or query.shape[-1] ** -0.5) * query.shape[-1] ** 0.5
            self.kept[module.layer_idx] = self._select(query * factor, key)
        else:
            self.kept[module.layer_idx] = self.given[module.layer_idx]
        active = torch.cat([self.kept[module.layer_idx], valid[:, width:]], dim=1)
        share = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
        score = query @ key.transpose(2, 3) * (scaling or query.shape[-1] ** -0.5)
        causal = torch.ones(score.shape[-2:], dtype=torch.bool).tril()
        score = score.masked_fill(~(causal & active[:, None, None]), torch.finfo(score.dtype).min)
        out = score.softmax(-1) @ value * active[:, None, :, None]
        return out.transpose(1, 2), None

    def _select(self, query: Tensor, key: Tensor) -> Tensor:
        kept = torch.zeros(query.shape[0], self.prompt_width, dtype=torch.bool)
        for row, valid in enumerate(self.valid[:, : self.prompt_width]):
            columns = valid.nonzero()[:, 0]
            q, k = (part[row][:, columns].double().detach().numpy() for part in (query, key))
            kept[row, columns] = torch.from_numpy(select(q, k, self.p[row]).kept)
        return kept

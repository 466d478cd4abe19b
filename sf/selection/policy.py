"""The interface of a selector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sf.errors import ConfigError
from sf.selection.probes import Probes
from sf.selection.scores import Scores

__all__ = ["Policy", "per_row"]

FractionPerRow = float | Sequence[float] | Tensor


@dataclass(frozen=True)
class Policy(ABC):
    """Decides, layer by layer, which prompt tokens take part in attention.

    Attributes:
        probes: the queries whose attention is measured.
        whole_kv: keep every token's K and V. Prefill attention is still sparse, but decoding and
            later turns see the whole prompt. By default dropped tokens' K and V are discarded.
    """

    needs_scores: ClassVar[bool] = True
    keeps_all: ClassVar[bool] = False
    """Every row keeps every token, but in a pruned layer's cache; `keep` is then not called."""

    probes: Probes = field(default=Probes(), kw_only=True)
    whole_kv: bool = field(default=False, kw_only=True)

    @abstractmethod
    def keep(self, scores: Scores, layer: int) -> Tensor:
        """Tokens to keep: bool (B, L). The caller adds the last prompt token and drops padding."""

    def scores_at(self, layer: int) -> bool:
        """Whether `keep` reads the scores of this layer; False saves computing them."""
        return self.needs_scores

    @property
    def dense(self) -> bool:
        """Whether every row is known in advance to keep everything."""
        return False


def per_row(name: str, value: FractionPerRow, batch: int | None = None) -> Tensor:
    """A fraction, or one per row, as float64 (1,) or (B,).

    A batch that is a multiple of the number of values repeats each value for neighbouring rows, as
    `generate` repeats a prompt for its beams and returned sequences.

    Raises:
        ConfigError: a value is outside [0, 1], or the number of values does not fit the batch.
    """
    rows = torch.as_tensor(value, dtype=torch.float64, device="cpu").reshape(-1)
    if rows.numel() == 0 or not bool(((rows >= 0) & (rows <= 1)).all()):
        raise ConfigError(name, value, "values lie in [0, 1]", "give one number or one per row")
    if batch is None or rows.numel() == 1:
        return rows
    if batch % rows.numel():
        raise ConfigError(
            name,
            f"{rows.numel()} values",
            f"the batch has {batch} rows",
            "give one number, or one per row of input_ids",
        )
    return rows.repeat_interleave(batch // rows.numel())

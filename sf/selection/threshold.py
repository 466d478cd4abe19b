"""Threshold: every token whose score reaches a minimum."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sf.selection.policy import FractionPerRow, Policy, per_row
from sf.selection.scores import Scores

__all__ = ["Threshold"]


@dataclass(frozen=True)
class Threshold(Policy):
    """Keeps tokens whose normalised score is at least `value`.

    The normalised score is the mean attention weight of a key among the probes that can see it, so
    it is in [0, 1], and uniform attention gives 1/length. The paper's Table 4 names this
    selector without its formula; this formula is ours.

    Attributes:
        value: least mean attention weight in [0, 1], or one per row. 0 keeps everything.
    """

    value: FractionPerRow = 0.001

    def __post_init__(self) -> None:
        per_row("value", self.value)

    @property
    def dense(self) -> bool:
        return bool((per_row("value", self.value) == 0).all())

    def keep(self, scores: Scores, layer: int) -> Tensor:
        least_B1 = scores.once("least", self, scores.valid, make=lambda: self._least(scores))
        return scores.normalised >= least_B1

    def _least(self, scores: Scores) -> Tensor:
        least_B = per_row("value", self.value, scores.valid.shape[0])
        return least_B.to(scores.valid.device, non_blocking=True)[:, None]

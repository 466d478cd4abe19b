"""Top-k: a fixed share of the tokens."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sf.selection.policy import FractionPerRow, Policy, per_row
from sf.selection.scores import Scores

__all__ = ["TopK"]


@dataclass(frozen=True)
class TopK(Policy):
    """Keeps the share `ratio` of the prompt with the largest normalised scores, in every layer.

    Attributes:
        ratio: share of tokens in [0, 1], or one per row; the count is rounded up.
    """

    ratio: FractionPerRow = 0.25

    def __post_init__(self) -> None:
        per_row("ratio", self.ratio)

    @property
    def dense(self) -> bool:
        return bool((per_row("ratio", self.ratio) == 1).all())

    def keep(self, scores: Scores, layer: int) -> Tensor:
        return scores.best(
            scores.once("count", self, scores.valid, make=lambda: self._count(scores))
        )

    def _count(self, scores: Scores) -> Tensor:
        ratio_B = per_row("ratio", self.ratio, scores.valid.shape[0]).to(
            scores.valid.device, non_blocking=True
        )
        # 0.3 * 10 is a little above 3 in float64; that must not cost a token.
        return (ratio_B * scores.lengths - 1e-9).ceil().long()

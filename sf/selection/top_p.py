"""Top-p: the tokens that receive a share p of the probes' attention."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sf.errors import ConfigError
from sf.published import INFERENCE_RETENTION_P
from sf.selection.policy import FractionPerRow, Policy, per_row
from sf.selection.scores import Scores

__all__ = ["TopP"]


@dataclass(frozen=True)
class TopP(Policy):
    """ZipVL's selection (arXiv 2410.08584), used by Sparsity Forcing (arXiv 2504.18579).

    How many: the smallest count whose un-normalised masses, largest first, sum to at least
    p x the number of probes. Which: that many tokens with the largest normalised score.

    Attributes:
        p: retention threshold in (0, 1], or one per row. 1 is full attention, exactly.
    """

    p: FractionPerRow = INFERENCE_RETENTION_P

    def __post_init__(self) -> None:
        if not bool((per_row("p", self.p) > 0).all()):
            raise ConfigError("p", self.p, "must be in (0, 1]")

    @property
    def dense(self) -> bool:
        return bool((per_row("p", self.p) == 1).all())

    def keep(self, scores: Scores, layer: int) -> Tensor:
        needed_B1 = scores.once(
            "needed", self, scores.num_probes, make=lambda: self._needed(scores)
        )
        # float64: neighbouring sums differ by less than float32's rounding on long prompts.
        held_BL = scores.mass.sort(dim=-1, descending=True).values.double().cumsum(-1)
        count_B = (held_BL < needed_B1).sum(-1).add_(1)
        return scores.best(count_B.minimum(scores.lengths))

    def _needed(self, scores: Scores) -> Tensor:
        """The mass to keep, float64 (B, 1); infinite where everything is kept."""
        p_B = per_row("p", self.p, scores.valid.shape[0]).to(scores.valid.device, non_blocking=True)
        return (p_B * scores.num_probes).masked_fill(p_B == 1, float("inf"))[:, None]

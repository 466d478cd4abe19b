"""The scores of one layer, from which a policy selects."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Scores"]


@dataclass(frozen=True)
class Scores:
    """Probe attention of one layer, in the padded prompt's coordinates (B rows, L columns).

    Attributes:
        mass: float (B, L). Attention that the probes give to each key, averaged over heads and
            summed over probes (step 2); 0 on padding. A row sums to its number of probes.
        visible: int64 (B, L), how many probes can see each key (at least 1 on valid columns).
        num_probes: int64 (B,).
        valid: bool (B, L), False on padding.
    """

    mass: Tensor
    visible: Tensor
    num_probes: Tensor
    valid: Tensor

    @property
    def lengths(self) -> Tensor:
        """int64 (B,), the number of prompt tokens."""
        return self.valid.sum(-1)

    @property
    def normalised(self) -> Tensor:
        """(B, L) mass per probe that can see the key (step 4); -inf on padding."""
        score = self.mass / self.visible.clamp(min=1)
        return score.masked_fill(~self.valid, float("-inf"))

    def best(self, count: Tensor) -> Tensor:
        """The `count` (B,) tokens with the largest normalised score; ties go to the earlier token.

        Returns:
            bool (B, L); at most all valid tokens.
        """
        order = self.normalised.argsort(dim=-1, descending=True, stable=True)
        first = torch.arange(order.shape[1], device=order.device)[None] < count[:, None]
        return torch.zeros_like(self.valid).scatter_(1, order, first) & self.valid

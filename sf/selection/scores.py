"""The scores of one layer, from which a policy selects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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
        memory: of `once`; a forward hands the same to all its layers.
    """

    mass: Tensor
    visible: Tensor
    num_probes: Tensor
    valid: Tensor
    memory: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, name: str, *sources: object, make: Callable[[], Tensor]) -> Tensor:
        """A result of `make` that all layers of a forward share while its sources are the same.

        Args:
            name: of the result.
            sources: the objects that it is computed from. They are compared by identity, and kept
                alive, so that no other object takes an identity over.
        """
        key = (name, *map(id, sources))
        if key not in self.memory:
            self.memory[key] = sources, make()
        result: Tensor = self.memory[key][1]
        return result

    @property
    def lengths(self) -> Tensor:
        """int64 (B,), the number of prompt tokens."""
        return self.once("lengths", self.valid, make=lambda: self.valid.sum(-1))

    @property
    def normalised(self) -> Tensor:
        """(B, L) mass per probe that can see the key (step 4); -inf on padding."""
        seen = self.once("seen", self.visible, make=lambda: self.visible.clamp(min=1))
        padding = self.once("padding", self.valid, make=lambda: ~self.valid)
        return (self.mass / seen).masked_fill_(padding, float("-inf"))

    def best(self, count: Tensor) -> Tensor:
        """The `count` (B,) tokens with the largest normalised score; ties go to the earlier token.

        Returns:
            bool (B, L); at most all valid tokens.
        """
        order = self.normalised.argsort(dim=-1, descending=True, stable=True)
        rank = self.once("rank", self.valid, make=lambda: self._ranks)
        # The order contains every column, so that nothing of the new tensor is left as it is.
        kept = torch.empty_like(self.valid).scatter_(1, order, rank < count[:, None])
        return kept.logical_and_(self.valid)

    @property
    def _ranks(self) -> Tensor:
        return torch.arange(self.valid.shape[1], device=self.valid.device)[None]

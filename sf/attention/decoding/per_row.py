"""A choice of tokens with separate rules for each row, for the requests of several clients.

Shape suffixes: S rows of the loop, A rows in use (the first ones), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sf.attention.decoding.choice import Choice, Forbidden

__all__ = ["PerRow", "RowRules"]


@dataclass(frozen=True)
class RowRules:
    """The sampling rules of one row.

    Attributes:
        temperature: 0 for greedy choice.
        top_p: nucleus sampling: probability mass of the most likely tokens, in (0, 1].
        repetition_penalty: as in transformers, over prompt and reply; 1 is none.
        seed: of sampling.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0


class PerRow(Choice):
    """Greedy and sampled rows in one batch, independent of each other.

    Args:
        rules: of each row.
        seen_SV: bool, tokens that the row has read or generated.
        forbidden: tokens that are never chosen.
    """

    def __init__(
        self, rules: Sequence[RowRules], seen_SV: Tensor, forbidden: Sequence[int] = ()
    ) -> None:
        device = seen_SV.device
        self.seen = seen_SV
        self._forbidden = Forbidden(forbidden, seen_SV.shape[1], device)
        self.generators = [torch.Generator(device).manual_seed(rule.seed) for rule in rules]
        self.temperature = self._column([rule.temperature for rule in rules], device)
        self.top_p = self._column([rule.top_p for rule in rules], device)
        self.penalty = self._column([rule.repetition_penalty for rule in rules], device)
        self.noise = torch.ones(seen_SV.shape, device=device)
        self._sampled = [rule.temperature > 0 for rule in rules]

    @staticmethod
    def _column(values: Sequence[float], device: torch.device) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float32, device=device)[:, None]

    def empty(self, slots: int) -> PerRow:
        seen = self.seen.new_zeros(slots, self.seen.shape[1])
        return PerRow([RowRules()] * slots, seen, self._forbidden.tokens)

    def put(self, slots: Sequence[int], other: PerRow, rows: Sequence[int]) -> None:
        to, of = list(slots), list(rows)
        for name in ("seen", "temperature", "top_p", "penalty"):
            getattr(self, name)[to] = getattr(other, name)[of]
        for slot, row in zip(to, of, strict=True):
            self.generators[slot] = other.generators[row]
            self._sampled[slot] = other._sampled[row]

    def draw(self, active: int) -> None:
        for row in range(active):
            if self._sampled[row]:
                self.noise[row].exponential_(generator=self.generators[row])

    def __call__(self, logits_AV: Tensor) -> tuple[Tensor, None]:
        active = len(logits_AV)
        seen, penalty = self.seen[:active], self.penalty[:active]
        harder = torch.where(logits_AV < 0, logits_AV * penalty, logits_AV / penalty)
        logits_AV = torch.where(seen, harder, logits_AV)
        logits_AV = self._forbidden.exclude(logits_AV)
        chosen = logits_AV.argmax(-1, keepdim=True)
        # A recorded step contains all kernels, independent of the current rows' rules.
        if logits_AV.is_cuda or any(self._sampled[:active]):
            sampled = self._sample(logits_AV, active)
            chosen = torch.where(self.temperature[:active] > 0, sampled, chosen)
        seen.scatter_(1, chosen, True)
        return chosen, None

    def _sample(self, logits_AV: Tensor, active: int) -> Tensor:
        """The argmax of log p + Gumbel noise among each row's most likely tokens, (A, 1)."""
        heat = self.temperature[:active]
        logp = torch.log_softmax(logits_AV / heat.where(heat > 0, torch.ones_like(heat)), dim=-1)
        ordered, index = logp.sort(dim=-1, descending=True)
        mass = ordered.exp()
        beyond = mass.cumsum(-1) - mass >= self.top_p[:active]
        outside = torch.zeros_like(beyond).scatter_(1, index, beyond)
        noisy = (logp - self.noise[:active].log()).masked_fill(outside, float("-inf"))
        return noisy.argmax(-1, keepdim=True)

    def written(self) -> Any:
        return self.seen.clone()

    def rewind(self, to: Any) -> None:
        self.seen.copy_(to)

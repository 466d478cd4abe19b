"""The record of a sparse forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sf.errors import ConfigError

__all__ = ["PairTrace", "Trace", "equivalent_tokens"]


@dataclass
class Trace:
    """The kept tokens of the last prefill (or training forward), and what decoding added to them.

    Nothing here refers to keys, values or weights, so a trace may outlive its context.

    Attributes:
        kept: per layer, bool (batch, prompt) in the padded prompt's columns.
        valid: bool (batch, prompt), False on padding.
        appended: entries per layer that came after the prompt, the same for every row.
    """

    kept: list[Tensor] = field(default_factory=list)
    valid: Tensor | None = None
    appended: int = 0
    whole_kv: bool = False

    def record(
        self,
        valid: Tensor | None,
        kept: list[Tensor],
        appended: int,
        whole_kv: bool = True,
        **more: Any,
    ) -> None:
        """Describe another prompt, atomically: no thread sees parts of two."""
        vars(self).update(valid=valid, kept=kept, appended=appended, whole_kv=whole_kv, **more)

    def _prompt(self) -> Tensor:
        if self.valid is None:
            rule = "nothing was recorded yet, or the prompt had no 2D padding mask"
            raise ConfigError("trace", None, rule, "run the model inside the context first")
        return self.valid

    @property
    def prompt_lengths(self) -> Tensor:
        """int64 (batch,), tokens of each prompt."""
        return self._prompt().sum(-1)

    @property
    def layer_ratios(self) -> Tensor:
        """float32 (layers, batch), kept / prompt length; 1 for a row without tokens."""
        lengths = self.prompt_lengths
        kept = torch.stack([mask.sum(-1).to(lengths.device) for mask in self.kept])
        return torch.where(lengths > 0, kept / lengths.clamp(min=1), 1.0).float()

    @property
    def token_ratio(self) -> Tensor:
        """float32 (batch,), mean of `layer_ratios` over layers."""
        return self.layer_ratios.mean(0)

    @property
    def prompt_kv(self) -> Tensor:
        """int64 (layers, batch), entries that the prompt left in each layer's cache."""
        lengths = self.prompt_lengths
        if self.whole_kv:
            return lengths.expand(len(self.kept), -1)
        return torch.stack([mask.sum(-1).to(lengths.device) for mask in self.kept])

    @property
    def kv_lengths(self) -> Tensor:
        """int64 (layers, batch), keys that a new token can see in each layer's cache."""
        return self.prompt_kv + self.appended


def equivalent_tokens(pairs: Tensor) -> Tensor:
    """The number n of tokens whose dense causal attention reads that many pairs, n (n + 1) / 2.

    For a layer that keeps n tokens this is n itself, and for dense attention the prompt's length,
    so methods whose queries each read other keys are put on the scale of kept tokens.

    Args:
        pairs: pairs read, any shape.
    """
    return ((1 + 8 * pairs).sqrt() - 1) / 2


@dataclass
class PairTrace(Trace):
    """Trace of a method that drops no tokens: each query reads some of the keys.

    Attributes:
        pairs: per layer, float64 (batch,), (query, entry) pairs of the prompt, mean over heads.
    """

    pairs: list[Tensor] = field(default_factory=list)

    @property
    def layer_ratios(self) -> Tensor:
        """float32 (layers, batch), `equivalent_tokens` / prompt length.

        Above 1 where a method reads more entries than dense attention would, such as NSA's
        compressed ones on a prompt that is shorter than what it selects.
        """
        lengths = self.prompt_lengths
        tokens = torch.stack([equivalent_tokens(pairs.to(lengths.device)) for pairs in self.pairs])
        return torch.where(lengths > 0, tokens / lengths.clamp(min=1), 1.0).float()

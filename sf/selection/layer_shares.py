"""Replay of each layer's recorded share on another prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from sf.errors import ConfigError
from sf.selection.policy import Policy, per_row
from sf.selection.scores import Scores

__all__ = ["LayerShares"]


@dataclass(frozen=True)
class LayerShares(Policy):
    """Keeps each layer's recorded share of the prompt, by normalised score.

    Unlike `FixedMask`, it fits prompts of any length and includes the cost of selection.

    Attributes:
        shares: one number in [0, 1] per layer, of all tokens, rounded to the nearest count,
            including the last token, which is always kept: a replayed share is the recorded one.
    """

    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        per_row("shares", self.shares)

    def keep(self, scores: Scores, layer: int) -> Tensor:
        if layer >= len(self.shares):
            raise ConfigError(
                "shares", f"{len(self.shares)} layers", f"the model has a layer {layer}"
            )
        last_B1 = scores.once(
            "last",
            scores.valid,
            make=lambda: scores.valid.long().cumsum(-1).argmax(-1, keepdim=True),
        )
        led = replace(scores, mass=scores.mass.scatter(1, last_B1, float("inf")))
        count = (self.shares[layer] * scores.lengths.double()).round().long()
        return led.best(count.clamp(min=1))

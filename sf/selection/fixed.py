"""Replay of a recorded selection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from sf.errors import ConfigError
from sf.selection.policy import Policy
from sf.selection.scores import Scores

__all__ = ["FixedMask"]


@dataclass(frozen=True)
class FixedMask(Policy):
    """Keeps the tokens marked in `kept`: one bool (B, L) per layer, as a trace records it.

    L counts the padded prompt's columns. Wider prompts are treated as padded further on the left,
    narrower ones as padded less, so a set recorded in one batch can be replayed in another.
    """

    needs_scores: ClassVar[bool] = False

    kept: Sequence[Tensor] | Tensor = ()

    def __post_init__(self) -> None:
        if len(self.kept) == 0 or any(mask.ndim != 2 for mask in self.kept):
            raise ConfigError(
                "kept",
                [tuple(mask.shape) for mask in self.kept],
                "one bool tensor (batch, prompt) per layer",
                "use trace.kept",
            )

    def keep(self, scores: Scores, layer: int) -> Tensor:
        if layer >= len(self.kept):
            raise ConfigError("kept", f"{len(self.kept)} layers", f"the model has a layer {layer}")
        kept_BL = self.kept[layer].to(scores.valid.device, non_blocking=True).bool()
        batch, width = scores.valid.shape
        if batch % kept_BL.shape[0]:
            raise ConfigError("kept", f"{kept_BL.shape[0]} rows", f"the batch has {batch} rows")
        kept_BL = kept_BL.repeat_interleave(batch // kept_BL.shape[0], dim=0)
        extra = kept_BL.shape[1] - width
        if extra > 0:
            if bool(kept_BL[:, :extra].any()):
                raise ConfigError(
                    "kept",
                    f"{kept_BL.shape[1]} columns",
                    f"the prompt has {width}, and tokens left of it are kept",
                    "replay on the prompt it was recorded on",
                )
            return kept_BL[:, extra:]
        padded = scores.valid.new_zeros(batch, width)
        padded[:, -extra:] = kept_BL
        return padded

"""VideoNSA (arXiv 2510.02295): native sparse attention for visual tokens, dense for text."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sf.baselines.method import Hyperparameter, Method
from sf.errors import ConfigError

if TYPE_CHECKING:
    from sf.attention import Trace

__all__ = ["VideoNSA"]


@dataclass(frozen=True)
class VideoNSA(Method):
    """Visual tokens read visual tokens by NSA; all other tokens read everything before them.

    `sf.attention.blocks.videonsa` says what is the paper's, what the authors' code's and where it
    differs. It has weights of its own: only checkpoints of the objective `videonsa` run with it,
    under the settings of their training except the hyperparameter. A prompt without visual tokens
    is dense, and so is decoding.

    Attributes:
        top_n: blocks that the selected branch reads; 0: as trained.
        token_ratio: the token ratio of every prompt's visual tokens among themselves, instead of a
            number of blocks; 0: none.
    """

    decodes_densely: ClassVar[bool] = True
    name: ClassVar[str] = "videonsa"
    text: ClassVar[str] = "NSA among visual tokens, dense attention of text to everything"
    paper: ClassVar[str] = "2510.02295 and the authors' code"
    counts: ClassVar[str] = (
        "tokens whose dense attention reads as many entries as the queries do: visual ones as in "
        "nsa, text all earlier tokens"
    )
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter(
        "top_n", 0, high=65536, low_allowed=True, whole=True
    )

    top_n: float = 0
    token_ratio: float = 0

    def apply(self, model: Any) -> AbstractContextManager[Trace]:
        from sf.attention.blocks import Replacement, VideoNsaAttention
        from sf.attention.trained import trained_attention

        attention = trained_attention(model.config)
        if not isinstance(attention, VideoNsaAttention):
            rule = "has no VideoNSA weights: the method is trained, not free of training"
            raise ConfigError("model", type(model).__name__, rule, "train it: objective videonsa")
        if self.top_n:
            attention = replace(attention, top_n=int(self.top_n), token_ratio=0.0)
        if self.token_ratio:
            attention = replace(attention, token_ratio=self.token_ratio)
        return Replacement(model, attention)

    def at_point(self, retention_p: float) -> Self:
        """Visual tokens of every prompt at this token ratio."""
        return replace(self, token_ratio=retention_p)

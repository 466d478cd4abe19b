"""Methods whose gated branches need weights of their own: NSA and VideoNSA."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sf.baselines.method import Hyperparameter, Method
from sf.errors import ConfigError

if TYPE_CHECKING:
    from sf.attention import Trace

__all__ = ["GatedBlocks"]


@dataclass(frozen=True)
class GatedBlocks(Method):
    """Compressed, selected and sliding-window attention, added under learnt gates.

    Only checkpoints of the objective with the method's name run with it, under the settings of
    their training except the hyperparameter.

    Attributes:
        top_n: blocks that the selected branch reads; 0: as trained.
        token_ratio: of every prompt, instead of a number of blocks; 0: none.
    """

    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter(
        "top_n", 0, high=65536, low_allowed=True, whole=True
    )

    top_n: float = 0
    token_ratio: float = 0

    def apply(self, model: Any) -> AbstractContextManager[Trace]:
        from sf.attention.blocks import Replacement
        from sf.attention.trained import BLOCKS, trained_attention

        attention: Any = trained_attention(model.config)
        if not isinstance(attention, BLOCKS[self.name]):
            rule = f"has no weights of {self.name}: the method is trained, not free of training"
            remedy = f"train it: objective {self.name}"
            raise ConfigError("model", type(model).__name__, rule, remedy)
        if self.top_n:
            attention = replace(attention, top_n=int(self.top_n), token_ratio=0.0)
        if self.token_ratio:
            attention = replace(attention, token_ratio=self.token_ratio)
        return Replacement(model, attention)

    def at_point(self, retention_p: float) -> Self:
        """Every prompt at this token ratio."""
        return replace(self, token_ratio=retention_p)

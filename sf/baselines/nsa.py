"""NSA (arXiv 2502.11089): native sparse attention."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sf.baselines.method import Hyperparameter, Method
from sf.errors import ConfigError

if TYPE_CHECKING:
    from sf.attention import Trace

__all__ = ["NSA"]


@dataclass(frozen=True)
class NSA(Method):
    """Compressed, selected and sliding-window attention, added under learnt gates.

    o = sum of g_c attention(q, K_c, V_c) over the branches (eqs. 5-12); `sf.attention.blocks.nsa`
    says where it differs from the paper. It has weights of its own: only checkpoints of the
    objective `nsa` run with it, under the settings of their training except the hyperparameter.

    Attributes:
        top_n: blocks that the selected branch reads, at least 3; 0: as trained.
        token_ratio: the token ratio of every prompt, instead of a number of blocks; 0: none.
    """

    name: ClassVar[str] = "nsa"
    text: ClassVar[str] = "compressed, selected and sliding-window attention under learnt gates"
    paper: ClassVar[str] = "2502.11089 eqs. (5)-(12)"
    counts: ClassVar[str] = (
        "tokens whose dense attention reads as many entries as the queries do: selected or near "
        "keys, and compressed ones"
    )
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter(
        "top_n", 0, high=65536, low_allowed=True, whole=True
    )

    top_n: float = 0
    token_ratio: float = 0

    def apply(self, model: Any) -> AbstractContextManager[Trace]:
        from sf.attention.blocks import NsaAttention, Replacement
        from sf.attention.trained import trained_attention

        attention = trained_attention(model.config)
        if not isinstance(attention, NsaAttention):
            rule = "has no NSA weights: the method is trained, not free of training"
            raise ConfigError("model", type(model).__name__, rule, "train it: objective nsa")
        if self.top_n:
            attention = replace(attention, top_n=int(self.top_n), token_ratio=0.0)
        if self.token_ratio:
            attention = replace(attention, token_ratio=self.token_ratio)
        return Replacement(model, attention)

    def at_point(self, retention_p: float) -> Self:
        """Every prompt at this token ratio."""
        return replace(self, token_ratio=retention_p)

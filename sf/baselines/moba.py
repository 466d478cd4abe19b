"""MoBA (arXiv 2502.13189): mixture of block attention."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sf.baselines.method import Hyperparameter, Method

if TYPE_CHECKING:
    from sf.attention import Trace

__all__ = ["MoBA"]


@dataclass(frozen=True)
class MoBA(Method):
    """Each query reads `top_k` blocks of keys: its own, and those with the closest mean key.

    s_i = <q, mean(K of block i)> (eqs. 2-6), per head, causally; `sf.attention.blocks.moba`. A
    trained method: all settings but the hyperparameter are the checkpoint's; on weights not
    trained with it (with blocks of 512) it only shows what is lost. Decoding chooses in the same
    way and keeps the whole KV cache (the paper switches to full attention there).

    Attributes:
        top_k: blocks a query reads; 0: as the checkpoint was trained, else 3.
        token_ratio: the token ratio of every prompt, instead of a number of blocks; 0: none.
    """

    name: ClassVar[str] = "moba"
    text: ClassVar[str] = "each query reads the blocks of keys whose mean is closest to it"
    paper: ClassVar[str] = "2502.13189 eqs. (2)-(6)"
    counts: ClassVar[str] = "tokens whose dense attention reads as many keys as the queries do"
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter(
        "top_k", 0, high=65536, low_allowed=True, whole=True
    )

    top_k: float = 0
    token_ratio: float = 0

    def apply(self, model: Any) -> AbstractContextManager[Trace]:
        from sf.attention.blocks import MobaAttention, Replacement
        from sf.attention.trained import trained_attention

        recorded = trained_attention(model.config)
        attention = recorded if isinstance(recorded, MobaAttention) else MobaAttention()
        if self.top_k:
            attention = replace(attention, top_k=int(self.top_k), token_ratio=0.0)
        if self.token_ratio:
            attention = replace(attention, token_ratio=self.token_ratio)
        return Replacement(model, attention)

    def at_point(self, retention_p: float) -> Self:
        """Every prompt at this token ratio."""
        return replace(self, token_ratio=retention_p)

"""ZipVL (arXiv 2410.08584): top-p token-sparse attention at prefill, pruned KV cache."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sf.attention import Trace, sparsify
from sf.baselines.method import Hyperparameter, Method
from sf.selection import TopP

__all__ = ["ZipVL"]


@dataclass(frozen=True)
class ZipVL(Method):
    """`sf.selection.TopP` in every layer; what Sparsity Forcing trains and runs under.

    Attributes:
        p: share of the probes' attention that the kept tokens hold, in (0, 1].
    """

    text: ClassVar[str] = "per layer, the tokens that hold a share p of the attention"
    paper: ClassVar[str] = "2410.08584; 2504.18579 eq. (3)"
    counts: ClassVar[str] = (
        "tokens that take part in a layer's prefill attention and stay in its KV"
    )
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter("p", 0.975, dense=1.0)

    p: float = 0.975

    def apply(self, model: nn.Module) -> AbstractContextManager[Trace]:
        return sparsify(model, TopP(p=self.p))

"""The selectors of the paper's Table 4 in the place of top-p; all else is as in ZipVL."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sf.attention import Trace, sparsify
from sf.baselines.method import Hyperparameter, Method
from sf.selection import Threshold, TopK

__all__ = ["ThresholdTokens", "TopKTokens"]

_COUNTS = "tokens that take part in a layer's prefill attention and stay in its KV"


@dataclass(frozen=True)
class TopKTokens(Method):
    """`sf.selection.TopK` in every layer.

    Attributes:
        ratio: share of the prompt that each layer keeps, in (0, 1]; 0.25 is Table 4's.
    """

    text: ClassVar[str] = "per layer, a fixed share of the tokens"
    paper: ClassVar[str] = "2504.18579 table 4"
    counts: ClassVar[str] = _COUNTS
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter("ratio", 0.25, dense=1.0)

    ratio: float = 0.25

    def apply(self, model: nn.Module) -> AbstractContextManager[Trace]:
        return sparsify(model, TopK(ratio=self.ratio))


@dataclass(frozen=True)
class ThresholdTokens(Method):
    """`sf.selection.Threshold` in every layer; the paper gives neither formula nor value.

    Attributes:
        threshold: least mean attention weight of a kept token, in [0, 1]. The default is ours.
    """

    text: ClassVar[str] = "per layer, the tokens whose mean attention weight is large enough"
    paper: ClassVar[str] = "2504.18579 table 4 (formula: ours)"
    counts: ClassVar[str] = _COUNTS
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter(
        "threshold", 0.001, low_allowed=True, rises=False, dense=0.0
    )

    threshold: float = 0.001

    def apply(self, model: nn.Module) -> AbstractContextManager[Trace]:
        return sparsify(model, Threshold(value=self.threshold))

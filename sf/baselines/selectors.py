"""Token selectors: ZipVL's top-p, and the alternatives in the paper's Table 4."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import nn

from sf.attention import Trace, sparsify
from sf.baselines.method import Hyperparameter, Method
from sf.published import INFERENCE_RETENTION_P
from sf.selection import Policy, Threshold, TopK, TopP

__all__ = ["Selection", "ThresholdTokens", "TopKTokens", "ZipVL"]


@dataclass(frozen=True)
class Selection(Method):
    """A method that is a policy of `sf.selection`."""

    counts: ClassVar[str] = (
        "tokens that take part in a layer's prefill attention and stay in its KV"
    )
    decodes_densely: ClassVar[bool] = True

    @abstractmethod
    def policy(self, *, whole_kv: bool = False) -> Policy:
        """The selector; with `whole_kv` the cache keeps every token."""

    def apply(self, model: nn.Module) -> AbstractContextManager[Trace]:
        return sparsify(model, self.policy())


@dataclass(frozen=True)
class ZipVL(Selection):
    """`sf.selection.TopP` in every layer; what Sparsity Forcing trains and runs under.

    Attributes:
        retention_p: share of the probes' attention that the kept tokens receive, in (0, 1].
    """

    name: ClassVar[str] = "zipvl"
    text: ClassVar[str] = "per layer, the tokens that hold a share p of the attention"
    paper: ClassVar[str] = "2410.08584; 2504.18579 eq. (3)"
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter(
        "retention_p", INFERENCE_RETENTION_P, dense=1.0
    )

    retention_p: float = INFERENCE_RETENTION_P

    def policy(self, *, whole_kv: bool = False) -> Policy:
        return TopP(p=self.retention_p, whole_kv=whole_kv)


@dataclass(frozen=True)
class TopKTokens(Selection):
    """`sf.selection.TopK` in every layer.

    Attributes:
        ratio: share of the prompt that each layer keeps, in (0, 1]; 0.25 is Table 4's.
    """

    name: ClassVar[str] = "top_k"
    text: ClassVar[str] = "per layer, a fixed share of the tokens"
    paper: ClassVar[str] = "2504.18579 table 4"
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter("ratio", 0.25, dense=1.0)

    ratio: float = 0.25

    def policy(self, *, whole_kv: bool = False) -> Policy:
        return TopK(ratio=self.ratio, whole_kv=whole_kv)

    def at_point(self, retention_p: float) -> Self:
        """The share of the tokens itself."""
        return replace(self, ratio=retention_p)


@dataclass(frozen=True)
class ThresholdTokens(Selection):
    """`sf.selection.Threshold` in every layer; the paper gives neither formula nor value.

    Attributes:
        threshold: least mean attention weight of a kept token, in [0, 1]. The default is ours.
    """

    name: ClassVar[str] = "threshold"
    text: ClassVar[str] = "per layer, the tokens whose mean attention weight is large enough"
    paper: ClassVar[str] = "2504.18579 table 4 (formula: ours)"
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter(
        "threshold", 0.001, low_allowed=True, rises=False, dense=0.0
    )

    threshold: float = 0.001

    def policy(self, *, whole_kv: bool = False) -> Policy:
        return Threshold(value=self.threshold, whole_kv=whole_kv)

    def at_point(self, retention_p: float) -> Self:
        """A threshold of 1 - retention_p, so that 1 keeps everything."""
        return replace(self, threshold=1 - retention_p)

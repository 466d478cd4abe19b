"""The settings of distillation from full attention (`sf.training.teacher`), without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sf.fields import Section, TokenRatio

__all__ = ["DistilSettings"]


class DistilSettings(Section):
    """What is learnt from the teacher, and how strongly fewer tokens are asked for."""

    target_token_ratio: TokenRatio = Field(
        description="target at the largest retention_p, on the training questions"
    )
    hidden_weight: Annotated[float, Field(ge=0)] = Field(
        description="weight of the relative squared distance to the teacher's "
        "last hidden states; the KL divergence from its distribution "
        "has weight 1"
    )
    sparsity_weight: Annotated[float, Field(gt=0)] = Field(
        description="initial weight of the sparsity term; later adjusted to target_token_ratio"
    )
    sparsity_measure: Literal["effective", "tail"] = Field(
        description="effective number of tokens, or attention mass outside the target's tokens"
    )
    dual_rate: Annotated[float, Field(ge=0)] = Field(
        description="change of the weight's logarithm over a run, times log(ratio / target)"
    )

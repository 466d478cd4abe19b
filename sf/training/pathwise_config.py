"""The settings of the differentiable sparsity term (`sf.training.pathwise`), without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sf.fields import Section, TokenRatio

__all__ = ["SparsityTermSettings", "TargetRatio"]


class TargetRatio(Section):
    """A target token ratio, for which a dual variable adjusts the term's weight."""

    token_ratio: TokenRatio = Field(description="target token ratio at the largest retention_p")
    dual_rate: Annotated[float, Field(gt=0)] = Field(
        description="change of the weight's logarithm over a run, times log(ratio / target)"
    )


class SparsityTermSettings(Section):
    """The weight of the term (`sf.training.sparsity_weight`)."""

    weight: Annotated[float, Field(ge=0)] = Field(description="weight of the term in the loss")
    gate: bool = Field(description="apply the term to correct rollouts only")
    layers: Literal["even", "deeper", "fuller"] = Field(
        description="weight of the layers: equal, by depth, or by their current token ratio"
    )
    schedule: Literal["constant", "rising", "falling"] = Field(
        description="the weight over the run: constant, rising linearly from 0, "
        "or falling linearly to 0"
    )
    target: TargetRatio | None = Field(None, description="a target token ratio; absent: none")

    @model_validator(mode="after")
    def _weight_of_a_target(self) -> SparsityTermSettings:
        if self.target is not None and self.schedule != "constant":
            raise ValueError("target sets the weight itself and needs schedule constant")
        if self.target is not None and not self.weight:
            raise ValueError("target multiplies weight, which must be above 0")
        return self

"""The settings of the differentiable sparsity term (`sf.training.pathwise`), without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sf.fields import RetentionP, Section

__all__ = ["SparsityTermSettings", "TargetRatio"]


class TargetRatio(Section):
    """A target token ratio, for which a dual variable adjusts the term's weight."""

    token_ratio: RetentionP = Field(description="to reach at the largest retention_p")
    dual_rate: Annotated[float, Field(gt=0)] = Field(
        description="change of the weight's logarithm over a run, times log(ratio / target)"
    )


class SparsityTermSettings(Section):
    """The weight of the term (`sf.training.sparsity_weight`)."""

    weight: Annotated[float, Field(ge=0)] = Field(description="of the term in the loss")
    gate: bool = Field(description="the term counts for right rollouts only")
    layers: Literal["even", "deeper", "fuller"] = Field(
        description="layers alike, by depth, or by how many tokens they keep now"
    )
    schedule: Literal["constant", "rising", "falling"] = Field(
        description="the weight over the run: constant, linear from 0, or linear to 0"
    )
    target: TargetRatio | None = Field(None, description="a token ratio to reach; absent: none")

    @model_validator(mode="after")
    def _weight_of_a_target(self) -> SparsityTermSettings:
        if self.target is not None and self.schedule != "constant":
            raise ValueError("target sets the weight itself and needs schedule constant")
        if self.target is not None and not self.weight:
            raise ValueError("target multiplies weight, which must be above 0")
        return self

"""The settings of `sf.training.trainer`: rollouts and GRPO; imported without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sf.fields import Fraction, Positive, RetentionP, Section

__all__ = ["Grpo", "GrpoSettings", "Rollouts", "Uniform"]


class Uniform(Section):
    """Thresholds drawn from U(low, high), as in the text of the paper's first version."""

    low: Fraction = Field(description="lower end, exclusive")
    high: RetentionP = Field(description="upper end")

    @model_validator(mode="after")
    def _rising(self) -> Uniform:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        return self


class Rollouts(Section):
    """The sparsity of each rollout of a question (`sf.training.retention_schedule`).

    Tables 4 and 5 of the paper sweep these settings.
    """

    group_size: Positive = Field(description="rollouts per question")
    rollout_selector: Literal["top_p", "top_k", "threshold"] = Field(
        description="meaning of retention_p: share of the attention mass, share "
        "of the tokens, or minimum attention weight"
    )
    retention_p: Annotated[list[RetentionP], Field(min_length=1)] | Uniform = Field(
        description="retention thresholds: a list that the rollouts of a group "
        "use in turn, or {low, high} of a uniform distribution"
    )

    @model_validator(mode="after")
    def _values_fit_the_group(self) -> Rollouts:
        if isinstance(self.retention_p, list) and self.group_size % len(self.retention_p):
            raise ValueError(
                f"group_size {self.group_size} must be a multiple of the "
                f"{len(self.retention_p)} values of retention_p; give as many values, or "
                "{low, high}"
            )
        return self


class GrpoSettings(Section):
    """Group-relative policy optimisation with the paper's reward."""

    beta: Annotated[float, Field(ge=0)] = Field(
        description="weight of KL(policy || reference); 0: no reference"
    )
    clip_epsilon: Annotated[float, Field(gt=0)] = Field(
        description="range of the clipped surrogate"
    )
    temperature: Annotated[float, Field(gt=0)] = Field(description="sampling temperature")
    sampling_top_p: Annotated[float, Field(gt=0, le=1)] = Field(
        description="nucleus sampling: probability mass of the most likely tokens; 1: all tokens"
    )
    reward_gate: bool = Field(
        description="C: efficiency counts only if a rollout of the group is correct"
    )
    reward_correctness: Literal["binary", "fractional"] = Field(
        description="binary: 0 or 1 by correctness_cutoff; fractional: the score "
        "of the problem type"
    )
    reward_latency_weight: Annotated[float, Field(ge=0)] = Field(
        description="weight of 1 - modelled latency ratio relative to 1 - token "
        "ratio (table 6); 0: tokens only"
    )


class Grpo(Rollouts, GrpoSettings):
    """An objective whose answers are sampled and rewarded in groups."""

    @model_validator(mode="after")
    def _compared_in_groups(self) -> Grpo:
        if self.group_size < 2:
            raise ValueError(
                f"group_size {self.group_size} must be 2 or more: rewards are relative"
            )
        return self

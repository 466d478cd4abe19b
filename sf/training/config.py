"""The parameters of training; imported by `sf.config`, without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sf.fields import Fraction, Positive, RetentionP, Section

__all__ = ["Train"]


class Train(Section):
    """Sparsity Forcing (GRPO) and the objectives beside it.

    Tables 4 to 6 of the paper are sweeps of these: `rollout_selector` (4), `rollout_draw`,
    `rollout_p`, `rollout_range` and `group_size` (5), `reward_latency_weight` (6).
    """

    group_size: Annotated[int, Field(ge=2, description="rollouts of a question")]
    rollout_selector: Literal["top_p", "top_k", "threshold"] = Field(
        description="what a level means: share of the mass, share of the tokens, least weight"
    )
    rollout_draw: Literal["grid", "uniform"] = Field(
        description="levels: rollout_p in turn, or drawn from rollout_range (v1)"
    )
    rollout_p: list[RetentionP] = Field(min_length=1, description="levels when drawn as grid")
    rollout_range: Annotated[list[Fraction], Field(min_length=2, max_length=2)] = Field(
        description="lowest and highest level when drawn uniformly"
    )
    short_share: Fraction = Field(
        description="of the rows, how many are asked for a bare answer, without tags"
    )
    train_steps: Positive
    questions_per_step: Positive
    learning_rate: Annotated[float, Field(gt=0)]
    lr_schedule: Literal["cosine", "linear", "constant"]
    weight_decay: Annotated[float, Field(ge=0)]
    beta: Annotated[float, Field(ge=0)]
    clip_epsilon: Annotated[float, Field(gt=0)]
    max_grad_norm: Annotated[float, Field(gt=0)]
    temperature: Annotated[float, Field(gt=0)]
    reward_gate: bool = Field(description="C: efficiency counts only if a rollout was right")
    reward_correctness: Literal["binary", "fractional"] = Field(
        description="0 or 1 by correctness_cutoff, or the problem type's own score"
    )
    reward_latency_weight: Annotated[float, Field(ge=0)] = Field(
        description="of 1 - modelled latency ratio beside 1 - token ratio; 0: tokens alone"
    )
    pathwise_weight: Annotated[float, Field(ge=0)] = Field(
        description="of the differentiable sparsity term; objective pathwise only"
    )
    pathwise_gate: bool = Field(description="the term counts for right rollouts only")
    pathwise_layers: Literal["even", "deeper", "fuller"] = Field(
        description="layers alike, by depth, or by how many tokens they keep now"
    )
    pathwise_schedule: Literal["constant", "rising", "falling"] = Field(
        description="the weight over the run: linear from 0, or linear to 0"
    )
    pathwise_target: Fraction = Field(
        description="token ratio to reach at the largest level by a dual variable; 0: none"
    )
    pathwise_dual_rate: Annotated[float, Field(gt=0)] = Field(
        description="change of the weight's logarithm over a run, times log(ratio / target)"
    )
    sharpness_kind: Literal["entropy", "linf"] = Field(
        description="regulariser over attention rows; objective sharpness only"
    )
    sharpness_weight: Annotated[float, Field(ge=0)] = Field(description="objective sharpness only")
    sharding: Literal["none", "fsdp"] = Field(
        description="weights and optimiser state whole on each rank, or divided over the ranks"
    )
    lora_rank: Annotated[int, Field(ge=0, description="of adapters; 0: all weights are trained")]
    lora_alpha: Positive = Field(description="scales adapters by alpha / rank")
    moba_top_k: Positive = Field(description="blocks a query reads; objective moba only")
    moba_block: Positive = Field(description="tokens of a block; objective moba only")
    nsa_top_n: Annotated[int, Field(ge=3)] = Field(
        description="blocks of the selected branch; objective nsa only"
    )
    nsa_compress_block: Positive = Field(description="tokens; objective nsa only")
    nsa_compress_stride: Positive = Field(
        description="tokens; divides the two kinds of blocks; objective nsa only"
    )
    nsa_select_block: Positive = Field(description="tokens; objective nsa only")
    nsa_window: Positive = Field(description="tokens; objective nsa only")
    collapse_patience: Annotated[int, Field(ge=0)] = Field(
        description="steps over which a collapse is judged; 0: no early stop"
    )
    collapse_accuracy: Fraction = Field(
        description="share of the first steps' accuracy below which the run ends; 0: never"
    )
    collapse_token_ratio: Fraction = Field(description="the same of the token ratio")
    collapse_entropy: Fraction = Field(description="the same of the answers' entropy")
    train_vision: bool = Field(description="also train the vision tower; else it is frozen")
    rollouts_per_forward: Positive = Field(description="micro-batch of one device, in rollouts")
    gradient_checkpointing: bool
    save_every: Positive
    log_every: Positive

    @model_validator(mode="after")
    def _levels_fit(self) -> Train:
        low, high = self.rollout_range
        if low >= high:
            raise ValueError(f"rollout_range must rise: {low} is not below {high}")
        grid = len(self.rollout_p)
        if self.rollout_draw == "grid" and self.group_size % grid:
            raise ValueError(
                f"group_size {self.group_size} must be a multiple of the {grid} values of "
                "rollout_p; give as many values, or set rollout_draw to uniform"
            )
        return self

    @model_validator(mode="after")
    def _target_can_be_reached(self) -> Train:
        if not self.pathwise_target:
            return self
        if self.rollout_draw != "grid":
            raise ValueError(
                "pathwise_target is measured at the largest value of rollout_p and needs "
                "rollout_draw grid"
            )
        if self.rollout_selector == "top_k":
            raise ValueError("pathwise_target has no use with top_k: rollout_p is the ratio")
        if self.pathwise_schedule != "constant":
            raise ValueError("pathwise_target sets the weight itself: pathwise_schedule constant")
        if not self.pathwise_weight:
            raise ValueError("pathwise_target multiplies pathwise_weight, which must be above 0")
        return self

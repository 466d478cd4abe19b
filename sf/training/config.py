"""The settings of training that all objectives share; imported without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sf.fields import Fraction, Positive, Section

__all__ = ["Collapse", "Lora", "Train"]


class Lora(Section):
    """Low-rank adapters on the decoder's linear layers."""

    rank: Positive = Field(description="rank of the adapters")
    alpha: Positive = Field(description="scales adapters by alpha / rank")


class Collapse(Section):
    """Early stopping of a run whose metrics fall far below those of its first steps."""

    patience: Positive = Field(description="steps over which the means are compared")
    accuracy: Fraction = Field(
        description="the run ends below this share of the first steps' accuracy; 0: never"
    )
    token_ratio: Fraction = Field(description="the same for the token ratio")
    entropy: Fraction = Field(description="the same for the answers' entropy")


class Train(Section):
    """Training settings shared by all objectives."""

    data_sources: list[str] = Field(
        default_factory=list,
        description="train rows with this data_source or top media folder; empty for all",
    )
    short_share: Fraction = Field(
        description="share of the rows that ask for a bare answer, without tags"
    )
    steps: Positive = Field(description="optimiser steps")
    questions_per_step: Positive = Field(description="questions of one step, over all devices")
    learning_rate: Annotated[float, Field(gt=0)] = Field(description="peak learning rate of AdamW")
    lr_schedule: Literal["cosine", "linear", "constant"] = Field(
        description="learning rate schedule"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(description="weight decay of AdamW")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        description="maximum gradient norm (clipping)"
    )
    train_vision: bool = Field(description="also train the vision tower; else it is frozen")
    sharding: Literal["none", "fsdp"] = Field(
        description="none: whole weights and optimiser state on each rank; fsdp: "
        "sharded over the ranks"
    )
    lora: Lora | None = Field(None, description="adapters; absent: all weights are trained")
    collapse: Collapse | None = Field(None, description="early stopping; absent: none")
    rollouts_per_forward: Positive = Field(description="micro-batch of one device, in rollouts")
    gradient_checkpointing: bool = Field(
        description="recompute activations in the backward pass instead of storing them"
    )
    save_every: Positive = Field(description="steps between two checkpoints")
    log_every: Positive = Field(description="steps between two logged entries")

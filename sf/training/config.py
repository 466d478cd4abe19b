"""The settings of training that all objectives share; imported without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sf.fields import Fraction, Positive, Section

__all__ = ["Collapse", "Lora", "Train"]


class Lora(Section):
    """Low-rank adapters on the decoder's linear layers."""

    rank: Positive = Field(description="of the adapters")
    alpha: Positive = Field(description="scales adapters by alpha / rank")


class Collapse(Section):
    """Early stopping of a run whose metrics fall far below those of its first steps."""

    patience: Positive = Field(description="steps over which the means are compared")
    accuracy: Fraction = Field(
        description="share of the first steps' accuracy below which the run ends; 0: never"
    )
    token_ratio: Fraction = Field(description="the same share of the token ratio")
    entropy: Fraction = Field(description="the same share of the answers' entropy")


class Train(Section):
    """Training settings shared by all objectives."""

    short_share: Fraction = Field(
        description="share of the rows that ask for a bare answer, without tags"
    )
    steps: Positive = Field(description="optimiser steps")
    questions_per_step: Positive = Field(description="questions of one step, over all devices")
    learning_rate: Annotated[float, Field(gt=0)] = Field(description="of AdamW, at its highest")
    lr_schedule: Literal["cosine", "linear", "constant"] = Field(
        description="how the learning rate falls over the run"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(description="of AdamW")
    max_grad_norm: Annotated[float, Field(gt=0)] = Field(
        description="norm to which gradients are clipped"
    )
    train_vision: bool = Field(description="also train the vision tower; else it is frozen")
    sharding: Literal["none", "fsdp"] = Field(
        description="weights and optimiser state whole on each rank, or divided over the ranks"
    )
    lora: Lora | None = Field(None, description="adapters; absent: all weights are trained")
    collapse: Collapse | None = Field(None, description="the early stop; absent: none")
    rollouts_per_forward: Positive = Field(description="micro-batch of one device, in rollouts")
    gradient_checkpointing: bool = Field(
        description="compute activations again in the backward pass instead of storing them"
    )
    save_every: Positive = Field(description="steps between two checkpoints")
    log_every: Positive = Field(description="steps between two logged entries")

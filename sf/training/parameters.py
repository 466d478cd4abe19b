"""The parameters of a training run; imported without torch."""

from __future__ import annotations

from pydantic import Field

from sf.fields import Section, Seed
from sf.sections import Answering, Runtime, Vision
from sf.training.config import Train
from sf.training.objectives import Objective

__all__ = ["RunParameters"]


class RunParameters(Section):
    """The settings of one training run."""

    model: str = Field(description="name of the base model")
    row: str = Field(description="name of the trained row in the tables")
    seed: Seed = Field(description="seed of the data order, sampling and all other random choices")
    objective: Objective = Field(description="the training objective with its settings")
    train: Train
    answering: Answering
    vision: Vision
    runtime: Runtime

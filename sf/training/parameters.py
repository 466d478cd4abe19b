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
    row: str = Field(description="name of the row of the tables that is trained")
    seed: Seed = Field(
        description="of the data order, the sampling and everything else that is random"
    )
    objective: Objective = Field(description="what is trained for, with its own settings")
    train: Train
    answering: Answering
    vision: Vision
    runtime: Runtime

"""What a training run is told; imported without torch."""

from __future__ import annotations

from sf.config import Answering, Objective, Runtime, Train, Vision

__all__ = ["RunParameters"]


class RunParameters(Vision, Runtime, Answering, Train):
    """The sections that a training run uses.

    Attributes:
        model: name of the base model.
        objective: what is trained for.
        seed: of the data order, the sampling and everything else that is random.
    """

    model: str
    objective: Objective
    seed: int

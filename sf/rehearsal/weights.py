"""The weights of a training run, counted on the assembled model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from sf.rehearsal.shapes import ModelShape
from sf.training.build_trainer import has_reference, prepare_model
from sf.training.cost import RankMemory
from sf.training.parameters import RunParameters

__all__ = ["WeightCounts", "weight_counts"]


@dataclass(frozen=True)
class WeightCounts:
    """Weights of the trained model, including added modules and adapters.

    Attributes:
        every: all weights. trained: weights with a gradient.
        memory: their bytes on each rank.
    """

    every: int
    trained: int
    memory: RankMemory


def weight_counts(shape: ModelShape, p: RunParameters, ranks: int = 1) -> WeightCounts:
    """Count the weights on the meta device.

    Args:
        shape: of the base model.
        p: of the training.
        ranks: processes of the job.
    """
    return _counts(shape, p.model_dump_json(include=set(RunParameters.model_fields)), ranks)


@cache
def _counts(shape: ModelShape, parameters: str, ranks: int) -> WeightCounts:
    p = RunParameters.model_validate_json(parameters)
    model: Any = shape.meta()
    with torch.device("meta"):
        model = prepare_model(p, model)[0]
    weights = list(model.parameters())
    trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    memory = RankMemory.of(p, model, ranks, has_reference(p))
    return WeightCounts(sum(weight.numel() for weight in weights), trained, memory)

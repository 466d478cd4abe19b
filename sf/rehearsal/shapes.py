"""The shapes of a study's models, without their weights."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sf.data.hub import parse_hub
from sf.models import build_tiny
from sf.models.load import FAMILIES, load_config
from sf.profiling.models import class_and_config, published
from sf.sections import BaseModelSpec

__all__ = ["ModelShape", "shape_of"]

_TINY_VOCABULARY = 2048  # the largest vocabulary of `sf.models.tokenizer.train_tokenizer`


@dataclass(frozen=True)
class ModelShape:
    """A model's class and configuration.

    Attributes:
        build: creates the model from the configuration.
        config: transformers' configuration.
        origin: source of the sizes.
        is_published: whether it is a base model as published, rather than one of our checkpoints.
    """

    build: Any
    config: Any
    origin: str
    is_published: bool = False

    def new(self) -> Any:
        """A new model. Its configuration is its own: training and decoding change it."""
        return self.build(deepcopy(self.config))

    def meta(self) -> Any:
        """A new model on the meta device, in float32: sizes without memory."""
        with torch.device("meta"):
            return self.new()

    @property
    def num_parameters(self) -> int:
        """Parameters of the model including the vision tower; tied weights count once."""
        return _num_parameters(self)

    def __hash__(self) -> int:
        return hash((self.origin, self.build))


def shape_of(spec: BaseModelSpec) -> ModelShape | None:
    """The shape of a base model.

    Args:
        spec: of the parameters. A hub's model is one of `sf.profiling.models.SHAPES`; a folder's
            configuration is read; a model trained from scratch has the tiny one's sizes.

    Returns:
        None for a hub model with unknown sizes.

    Raises:
        DataError: a folder without a configuration.
    """
    if spec.source == "scratch":
        model, _ = build_tiny(spec.family, ["a b", "a b"], seed=0)
        model.config.get_text_config().vocab_size = _TINY_VOCABULARY
        return ModelShape(FAMILIES[spec.family], model.config, f"the tiny {spec.family}")
    if spec.source.startswith("hub:"):
        name = parse_hub(spec.source).name
        shape = published(name)
        if shape is None:
            return None
        return ModelShape(*class_and_config(shape), f"config.json of {name}", is_published=True)
    config = load_config(Path(spec.source))
    return ModelShape(FAMILIES[config.model_type], config, f"config.json in {spec.source}")


@cache
def _num_parameters(shape: ModelShape) -> int:
    return sum(weight.numel() for weight in shape.meta().parameters())

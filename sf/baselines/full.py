"""Dense attention, the reference row: the unmodified model."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sf.attention import Trace
from sf.attention.decoder_hooks import Watch
from sf.baselines.method import Method

__all__ = ["Full"]


@dataclass(frozen=True)
class Full(Method):
    """The model's own attention; the trace counts every token in every layer."""

    name: ClassVar[str] = "full"
    text: ClassVar[str] = "dense attention"
    paper: ClassVar[str] = "the model's own"
    counts: ClassVar[str] = "1 by definition"
    hyperparameter: ClassVar[None] = None
    decodes_densely: ClassVar[bool] = True

    def apply(self, model: nn.Module) -> AbstractContextManager[Trace]:
        return Watch(model, Trace())

"""Dense attention, the reference row: the model itself, untouched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from sf.attention import Trace
from sf.baselines.method import Method
from sf.baselines.watch import watching

__all__ = ["Full"]


@dataclass(frozen=True)
class Full(Method):
    """The model's own attention; the trace counts every token in every layer."""

    text: ClassVar[str] = "dense attention"
    paper: ClassVar[str] = "the model's own"
    counts: ClassVar[str] = "1 by definition"
    hyperparameter: ClassVar[None] = None

    @contextmanager
    def apply(self, model: nn.Module) -> Iterator[Trace]:
        trace = Trace()
        with watching(model, trace):
            yield trace

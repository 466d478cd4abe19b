"""What every parameter section is made of; imported by all, imports nothing of this package."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Fraction", "Positive", "RetentionP", "Section"]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
RetentionP = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A group of parameters; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

"""The building blocks of parameter sections; imports nothing from this package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["Fraction", "Name", "Positive", "RetentionP", "Section", "Seed", "TokenRatio", "flat"]


def _plain(name: str) -> str:
    """Check a name, which becomes a folder, a wildcard and a command word in both engines."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name) or "__" in name:
        raise ValueError(
            "a name must consist of the letters a to z, digits, '.', '-' and single '_', and start "
            "with a letter or a digit"
        )
    return name


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
RetentionP = Annotated[float, Field(gt=0.0, le=1.0)]
TokenRatio = Annotated[float, Field(gt=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Name = Annotated[str, AfterValidator(_plain)]


class Section(BaseModel):
    """A group of parameters; unknown keys are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested values by dotted name."""
    leaves: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = value
    return leaves

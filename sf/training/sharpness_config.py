"""The settings of the regularisers in `sf.training.sharpness`; imported without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sf.fields import Section

__all__ = ["SharpnessSettings"]


class SharpnessSettings(Section):
    """The regulariser over attention rows; its form is not published."""

    kind: Literal["entropy", "linf"] = Field(
        description="entropy of a row, or 1 minus its largest weight"
    )
    weight: Annotated[float, Field(gt=0)] = Field(
        description="weight of the regulariser in the loss"
    )

"""The parameters of a base model."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from sf.fields import Section, Seed
from sf.sections import Answering, BaseModelSpec, Runtime, Scratch, Vision

__all__ = ["BaseModelParameters"]


class BaseModelParameters(Section):
    """The parameters that determine a base model."""

    seed: Seed = Field(description="seed of weights, examples and their order")
    base: BaseModelSpec
    scratch: Scratch | None = Field(
        None, description="training of a base model with source 'scratch'"
    )
    answering: Answering
    vision: Vision
    runtime: Runtime
    data: Path = Field(description="folder of the manifests")

    @model_validator(mode="after")
    def _trained_from_scratch(self) -> BaseModelParameters:
        if (self.base.source == "scratch") != (self.scratch is not None):
            wanted = "needs" if self.scratch is None else "does not use"
            raise ValueError(f"base.source {self.base.source!r} {wanted} the section scratch")
        return self

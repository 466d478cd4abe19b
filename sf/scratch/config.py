"""The parameters of a base model."""

from __future__ import annotations

from pathlib import Path

from sf.sections import Answering, BaseModelSpec, Runtime, Vision

__all__ = ["FromScratch"]


class FromScratch(Vision, Runtime, Answering, BaseModelSpec):
    """What training a base model needs.

    Attributes:
        seed: of weights, examples and their order.
        data: folder of the manifests.
    """

    seed: int
    data: Path

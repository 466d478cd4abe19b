"""Base models: loading of the supported families, and tiny models built from configurations."""

from __future__ import annotations

from sf.models.load import FAMILIES, load_model, load_processor
from sf.models.tiny import build_tiny

__all__ = ["FAMILIES", "build_tiny", "load_model", "load_processor"]

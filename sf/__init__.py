"""Sparsity Forcing: multimodal LLMs that need fewer tokens (arXiv 2504.18579).

Importing the package is cheap: torch is loaded with the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sf import torchvision_shim

torchvision_shim.install()

EXPORTS = {
    "FixedMask": "sf.selection",
    "Threshold": "sf.selection",
    "TopK": "sf.selection",
    "TopP": "sf.selection",
    "sparsify": "sf.attention",
}

__all__ = sorted(EXPORTS)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in EXPORTS:
        return getattr(import_module(EXPORTS[name]), name)
    raise AttributeError(f"module 'sf' has no attribute {name!r}")

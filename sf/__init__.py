"""Sparsity Forcing: multimodal LLMs that answer with fewer tokens (arXiv 2504.18579).

Importing the package is fast: torch is imported on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from sf import torchvision_shim

torchvision_shim.install()

__version__ = "0.1.0"

EXPORTS = {
    "Budget": "sf.attention",
    "FixedMask": "sf.selection",
    "Threshold": "sf.selection",
    "TopK": "sf.selection",
    "TopP": "sf.selection",
    "apply_method": "sf.baselines",
    "load_model": "sf.models",
    "load_processor": "sf.models",
    "sparsify": "sf.attention",
    "supported_models": "sf.models.supported",
}

__all__ = sorted([*EXPORTS, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in EXPORTS:
        return getattr(import_module(EXPORTS[name]), name)
    raise AttributeError(f"module 'sf' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *EXPORTS})

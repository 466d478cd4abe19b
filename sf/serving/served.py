"""The served model and its attention."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sf.attention import Budget
from sf.attention.trained import record_of
from sf.baselines import resolve, resolve_point
from sf.baselines.method import Method
from sf.sections import Vision
from sf.selection import TopP

__all__ = ["Served", "load", "method_of"]


@dataclass(frozen=True)
class Served:
    """A loaded model and its attention method.

    Attributes:
        name: the name for clients.
        model, processor: the checkpoint.
        method: attention method of the prefill.
        vision: bounds of pictures.
    """

    name: str
    model: Any
    processor: Any
    method: Method
    vision: Vision


def method_of(
    source: Any, retention_p: float | None, token_ratio: float | None, full: bool
) -> Method:
    """The attention of a served checkpoint, by default the one that it was trained with.

    Raises:
        ConfigError: several choices, or a value out of range.
        UnsupportedModelError: see `sf.baselines.resolve`.
    """
    from sf.ask import choose_policy

    choose_policy(retention_p, full, token_ratio)  # for its errors
    if full:
        return resolve(source, "full")
    if token_ratio is not None:
        return _keeping(source, token_ratio)
    return resolve(source) if retention_p is None else resolve_point(source, retention_p)


def _keeping(source: Any, token_ratio: float) -> Method:
    """A share of the tokens: by a trained checkpoint's curve, else by top-k."""
    if record_of(source) is None:
        return resolve(source, "top_k", token_ratio)
    policy = Budget(token_ratio).policy(source)
    if isinstance(policy, TopP):
        return resolve_point(source, float(policy.p))  # type: ignore[arg-type]
    return resolve(source, "top_k", token_ratio)


def load(
    checkpoint: str,
    *,
    retention_p: float | None = None,
    token_ratio: float | None = None,
    full: bool = False,
    revision: str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    max_pixels: int | None = None,
) -> Served:
    """Load a checkpoint for serving.

    Raises:
        ConfigError, DataError, EnvironmentFault, UnsupportedModelError: raised before weights are
            read if possible.
    """
    from sf.ask import pick_runtime
    from sf.ask.media import bounds
    from sf.models import load_model, load_processor
    from sf.models.load import load_config

    runtime = pick_runtime(device, dtype)
    vision = bounds("image", max_pixels)
    source = Path(checkpoint) if Path(checkpoint).is_dir() else checkpoint
    method = method_of(load_config(source, revision), retention_p, token_ratio, full)
    processor = load_processor(source, revision=revision)
    model = load_model(source, dtype=runtime.dtype, device=runtime.device, revision=revision)
    name = Path(checkpoint).resolve().name if isinstance(source, Path) else checkpoint
    return Served(name, model, processor, method, vision)

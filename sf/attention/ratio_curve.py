"""A checkpoint's curve of token ratio over p, saved with its configuration.

The text part of config.json contains it under `token_ratio_curve`; `sparsity.json` next to the
weights repeats it. It is valid only for these weights: training removes it and measures again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from sf.atomic_files import read_json, write_text
from sf.attention.trained import SPARSITY_FILE
from sf.errors import DataError

__all__ = ["Curve", "curve_of", "drop_curve", "note_curve"]

FIELD = "token_ratio_curve"

Curve = tuple[tuple[float, float], ...]
"""(retention_p, token ratio) by rising retention_p, both in (0, 1]."""


def curve_of(source: Any) -> Curve:
    """A checkpoint's curve; empty if none was measured.

    Args:
        source: a model, perhaps PEFT-wrapped, its configuration, or a checkpoint's folder.

    Raises:
        DataError: pairs that do not rise within (0, 1], or an unreadable file.
    """
    if isinstance(source, Path):
        return _curve(_text_part(_config(source)).get(FIELD))
    config = getattr(source, "config", source)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    return _curve(getattr(text, FIELD, None))


def drop_curve(model: Any) -> None:
    """Forget the curve of the weights that a model was loaded with."""
    vars(model.config.get_text_config()).pop(FIELD, None)


def note_curve(folder: Path, curve: Sequence[tuple[float, float]]) -> None:
    """Put a measured curve into a checkpoint's config.json and, if it has one, `sparsity.json`.

    Args:
        folder: of the checkpoint.
        curve: (retention_p, token ratio) by rising retention_p. A ratio that falls, by noise, is
            raised to the one before.
    """
    rising: list[list[float]] = []
    for retention_p, ratio in curve:
        rising.append([retention_p, max(ratio, rising[-1][1]) if rising else ratio])
    _curve(rising)
    config = _config(folder)
    _text_part(config)[FIELD] = rising
    _write(folder / "config.json", config)
    beside = folder / SPARSITY_FILE
    if beside.is_file():
        _write(beside, {**read_json(beside), "token_ratio_curve": rising})


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        remedy = "give a folder of a saved model"
        raise DataError("checkpoint", str(folder), f"cannot be read: {error}", remedy) from error
    if not isinstance(config, dict):
        raise DataError("config.json", str(folder), "must contain a JSON object")
    return config


def _text_part(config: dict[str, Any]) -> dict[str, Any]:
    text = config.get("text_config") or config
    assert isinstance(text, dict)
    return text


def _write(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def _curve(points: Any) -> Curve:
    if not points:
        return ()
    try:
        curve = tuple((float(retention_p), float(ratio)) for retention_p, ratio in points)
    except (TypeError, ValueError):
        curve = ((0.0, 0.0),)
    inside = all(0 < value <= 1 for point in curve for value in point)
    pairs = list(pairwise(curve))
    if not inside or any(low[0] >= high[0] or low[1] > high[1] for low, high in pairs):
        rule = "must hold pairs of p and token ratio that rise within (0, 1]"
        raise DataError(f"config.json: {FIELD}", points, rule, "measure it again with `sf curve`")
    return curve

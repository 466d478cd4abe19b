"""The p -> token ratio and accuracy curve of one checkpoint on manifest rows.

Every row is encoded once and answered at every p, so that two points of a curve, and two curves
over the same manifest, can be compared row by row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Unpack

import pandas as pd

from sf.baselines import TRAINED, resolve_point
from sf.evaluation.answer import Answer, Limits, Setting, answers_under
from sf.evaluation.intervals import bootstrap_mean, wilson
from sf.evaluation.resumable_log import ResumableLog
from sf.tables import table_of

if TYPE_CHECKING:
    from sf.data.manifest import Row
    from sf.sections import Vision

__all__ = ["answers_at", "curve_table", "grid_with_dense", "layer_table"]

DENSE = 1.0


def grid_with_dense(grid: Sequence[float]) -> list[float]:
    """The thresholds in ascending order without repeats; dense (retention_p = 1) is among them.

    They are rounded to six significant digits, as in a CSV, so that equal text means equal values.
    """
    return sorted({*(float(f"{retention_p:.6g}") for retention_p in grid), DENSE})


def answers_at(
    model: Any,
    processor: Any,
    rows: Sequence[Row],
    vision: Vision,
    grid: Sequence[float],
    log: ResumableLog[Answer],
    *,
    method: str = TRAINED,
    **limits: Unpack[Limits],
) -> pd.DataFrame:
    """Answer every row at every retention_p, except those already in the log.

    Args:
        model: the checkpoint, on its device.
        processor: its processor.
        rows: manifest rows.
        vision: pixel and frame bounds.
        grid: points of the curve in (0, 1] (`sf.baselines.resolve_point`): for a checkpoint
            that runs under top-p its thresholds.
        log: answers of an earlier run of the same call, to which this one appends.
        method: the method that the checkpoint was trained with, or a method with a `retention_p`.
        **limits: how rows are answered.

    Raises:
        ConfigError: the method has no `retention_p`.
        UnsupportedModelError: it contradicts what the checkpoint was trained with.

    Returns:
        One row per `retention_p` and manifest row, ordered by `retention_p`, then as `rows`;
        columns `retention_p` and the fields of `Answer`.
    """
    model.eval()
    points: dict[Setting, Any] = {
        (float(retention_p),): resolve_point(model, retention_p, method) for retention_p in grid
    }
    answered = answers_under(model, processor, rows, vision, points, log, title="answers", **limits)
    return table_of(
        {"retention_p": retention_p, **asdict(answer)} for (retention_p,), _, answer in answered
    )


def curve_table(answers: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Accuracy and token ratio per retention_p, over all rows and per media type.

    Args:
        answers: of `answers_at`.
        seed: of the bootstrap.

    Returns:
        Columns retention_p, media ("all", "image", "video"), accuracy with its Wilson interval
        (low, high), token_ratio with its bootstrap interval over rows (ratio_low, ratio_high),
        prompt_tokens (mean), samples, seconds (sum over the rows).
    """
    parts = [("all", answers), *answers.groupby("data_type")]
    lines = [
        _point(str(media), float(retention_p), group, seed)
        for media, part in parts
        for retention_p, group in part.groupby("retention_p")
    ]
    return pd.DataFrame(lines)


def _point(media: str, retention_p: float, group: pd.DataFrame, seed: int) -> dict[str, object]:
    low, high = wilson(group["correct"].sum(), len(group))
    ratio_low, ratio_high = bootstrap_mean(group["token_ratio"], seed)
    return {
        "retention_p": retention_p,
        "media": media,
        "accuracy": group["correct"].mean(),
        "low": low,
        "high": high,
        "token_ratio": group["token_ratio"].mean(),
        "ratio_low": ratio_low,
        "ratio_high": ratio_high,
        "prompt_tokens": group["prompt_tokens"].mean(),
        "samples": len(group),
        "seconds": group["seconds"].sum(),
    }


def layer_table(answers: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Token ratio of every layer at every retention_p.

    Returns:
        Columns retention_p, layer (from 0), token_ratio, low, high, samples.
    """
    lines = []
    for retention_p, group in answers.groupby("retention_p"):
        ratios = pd.DataFrame(group["layer_ratios"].tolist())
        for layer in ratios.columns:
            low, high = bootstrap_mean(ratios[layer], seed)
            lines.append(
                {
                    "retention_p": retention_p,
                    "layer": int(layer),
                    "token_ratio": ratios[layer].mean(),
                    "low": low,
                    "high": high,
                    "samples": len(ratios),
                }
            )
    return pd.DataFrame(lines)

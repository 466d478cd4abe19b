"""Measures the p -> token ratio curve that is saved with a checkpoint, for `sf.Budget`.

It uses prefill only, on rows outside training and evaluation (the calibration split).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch

from sf import ranks
from sf.attention import sparsify
from sf.attention.ratio_curve import Curve, curve_of, note_curve
from sf.attention.trained import record_of
from sf.data.prompts import messages
from sf.data.vision import encode_parts
from sf.errors import ConfigError
from sf.json_lines import append_json_lines, read_json_lines
from sf.progress import progress
from sf.selection import TopP

if TYPE_CHECKING:
    from sf.data.manifest import Row
    from sf.data.prompts import Template
    from sf.sections import Runtime, Vision

__all__ = [
    "GRID",
    "CurveRequest",
    "add_ratio_curve",
    "measure_ratio_curve",
    "runs_under_top_p",
    "spread",
]

GRID = (
    0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 0.995, 0.998, 0.999, 0.9997, 0.9999, 0.99999,
)  # fmt: skip
"""Dense where the ratio rises fast; between two points it is interpolated in log(1 - p)."""

ROWS = 128
"""At most: the mean ratio of so many prompts is known to about a point."""


@dataclass(frozen=True)
class CurveRequest:
    """The data and settings for measuring the curve.

    Attributes:
        rows: manifest rows.
        vision: pixel and frame bounds.
        runtime: device and dtype.
        template: prompt template.
        batch: prompts in a forward at most.
    """

    rows: Sequence[Row]
    vision: Vision
    runtime: Runtime
    template: Template
    batch: int


def runs_under_top_p(checkpoint: Path) -> bool:
    """Whether the checkpoint has a curve: it was trained under top-p or is a base model."""
    record = record_of(checkpoint)
    return record is None or record.method == "zipvl"


def spread(rows: Sequence[Row], count: int) -> list[Row]:
    """At most `count` rows, evenly spaced over the manifest."""
    step = max(1.0, len(rows) / count)
    return [rows[int(at * step)] for at in range(min(count, len(rows)))]


def add_ratio_curve(checkpoint: Path, request: CurveRequest, log: Path) -> Curve:
    """Measure the curve and write it into the checkpoint's config.json and `sparsity.json`.

    Several ranks measure a part of the rows each; the first one writes.

    Args:
        checkpoint: folder, whole on all ranks.
        request: data and settings.
        log: folder with the measurements of a killed call, which this call continues.

    Returns:
        the curve.

    Raises:
        ConfigError: no rows, or an attention without a `retention_p`.
    """
    from sf.models import load_model, load_processor

    if not request.rows:
        raise ConfigError("rows", 0, "needed to measure the curve", "prepare some")
    if not runs_under_top_p(checkpoint):
        raise ConfigError(
            "checkpoint", str(checkpoint), "was trained with a method that has no retention_p"
        )
    model = load_model(checkpoint, dtype=request.runtime.dtype, device=request.runtime.device)
    processor = load_processor(checkpoint)
    own = spread(request.rows, ROWS)[ranks.rank() :: ranks.world_size()]
    file = log / f"ratio_curve_{ranks.rank()}.jsonl"
    ratios: dict[float, list[float]] = {retention_p: [] for retention_p in GRID}
    for part in ranks.gathered(list(_measured(model, processor, own, request, file))):
        for retention_p, ratio in part:
            ratios[retention_p].append(ratio)
    if ranks.rank() == 0:
        note_curve(checkpoint, [(point, fmean(values)) for point, values in ratios.items()])
    ranks.meet()
    return curve_of(checkpoint)


def _measured(
    model: Any, processor: Any, rows: Sequence[Row], request: CurveRequest, file: Path
) -> Iterator[tuple[float, float]]:
    """(retention_p, token ratio) of each row and point; batches in `file` are not run again."""
    known = {
        (tuple(line["rows"]), line["retention_p"]): line["token_ratios"]
        for line in (read_json_lines(file) if file.is_file() else ())
    }
    batches = [rows[at : at + request.batch] for at in range(0, len(rows), request.batch)]
    with progress("token ratios", len(batches)) as shown:
        for batch in batches:
            names = [row.id for row in batch]
            points = {point: known.get((tuple(names), point)) for point in GRID}
            if None in points.values():
                talks = [messages(row, request.template) for row in batch]
                parts = encode_parts(processor, talks, request.vision, str(model.device))
                for point in (point for point, ratios in points.items() if ratios is None):
                    ratios = [r for _, inputs in parts for r in _ratios(model, inputs, point)]
                    line = {"rows": names, "retention_p": point, "token_ratios": ratios}
                    append_json_lines(file, [line])
                    points[point] = ratios
            for point, known_ratios in points.items():
                yield from ((point, ratio) for ratio in known_ratios or ())
            shown.advance()


@torch.inference_mode()
def _ratios(model: Any, inputs: Any, retention_p: float) -> list[float]:
    """Token ratio of each row of a batch, by one prefill under top-p."""
    with sparsify(model, TopP(p=retention_p)) as trace:
        model(**inputs, logits_to_keep=1)
    ratios: list[float] = trace.token_ratio.tolist()
    return ratios


def measure_ratio_curve(checkpoint: Path, request: CurveRequest) -> Curve:
    """`add_ratio_curve` without storage for the measurements of a killed call."""
    with TemporaryDirectory() as folder:
        return add_ratio_curve(checkpoint, request, Path(folder))

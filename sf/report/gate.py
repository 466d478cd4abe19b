"""The dense gate: whether measured rows are comparable with published ones, and what differs.

The dense row is measured with the model's own attention. As long as it differs from the published
row, the difference of a sparse row is not due to the method alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from sf.evaluation.benchmarks import BENCHMARKS
from sf.report.published import NOT_PUBLISHED
from sf.report.results import Result, Study

__all__ = ["DENSE", "GATE_POINTS", "STAND_INS", "gate", "stand_ins"]

GATE_POINTS = 1.5
"""Largest difference, in points of 100, between a dense score and the published one."""
DENSE = "full"
STAND_INS = (
    "The benchmark data are synthetic stand-ins in each benchmark's format: measured and "
    "published values are not comparable."
)
PACKAGES = ("lmms_eval", "transformers", "torch")
UNKNOWN = "not recorded"


def stand_ins(study: Study) -> bool:
    """Whether the benchmark data are synthetic."""
    source = study.result("benchmarks")
    return source is not None and source.parameters["benchmarks.source"] == "synthetic"


def gate(table: pd.DataFrame, study: Study, kind: str, generated: bool) -> list[str]:
    """Notes for comparing measured with published values.

    Args:
        table: from `sf.report.benchmark_tables.measured`.
        study: its models and results.
        kind: "image" or "video".
        generated: whether the benchmark data are synthetic (`stand_ins`).

    Returns:
        Sentences for the head of the table.
    """
    if generated:
        return [STAND_INS]
    notes = []
    for model in study.models:
        scores = table[(table["kind"] == kind) & (table["model"] == model)]
        if scores.empty:
            continue
        notes += _of_model(scores, study, model, kind)
    return notes or ["No score was measured."]


def _of_model(scores: pd.DataFrame, study: Study, model: str, kind: str) -> list[str]:
    settings = {str(row): _settings(study, model, str(row), kind) for row in scores["row"].unique()}
    notes = [
        f"{model}: {row} was measured with other settings than {DENSE}: {difference}."
        for row, used in settings.items()
        if (difference := _differences(settings.get(DENSE, used), used))
    ]
    dense = scores[(scores["row"] == DENSE) & (scores["published"] != NOT_PUBLISHED)]
    if dense.empty:
        return [f"{model}: no dense score to compare with a published one.", *notes]
    unheld = [str(title) for title in scores["title"].unique() if title not in set(dense["title"])]
    if unheld:
        notes.append(f"{model}: no dense score to compare with a published one in {_list(unheld)}.")
    gaps = 100 * (dense["score"] - dense["published"].astype(float)) / dense["scale"]
    far = gaps.abs() > GATE_POINTS
    if not far.any():
        within = f"{model}: the dense row lies within {GATE_POINTS} points of the published one in "
        return [f"{within}all {len(dense)} benchmarks that have both.", *notes]
    named = [f"{t} ({g:+.1f})" for t, g in zip(dense["title"][far], gaps[far], strict=True)]
    return [
        f"{model}: the dense row differs from the published one by more than {GATE_POINTS} points "
        f"of 100 in {_list(named)}. Sparse rows are not a reproduction until it agrees. "
        + _what_differs(settings[DENSE], kind),
        *notes,
    ]


def _what_differs(settings: Mapping[str, str], kind: str) -> str:
    """Settings that may explain the difference; the authors published none of them."""
    listed = "; ".join(f"{name}: {value}" for name, value in settings.items())
    changed = [c.title for c in BENCHMARKS if c.kind == kind and c.parser_changed]
    return (
        f"Settings that the paper does not state and that may differ: {listed}; prompts and "
        f"parsers: those of this lmms-eval version (the parsers of {_list(changed)} changed after "
        "the paper)."
    )


def _settings(study: Study, model: str, row: str, kind: str) -> dict[str, str]:
    """Frames, pixels, counts and versions of a row, over the jobs that measured it."""
    jobs = [study.result("evaluate", model=model, row=row, suite=s) for s in study.suites]
    settings = [_of_job(job, kind) for job in jobs if job is not None]
    names = list(dict.fromkeys(name for one in settings for name in one))
    source = study.result("benchmarks")
    limit = source.parameters.get("benchmarks.samples", 0) if source is not None else 0
    rows = f"the first {limit} of each task" if limit else "all"
    values = {
        name: " or ".join(dict.fromkeys(one[name] for one in settings if name in one))
        for name in names
    }
    return {**values, "questions": rows}


def _of_job(job: Result, kind: str) -> dict[str, str]:
    def given(name: str) -> Any:
        return job.parameters.get(name, UNKNOWN)

    versions: Mapping[str, str] = job.stamp.get("versions", {})
    bounds = f"{given(f'vision.{kind}_min_pixels')} to {given(f'vision.{kind}_max_pixels')}"
    settings = {"pixels of an image" if kind == "image" else "pixels of a frame": bounds}
    if kind == "video":
        settings["frames"] = (
            f"at most {given('vision.video_max_frames')} at {given('vision.video_fps')} per second"
        )
    settings["numbers"] = str(given("runtime.dtype"))
    settings["versions"] = ", ".join(f"{name} {versions.get(name, UNKNOWN)}" for name in PACKAGES)
    return settings


def _differences(dense: Mapping[str, str], other: Mapping[str, str]) -> str:
    return "; ".join(
        f"{name} {other.get(name, UNKNOWN)} (not {value})"
        for name, value in dense.items()
        if other.get(name) != value
    )


def _list(names: Sequence[str]) -> str:
    return ", ".join(names)

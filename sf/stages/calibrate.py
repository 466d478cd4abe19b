"""Stages `calibrate` and `accuracy_curve`: token ratio and accuracy over a grid of thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from sf.fields import Section, Seed
from sf.sections import Answering, Calibrate, CurveMethod, Runtime, Vision

if TYPE_CHECKING:
    from sf.jobs import Job


class Parameters(Section):
    """One checkpoint on one split."""

    model: str = Field(description="name of the base model")
    row: str = Field("base", description="the row's name in the tables, or base")
    method: CurveMethod = Field(
        "trained",
        description="attention method with a retention_p; trained: what the checkpoint records, "
        "ZipVL for a base model",
    )
    split: Literal["calibration", "heldout"] = Field(
        "calibration", description="manifest to measure on"
    )
    seed: Seed = Field(description="seed of the bootstrap intervals")
    calibrate: Calibrate
    answering: Answering
    vision: Vision
    runtime: Runtime
    checkpoint: Path = Field(description="folder of the model")
    data: Path = Field(description="folder of the manifests")
    output: Path = Field(description="results folder")


def run(p: Parameters, job: Job) -> None:
    """Answer the split at every threshold and write tables and figures of the curve.

    Writes `tables/answers.parquet` (one line per retention_p and row), `tables/curve.csv`,
    `tables/layers.csv`, `figures/curve.png`, `figures/layers.png` and their SVG versions. Second
    questions on a pruned cache give `tables/two_turn_answers.parquet` and `tables/two_turn.csv`,
    which are empty if nothing is pruned or the method is not the checkpoint's own. Answers
    are saved in `job.state`, so a killed run resumes at the next batch.
    """
    from sf.baselines import TRAINED, resolve
    from sf.baselines.selectors import Selection
    from sf.data.manifest import read_manifest
    from sf.evaluation.answer import Answer
    from sf.evaluation.curve import answers_at, curve_table, grid_with_dense, layer_table
    from sf.evaluation.resumable_log import ResumableLog
    from sf.evaluation.two_turn import pairs_of, two_turn_answers, two_turn_table
    from sf.models import load_model, load_processor
    from sf.plotting import save
    from sf.report.curves import curve_picture, layer_picture
    from sf.tables import write_csv, write_parquet

    rows = read_manifest(p.data / f"{p.split}.parquet")
    model = load_model(p.checkpoint, dtype=p.runtime.dtype, device=p.runtime.device)
    processor = load_processor(p.checkpoint)
    settings: dict[str, Any] = {
        "batch": p.calibrate.batch,
        "max_new_tokens": p.answering.max_completion_tokens,
        "template": p.answering.prompt_template,
        "cutoff": p.answering.correctness_cutoff,
    }
    log = ResumableLog(Answer, job.state / "answers.jsonl")
    grid = grid_with_dense(p.calibrate.retention_p)
    answers = answers_at(model, processor, rows, p.vision, grid, log, **settings, method=p.method)
    # Second questions test the loss of pruned tokens, so they need a pruned cache.
    own = resolve(model)
    pruned = isinstance(own, Selection) and p.method in (TRAINED, own.name)
    two_turn = p.calibrate.two_turn
    pairs = pairs_of(rows, two_turn.pairs if pruned else 0)
    log = ResumableLog(Answer, job.state / "second.jsonl")
    second = two_turn_answers(
        model, processor, pairs, p.vision, two_turn.retention_p, log, **settings
    )
    curve, layers = curve_table(answers, p.seed), layer_table(answers, p.seed)
    write_parquet(answers, job.out / "tables" / "answers.parquet")
    write_csv(curve, job.out / "tables" / "curve.csv")
    write_csv(layers, job.out / "tables" / "layers.csv")
    write_parquet(second, job.out / "tables" / "two_turn_answers.parquet")
    write_csv(two_turn_table(second, p.seed), job.out / "tables" / "two_turn.csv")
    where = f"{p.model}, {p.split} split, {len(rows)} questions"
    save(curve_picture({p.row: curve}, where), job.out / "figures", "curve")
    save(layer_picture({p.row: layers}, where), job.out / "figures", "layers")
    overall = curve[curve["media"] == "all"]
    summary = {"samples": float(len(rows)), "dense_accuracy": overall["accuracy"].iloc[-1]}
    for point in overall.itertuples():
        summary[f"token_ratio_retention_p{point.retention_p:g}"] = point.token_ratio
        summary[f"accuracy_retention_p{point.retention_p:g}"] = point.accuracy
    job.tracker.summary({name: float(value) for name, value in summary.items()})

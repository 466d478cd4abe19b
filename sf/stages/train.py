"""Stage `train`: trains a base model on the train manifest to need fewer tokens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from sf.ranks import meet, rank
from sf.training.parameters import RunParameters

if TYPE_CHECKING:
    from sf.jobs import Job


RANKS = True
ENDS_STEPS = True  # on a stop signal, it finishes its step and writes a checkpoint


class Parameters(RunParameters):
    """One training run."""

    base: Path = Field(description="folder of the base model, also the reference")
    data: Path = Field(description="folder of the manifests")
    output: Path = Field(description="results folder")


def run(p: Parameters, job: Job) -> None:
    """Train and write a plain transformers checkpoint with `sparsity.json` and a model card.

    For a checkpoint under top-p, `sparsity.json` contains the curve of token ratio over p on the
    calibration split (`sf.training.ratio_curve`). Also writes `tables/completions.csv`, sample
    answers of each logged step, and `figures/training.png`.

    Checkpoints are saved in `job.state` every `save_every` steps; a killed run resumes from the
    last complete one and ends with the same weights.
    """
    from sf.data.manifest import read_manifest
    from sf.history import history_table
    from sf.plotting import save
    from sf.training.ratio_curve import CurveRequest, add_ratio_curve, runs_under_top_p
    from sf.training.records import training_picture
    from sf.training.run import train

    figures = train(
        p,
        p.base,
        read_manifest(p.data / "train.parquet"),
        job.state / "checkpoints",
        job.out,
        job.tracker,
        p.model_dump(mode="json", exclude={"base", "data", "output"}),
    )
    meet()  # the weights are written
    rows = read_manifest(p.data / "calibration.parquet")
    if rows and runs_under_top_p(job.out):
        batch = min(32, p.train.rollouts_per_forward)
        request = CurveRequest(rows, p.vision, p.runtime, p.answering.prompt_template, batch)
        add_ratio_curve(job.out, request, job.state)
    where = f"{p.model}, {p.row}, seed {p.seed}"
    if rank():
        return
    picture = training_picture(history_table(job.out), where)
    if picture is not None:
        save(picture, job.out / "figures", "training")
    job.tracker.summary({f"last_{name}": value for name, value in figures.items()})

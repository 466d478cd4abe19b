"""Stage `base`: the base model of a study, trained from scratch or taken from a folder or a hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sf.atomic_files import write_json
from sf.scratch.config import FromScratch

if TYPE_CHECKING:
    from sf.jobs import Job


class Parameters(FromScratch):
    """One base model.

    Attributes:
        model: its name in the study.
        output: results folder.
    """

    model: str
    output: Path


def run(p: Parameters, job: Job) -> None:
    """Write a transformers checkpoint (model and processor) and say how well it answers.

    Writes the checkpoint's files, `base.json` (where it comes from) and, for a model trained here,
    `tables/heldout.csv` and `tables/heldout_answers.parquet`: greedy accuracy on the held-out
    split by media and problem type, with Wilson intervals. A killed training run continues from
    its last checkpoint to the same weights.

    Raises:
        ConfigError, DataError, EnvironmentFault, UnsupportedModelError: see
            `sf.models.fetch.fetch_checkpoint` and `sf.scratch.train_base.train_base`.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    if p.source == "scratch":
        from sf.scratch.heldout import measure_heldout
        from sf.scratch.train_base import train_base

        train_base(p, job)
        origin = {"source": "scratch", "family": p.family}
        job.tracker.summary(measure_heldout(p, job.out))
    else:
        from sf.models.fetch import fetch_checkpoint

        origin = fetch_checkpoint(p.source, p.family, job.out)
    write_json(job.out / "base.json", origin)

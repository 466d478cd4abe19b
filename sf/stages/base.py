"""Stage `base`: the base model of a study, trained from scratch or taken from a folder or a hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from sf.atomic_files import write_json
from sf.scratch.config import BaseModelParameters

if TYPE_CHECKING:
    from sf.jobs import Job


class Parameters(BaseModelParameters):
    """One base model."""

    model: str = Field(description="its name in the study")
    fetched: Path | None = Field(
        None, description="result of the stage fetch; without it, a hub source is fetched here"
    )
    output: Path = Field(description="results folder")


def asks_hub(p: Parameters) -> bool:
    """Whether the stage needs a network."""
    return p.fetched is None and p.base.source.startswith("hub:")


def inputs(p: Parameters) -> dict[str, Path]:
    """The stage's inputs: the training rows, or the files of a local source."""
    if p.scratch is not None:
        return {"data": p.data}
    if p.base.source.startswith("hub:"):
        return {"fetched": p.fetched} if p.fetched else {}
    from sf.models.fetch import checkpoint_files

    return {f"source/{file.name}": file for file in checkpoint_files(Path(p.base.source))}


def run(p: Parameters, job: Job) -> None:
    """Write a transformers checkpoint (model and processor) and its held-out accuracy.

    A hub's checkpoint in LLaVA-NeXT's format (LLaVA-Video-7B-Qwen2) is converted to transformers'
    LLaVA-OneVision classes. Writes the checkpoint's files, `base.json` (its origin) and, for a
    model trained here, `tables/heldout.csv` and `tables/heldout_answers.parquet`: greedy accuracy
    on the held-out split by media and problem type, with Wilson intervals. A killed training run
    continues from its last checkpoint to the same weights.

    Raises:
        ConfigError, DataError, EnvironmentFault, UnsupportedModelError: see
            `sf.models.fetch.fetch_checkpoint` and `sf.scratch.train_base.train_base`.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    if p.scratch is not None:
        from sf.scratch.heldout import measure_heldout
        from sf.scratch.train_base import train_base

        train_base(p, p.scratch, job)
        origin = {"source": "scratch", "family": p.base.family}
        job.tracker.summary(measure_heldout(p, job.out))
    else:
        from sf.models.fetch import fetch_checkpoint

        origin = fetch_checkpoint(p.base.source, p.base.family, job.out, p.fetched, job.state)
    write_json(job.out / "base.json", origin)

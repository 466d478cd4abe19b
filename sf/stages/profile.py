"""Stage `profile`: latency and memory of full and sparse attention over prompt lengths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from sf.fields import Section, Seed
from sf.sections import Profile, Runtime

if TYPE_CHECKING:
    from sf.jobs import Job


class Parameters(Section):
    """One model on one device."""

    model: str = Field(description="name of the base model")
    seed: Seed = Field(description="seed of random weights and prompts")
    profile: Profile
    runtime: Runtime
    checkpoint: Path = Field(description="folder of the model")
    output: Path = Field(description="results folder")


def run(p: Parameters, job: Job) -> None:
    """Measure every configuration at every length and write tables and figures.

    Writes the tables, `hardware.json` and figures of `sf.profiling.study.write`. Measurements are
    saved in `job.state`, so a killed run resumes at the next length.
    """
    from sf.profiling.measurement import Settings
    from sf.profiling.models import LoadedModel, load_by_name
    from sf.profiling.replay import Replay, replayed
    from sf.profiling.study import figures, profile
    from sf.selection import TopK

    given = p.profile
    shares = tuple(given.layer_shares)
    ratio = f"top-k {given.token_ratio:g}"
    settings = Settings(
        lengths=tuple(given.lengths),
        sparse=Replay(shares) if shares else TopK(ratio=given.token_ratio),
        ratio_set_by=replayed(shares, "the parameters") if shares else ratio,
        repeats=given.repeats,
        decode_tokens=given.decode_tokens,
        batch=given.batch,
        prompts=given.prompts,
        find_largest=given.find_largest,
        memory_limit_gib=given.memory_limit_gib,
    )

    def load(name: str) -> LoadedModel:
        return load_by_name(name, p.checkpoint, p.runtime.dtype, p.runtime.device, p.seed)

    profiled = profile(given.models, load, settings, p.runtime, job.state, job.out)
    job.tracker.summary(figures(profiled))

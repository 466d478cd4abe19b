"""Stage `profile`: latency and memory of full against sparse attention over prompt lengths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sf.sections import Profile, Runtime

if TYPE_CHECKING:
    from sf.jobs import Job


class Parameters(Runtime, Profile):
    """One model on one device."""

    seed: int
    model: str
    checkpoint: Path
    output: Path


def run(p: Parameters, job: Job) -> None:
    """Measure every subject at every length and write tables and pictures.

    Writes the tables, `hardware.json` and pictures of `sf.profiling.study.write`. Measured points
    are kept in `job.state`, so a killed run goes on with the next length.
    """
    from sf.profiling.measurement import Settings
    from sf.profiling.models import Subject, load_subject
    from sf.profiling.replay import Replay, replayed
    from sf.profiling.study import figures, profile
    from sf.selection import TopK

    shares = tuple(p.profile_layer_shares)
    ratio = f"top-k {p.profile_ratio:g}"
    settings = Settings(
        lengths=tuple(p.profile_lengths),
        sparse=Replay(shares) if shares else TopK(ratio=p.profile_ratio),
        ratio_set_by=replayed(shares, "the parameters") if shares else ratio,
        repeats=p.profile_repeats,
        decode_tokens=p.profile_decode_tokens,
        batch=p.profile_batch,
        prompts=p.profile_prompts,
        fit=p.profile_fit,
        fit_gib=p.profile_fit_gib,
    )

    def load(name: str) -> Subject:
        return load_subject(name, p.checkpoint, p.dtype, p.device, p.seed)

    found = profile(p.profile_subjects, load, settings, p, job.state, job.out)
    job.tracker.summary(figures(found))

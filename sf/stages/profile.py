"""Stage `profile`: latency and memory of full against sparse attention over prompt lengths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sf.config import Profile, Runtime

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

    Writes `tables/profile.csv` and `.parquet` (tidy), `tables/{speedup,roofline,fit}.csv`,
    `hardware.json` and `figures/{latency,memory,parts}.png` with their SVG. Measured points are
    kept in `job.state`, so a killed run goes on with the next length.
    """
    from sf.profiling.hardware import require_device
    from sf.profiling.point import Settings
    from sf.profiling.study import figures, profile, write
    from sf.profiling.subjects import Subject, load_subject
    from sf.progress import progress
    from sf.selection import TopK

    device = require_device(p.device)
    settings = Settings(
        lengths=tuple(p.profile_lengths),
        sparse=TopK(ratio=p.profile_ratio),
        ratio_set_by=f"top-k {p.profile_ratio:g}",
        repeats=p.profile_repeats,
        decode_tokens=p.profile_decode_tokens,
        batch=p.profile_batch,
        prompts=p.profile_prompts,
        fit=p.profile_fit,
        fit_gib=p.profile_fit_gib,
    )

    def load(name: str) -> Subject:
        return load_subject(name, p.checkpoint, p.dtype, p.device, p.seed)

    total = len(p.profile_subjects) * (len(set(p.profile_lengths)) + p.profile_fit)
    with progress("profile", total) as shown:
        found = profile(
            p.profile_subjects,
            load,
            settings,
            device,
            p.dtype,
            job.state,
            lambda note: shown.advance(note=note),
        )
    write(found, settings, job.out)
    job.tracker.summary(figures(found))

"""Progress and estimated remaining time of a study, printed at the start of a job.

A remaining job's time is estimated from a complete study measured elsewhere (`MEASURED`), scaled by
the speed of this machine in its finished jobs; without such a measurement, from the finished jobs
of its rule.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from sf.config import Params
from sf.result_key.stamp import read_stamp
from sf.slurm_job import JOB
from workflow.jobs import JobSpec, resources_of

__all__ = ["MEASURED", "expected_seconds", "sentence"]

MEASURED = Path(__file__).parents[1] / "reports/measured/cpu-epyc-2-cores/study_seconds.json"
"""{scale: {job: seconds}}; conditions in `reports/measured/README.md`."""


def expected_seconds(
    specs: Sequence[JobSpec], spent: Mapping[str, float], measured: Mapping[str, float]
) -> dict[str, float | None]:
    """The expected time of each job, by name; None if unknown.

    Args:
        specs: jobs of the study.
        spent: seconds of its finished jobs, by name, where known.
        measured: seconds of jobs of the same scale elsewhere, by name.
    """
    ratios = [spent[name] / measured[name] for name in spent if measured.get(name)]
    slowness = statistics.median(ratios) if ratios else 1.0
    alike: dict[str, list[float]] = {}
    for job in specs:
        if job.name in spent:
            alike.setdefault(job.stage.name, []).append(spent[job.name])
    expected: dict[str, float | None] = {}
    for job in specs:
        if job.name in spent:
            expected[job.name] = spent[job.name]
        elif job.name in measured:
            expected[job.name] = slowness * measured[job.name]
        elif job.stage.name in alike:
            expected[job.name] = statistics.median(alike[job.stage.name])
        else:
            expected[job.name] = None
    return expected


def sentence(params: Params, specs: Sequence[JobSpec]) -> str:
    """The finished jobs and the time left, for the study on this machine or its jobs under Slurm.

    A running job counts as remaining. Files are read, not verified.

    Args:
        params: of the study.
        specs: its jobs.
    """
    stamps = {job.name: read_stamp(Path(job.stamp)) for job in specs if Path(job.stamp).is_file()}
    done = {name: stamp.get("seconds") for name, stamp in stamps.items() if stamp}
    spent = {name: float(seconds) for name, seconds in done.items() if seconds}
    measured = json.loads(MEASURED.read_text()).get(params.scale, {}) if MEASURED.is_file() else {}
    expected = expected_seconds(specs, spent, measured)
    left = [job for job in specs if job.name not in done]
    known = [(job, seconds) for job in left if (seconds := expected[job.name]) is not None]
    cores = len(os.sched_getaffinity(0))
    text = f"study {params.scale}: {len(done)} of {len(specs)} jobs done"
    if not known:
        return f"{text}, time left unknown" if left else text
    if JOB in os.environ:
        text += f", {_duration(sum(seconds for _, seconds in known))} of jobs left"
    else:
        shares = [
            seconds * min(resources_of(job.stage.run, job.parameters, params)[1].cpus, cores)
            for job, seconds in known
        ]
        text += f", {_duration(sum(shares) / cores)} left"
    unknown = len(left) - len(known)
    jobs = "1 job" if unknown == 1 else f"{unknown} jobs"
    return f"{text}, {jobs} of unknown length not counted" if unknown else text


def _duration(seconds: float) -> str:
    minutes = max(round(seconds / 60), 1)
    return f"about {minutes} min" if minutes < 100 else f"about {minutes / 60:.1f} h"

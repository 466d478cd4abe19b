"""Stage `profile`: latency and memory of full against sparse attention over prompt lengths."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.config import Profile, Runtime

if TYPE_CHECKING:
    from sf.jobs import Job

FILLER = "_"  # a length's file name in the scratch folder must not hold a slash


class Parameters(Runtime, Profile):
    """One model on one device."""

    seed: int
    model: str
    checkpoint: Path
    output: Path


def run(p: Parameters, job: Job) -> None:
    """Measure every subject at every length and write tables and pictures.

    Writes `tables/profile.csv` and `.parquet` (tidy), `tables/speedup.csv`, `hardware.json` and
    `figures/{latency,memory,parts}.png` with their SVG. Measured points are kept in `job.state`,
    so a killed run goes on with the next length.
    """
    import pandas as pd

    from sf.profiling.hardware import describe, require_device
    from sf.profiling.point import point
    from sf.profiling.subjects import load_subject
    from sf.profiling.summary import LINE, NOTES, SPEEDUP, TIMES, break_even
    from sf.progress import progress
    from sf.report.tables import write_csv, write_parquet

    device = require_device(p.device)
    hardware = _once(job.out / "hardware.json", lambda: describe(device))
    points: list[dict[str, Any]] = []
    total = len(p.profile_subjects) * len(p.profile_lengths)
    with progress("profile", total) as shown:
        for name in p.profile_subjects:
            files = {
                length: job.state / f"{name}-{length}.json".replace("/", FILLER)
                for length in sorted(set(p.profile_lengths))
            }
            subject = None
            for length, file in files.items():
                if not file.is_file() and subject is None:
                    subject = load_subject(name, p.checkpoint, p.dtype, p.device, p.seed)
                points.append(_once(file, lambda s=subject, n=length: point(s, n, p)))
                shown.advance(note=f"{name} at {length}")
            del subject
    lines = [line for found in points for line in found["lines"]]
    table = pd.DataFrame(lines, columns=[*LINE, *NOTES])
    pairs = [line for found in points for line in found["speedups"]]
    ratios = pd.DataFrame(pairs, columns=[*SPEEDUP, *NOTES])
    write_csv(table, job.out / "tables" / "profile.csv")
    write_parquet(table, job.out / "tables" / "profile.parquet")
    write_csv(ratios, job.out / "tables" / "speedup.csv")
    _pictures(table, ratios, hardware, p, job.out / "figures")
    summary: dict[str, float] = {}
    for line in ratios.to_dict("records"):
        summary[f"{line['subject']}_{line['metric']}_ratio_at_{line['length']}"] = line["ratio"]
    for name in p.profile_subjects:
        for metric in TIMES if len(ratios) else ():
            tokens = break_even(ratios[ratios["subject"] == name], metric)
            if tokens is not None:
                summary[f"{name}_{metric}_break_even_tokens"] = float(tokens)
    job.tracker.summary(summary)


def _once(file: Path, make: Any) -> Any:
    """The JSON content of a file, made and written first when it is not there."""
    from sf.provenance import write_json

    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, make())
    return json.loads(file.read_text(encoding="utf-8"))


def _pictures(table: Any, ratios: Any, hardware: Any, p: Parameters, folder: Path) -> None:
    from sf.report.profiles import latency_picture, memory_picture, parts_picture
    from sf.report.style import save

    name = hardware["gpu"]["name"] if "gpu" in hardware else hardware["host"]["cpu"]
    threads = "" if "gpu" in hardware else f", threads: {hardware['threads']}"
    kept = f"{100 * p.profile_ratio:g} %"
    where = f"{name}{threads}, {p.dtype}; kept tokens set to {kept} by top-k"
    save(latency_picture(table, ratios, where), folder, "latency")
    save(memory_picture(table, where), folder, "memory")
    parts = parts_picture(table, where)
    if parts is not None:
        save(parts, folder, "parts")

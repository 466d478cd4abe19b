"""Subjects at all their lengths, as tables and pictures: what the stage and `sf profile` do."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sf.atomic_files import write_json
from sf.profiling.hardware import (
    describe,
    held_back,
    pace,
    require_device,
    state_under_load,
)
from sf.profiling.measurement import DENSE, FIT, LAYERS, Settings, limits_of, point
from sf.profiling.models import Subject
from sf.profiling.roofline import ROOFLINE, Ceilings, ceilings, floored
from sf.profiling.summary import LINE, NOTES, SPEEDUP, TIMES, break_even
from sf.progress import progress
from sf.sections import Runtime

__all__ = ["Profiled", "figures", "profile", "write"]

FILLER = "_"  # a length's file name in the scratch folder must not hold a slash


@dataclass(frozen=True)
class Profiled:
    """What was found.

    Attributes:
        table: tidy; a line per subject, length, side and metric.
        ratios: full / sparse.
        roofline: work, floors and shares by part.
        fit: largest batch and longest prompt; empty when they were not asked for.
        dense: milliseconds of one layer by each dense attention, where there are several.
        layers: shares that the sparse side kept, layer by layer; `--replay` reads it.
        hardware: device, versions, commit, ceilings, notes.
    """

    table: pd.DataFrame
    ratios: pd.DataFrame
    roofline: pd.DataFrame
    fit: pd.DataFrame
    dense: pd.DataFrame
    layers: pd.DataFrame
    hardware: dict[str, Any]


def profile(
    names: Sequence[str],
    load: Callable[[str], Subject],
    settings: Settings,
    runtime: Runtime,
    state: Path,
    folder: Path,
) -> Profiled:
    """Measure every subject at every length, then write tables and pictures.

    Args:
        names: of the subjects.
        load: a subject by its name; called once for each that is not yet measured.
        settings: what and how often.
        runtime: device and dtype.
        state: finished points are kept there, so a killed run goes on with the next one.
        folder: for `write`.

    Raises:
        EnvironmentFault: a GPU was asked for and there is none.
    """
    device = require_device(runtime.device)
    total = len(names) * (len(set(settings.lengths)) + settings.fit)
    with progress("profile", total) as shown:
        found = _measured(names, load, settings, device, runtime.dtype, state, shown)
    write(found, settings, folder)
    return found


def _measured(
    names: Sequence[str],
    load: Callable[[str], Subject],
    settings: Settings,
    device: torch.device,
    dtype: str,
    state: Path,
    shown: Any,
) -> Profiled:
    hardware = _once(state / "hardware.json", lambda: describe(device))
    limits = Ceilings(
        **_once(state / "ceilings.json", lambda: asdict(ceilings(device, getattr(torch, dtype))))
    )
    points: list[dict[str, Any]] = []
    fit: list[dict[str, Any]] = []
    for name in names:
        found: list[Subject] = []

        def subject(name: str = name, found: list[Subject] = found) -> Subject:
            if not found:
                found.append(load(name))
            return found[0]

        stem = name.replace("/", FILLER)
        for length in sorted(set(settings.lengths)):
            made = partial(_point, subject, length, settings, limits)
            points.append(_once(state / f"{stem}-{length}.json", made))
            shown.advance(note=f"{name} at {length}")
        if settings.fit:
            fit += _once(state / f"{stem}-fit.json", lambda: limits_of(subject(), settings))
            shown.advance(note=f"{name}: what fits")
        found.clear()
    later = ceilings(device, getattr(torch, dtype))
    best = limits.best(later)
    hardware = {**hardware, "dtype": dtype, "ceilings": asdict(best)}
    hardware["ceilings_at_the_ends"] = [asdict(limits), asdict(later)]
    loaded = state_under_load(device)
    if loaded is not None:
        hardware["gpu"] = {**hardware["gpu"], "state_under_load": loaded}
    hardware["notes"] = [*hardware["notes"], *pace(limits, later), *held_back(loaded)]

    def frame(key: str, columns: Sequence[str]) -> pd.DataFrame:
        return pd.DataFrame([line for p in points for line in p[key]], columns=list(columns))

    return Profiled(
        table=frame("lines", [*LINE, *NOTES]),
        ratios=frame("speedups", [*SPEEDUP, *NOTES]),
        roofline=pd.DataFrame(
            floored([line for p in points for line in p["roofline"]], best), columns=list(ROOFLINE)
        ),
        fit=pd.DataFrame(fit, columns=list(FIT)),
        dense=frame("dense", DENSE),
        layers=frame("layers", LAYERS),
        hardware=hardware,
    )


def _point(
    subject: Callable[[], Subject], length: int, settings: Settings, limits: Ceilings
) -> dict[str, Any]:
    return point(subject(), length, settings, limits)


def _once(file: Path, make: Callable[[], Any]) -> Any:
    """The JSON content of a file, made and written first when it is not there."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, make())
    return json.loads(file.read_text(encoding="utf-8"))


def figures(found: Profiled) -> dict[str, float]:
    """Ratios and break-even lengths by name."""
    named: dict[str, float] = {}
    for line in found.ratios.to_dict("records"):
        named[f"{line['subject']}_{line['metric']}_ratio_at_{line['length']}"] = line["ratio"]
    for name in dict.fromkeys(found.ratios["subject"]):
        for metric in TIMES:
            tokens = break_even(found.ratios[found.ratios["subject"] == name], metric)
            if tokens is not None:
                named[f"{name}_{metric}_break_even_tokens"] = float(tokens)
    return named


def write(found: Profiled, settings: Settings, folder: Path) -> None:
    """Tables as CSV (the tidy one as parquet too), `hardware.json` and pictures."""
    from sf.plotting import save
    from sf.profiling.pictures import latency_picture, memory_picture, parts_picture
    from sf.tables import write_csv, write_parquet

    write_csv(found.table, folder / "tables" / "profile.csv")
    write_parquet(found.table, folder / "tables" / "profile.parquet")
    write_csv(found.ratios, folder / "tables" / "speedup.csv")
    write_csv(found.roofline, folder / "tables" / "roofline.csv")
    write_csv(found.fit, folder / "tables" / "fit.csv")
    write_csv(found.dense, folder / "tables" / "dense.csv")
    write_csv(found.layers, folder / "tables" / "layers.csv")
    write_json(folder / "hardware.json", found.hardware)
    facts = found.hardware
    name = facts["gpu"]["name"] if "gpu" in facts else facts["host"]["cpu"]
    threads = "" if "gpu" in facts else f", threads: {facts['threads']}"
    where = f"{name}{threads}, {facts['dtype']}, batch {settings.batch}; {settings.ratio_set_by}"
    save(latency_picture(found.table, found.ratios, where), folder / "figures", "latency")
    save(memory_picture(found.table, where), folder / "figures", "memory")
    parts = parts_picture(found.table, where)
    if parts is not None:
        save(parts, folder / "figures", "parts")

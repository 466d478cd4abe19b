"""Measurements of models over prompt lengths, for the stage and `sf profile`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
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
from sf.profiling.measurement import DENSE, LARGEST, LAYERS, Settings, find_largest, point
from sf.profiling.models import LoadedModel
from sf.profiling.roofline import ROOFLINE, Ceilings, ceilings, floored
from sf.profiling.summary import LINE, NOTES, SPEEDUP, TIMES, break_even
from sf.progress import progress
from sf.sections import Runtime

__all__ = ["Profiled", "figures", "profile", "write"]

FILLER = "_"  # replaces slashes in file names


@dataclass(frozen=True)
class Profiled:
    """The results of the measurements.

    Attributes:
        table: tidy; a line per model, length, side and metric.
        ratios: full / sparse.
        roofline: work, floors and shares by part.
        largest: largest batch and longest prompt; empty if not requested.
        dense: milliseconds of one layer by each dense attention, if there are several.
        layers: shares that the sparse side kept by layer; `--replay` reads them.
        hardware: device, versions, commit, ceilings, notes.
    """

    table: pd.DataFrame
    ratios: pd.DataFrame
    roofline: pd.DataFrame
    largest: pd.DataFrame
    dense: pd.DataFrame
    layers: pd.DataFrame
    hardware: dict[str, Any]


def profile(
    names: Sequence[str],
    load: Callable[[str], LoadedModel],
    settings: Settings,
    runtime: Runtime,
    state: Path,
    folder: Path,
) -> Profiled:
    """Measure every model at every length, then write tables and figures.

    Args:
        names: of the models.
        load: loads a model by its name; called once for each that is not fully measured.
        settings: of the measurements.
        runtime: device and dtype.
        state: folder for finished measurements, so that a killed run resumes at the next one.
        folder: for `write`.

    Raises:
        EnvironmentFault: a GPU is requested but not available.
    """
    device = require_device(runtime.device)
    total = len(names) * (len(set(settings.lengths)) + settings.find_largest)
    with progress("profile", total) as counter:
        profiled = _measured(names, load, settings, device, runtime.dtype, state, counter)
    write(profiled, settings, folder)
    return profiled


def _measured(
    names: Sequence[str],
    load: Callable[[str], LoadedModel],
    settings: Settings,
    device: torch.device,
    dtype: str,
    state: Path,
    counter: Any,
) -> Profiled:
    hardware = _once(state / "hardware.json", lambda: describe(device))
    limits = Ceilings(
        **_once(state / "ceilings.json", lambda: asdict(ceilings(device, getattr(torch, dtype))))
    )
    points: list[dict[str, Any]] = []
    largest: list[dict[str, Any]] = []
    for name in names:
        load_once = cache(partial(load, name))  # loaded once, and only if needed
        stem = name.replace("/", FILLER)
        for length in sorted(set(settings.lengths)):
            measured = partial(_of_model, point, load_once, length, settings, limits)
            points.append(_once(state / f"{stem}-{length}.json", measured))
            counter.advance(note=f"{name} at {length}")
        if settings.find_largest:
            largest += _once(
                state / f"{stem}-largest.json",
                partial(_of_model, find_largest, load_once, settings),
            )
            counter.advance(note=f"{name}: memory limits")
        load_once.cache_clear()
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
        largest=pd.DataFrame(largest, columns=list(LARGEST)),
        dense=frame("dense", DENSE),
        layers=frame("layers", LAYERS),
        hardware=hardware,
    )


def _of_model(measure: Callable[..., Any], load: Callable[[], LoadedModel], *args: Any) -> Any:
    """Load a model and call `measure` on it."""
    return measure(load(), *args)


def _once(file: Path, make: Callable[[], Any]) -> Any:
    """The JSON content of a file, which is created first if missing."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, make())
    return json.loads(file.read_text(encoding="utf-8"))


def figures(profiled: Profiled) -> dict[str, float]:
    """Ratios and break-even lengths by name."""
    named: dict[str, float] = {}
    for line in profiled.ratios.to_dict("records"):
        named[f"{line['model']}_{line['metric']}_ratio_at_{line['length']}"] = line["ratio"]
    for name in dict.fromkeys(profiled.ratios["model"]):
        for metric in TIMES:
            tokens = break_even(profiled.ratios[profiled.ratios["model"] == name], metric)
            if tokens is not None:
                named[f"{name}_{metric}_break_even_tokens"] = float(tokens)
    return named


def write(profiled: Profiled, settings: Settings, folder: Path) -> None:
    """Write tables as CSV (the tidy one also as parquet), `hardware.json` and figures."""
    from sf.plotting import save
    from sf.profiling.pictures import latency_picture, memory_picture, parts_picture
    from sf.tables import write_csv, write_parquet

    write_csv(profiled.table, folder / "tables" / "profile.csv")
    write_parquet(profiled.table, folder / "tables" / "profile.parquet")
    write_csv(profiled.ratios, folder / "tables" / "speedup.csv")
    write_csv(profiled.roofline, folder / "tables" / "roofline.csv")
    write_csv(profiled.largest, folder / "tables" / "largest.csv")
    write_csv(profiled.dense, folder / "tables" / "dense.csv")
    write_csv(profiled.layers, folder / "tables" / "layers.csv")
    write_json(folder / "hardware.json", profiled.hardware)
    facts = profiled.hardware
    name = facts["gpu"]["name"] if "gpu" in facts else facts["host"]["cpu"]
    threads = "" if "gpu" in facts else f", threads: {facts['threads']}"
    where = f"{name}{threads}, {facts['dtype']}, batch {settings.batch}; {settings.ratio_set_by}"
    save(latency_picture(profiled.table, profiled.ratios, where), folder / "figures", "latency")
    save(memory_picture(profiled.table, where), folder / "figures", "memory")
    parts = parts_picture(profiled.table, where)
    if parts is not None:
        save(parts, folder / "figures", "parts")

"""Table 7 and figures 4c and 4d of the paper: the cost of training and of a prompt."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sf.profiling.summary import MEASURED, NO_DIFFERENCE, three_digits
from sf.report.cells import Figure, verdict
from sf.report.page import Picture
from sf.report.paper_lines import Line, PaperTable, Request, saved
from sf.report.published import figure_of
from sf.report.results import Result
from sf.training.records import training_picture

__all__ = [
    *("cost", "cost_pictures", "cost_sentence", "profile", "profile_pictures", "profile_sentence"),
]


def profile(request: Request) -> PaperTable:
    """One line per length: full, sparse and their ratio."""
    metric = request.definition.metric
    unit, name = (2.0**20, "MiB") if metric.endswith("_bytes") else (1.0, "ms")
    lines = []
    for model in request.study.models:
        result = request.study.result("profile", model=model)
        measured = [] if result is None else _profile_lines(request, model, result, unit)
        lines += measured or [Line((model, "", ""), (Figure(),) * 3)]
    columns = (f"full ({name})", f"sparse ({name})", "full / sparse")
    return PaperTable(("model", "profiled model", "prompt tokens"), columns, tuple(lines), {})


def _profile_lines(request: Request, model: str, result: Result, unit: float) -> list[Line]:
    table, ratios = (
        part[part["metric"] == request.definition.metric]
        for part in (result.table("profile.csv"), result.table("speedup.csv"))
    )
    lines = []
    for (profiled, length), part in table.groupby(["model", "length"], sort=False):
        sides = {str(line["side"]): line for line in part.to_dict("records")}
        same = (ratios["model"] == profiled) & (ratios["length"] == length)
        speedup = next(iter(ratios[same].to_dict("records")), None)
        cells = (
            _measured(request, result, sides.get("full"), unit),
            _measured(request, result, sides.get("sparse"), unit),
            _speedup(request, result, speedup),
        )
        lines.append(Line((model, str(profiled), f"{length:,}"), cells))
    return lines


def _measured(
    request: Request, result: Result, line: Mapping[Any, Any] | None, unit: float
) -> Figure:
    if line is None:
        return Figure()
    if line["status"] != MEASURED:
        return request.figure(result, text=str(line["status"]))
    value, low, high = (float(line[name]) / unit for name in ("value", "low", "high"))
    span = "" if math.isnan(low) or low == high else f"{low:.3g} to {high:.3g}"
    samples = int(line["repeats"])
    return request.figure(
        result, text=three_digits(value), value=value, interval=span, samples=samples
    )


def _speedup(request: Request, result: Result, line: Mapping[Any, Any] | None) -> Figure:
    if line is None:
        return Figure()
    value = float(line["ratio"])
    span = "" if math.isnan(line["low"]) else f"{line['low']:.2f} to {line['high']:.2f}"
    note = "the interval contains 1" if line["verdict"] == NO_DIFFERENCE else ""
    return request.figure(result, text=f"{value:.2f}", value=value, interval=span, note=note)


def profile_sentence(model: str, lines: Sequence[Line]) -> str:
    """The ratio at the longest prompt."""
    last = lines[-1]
    ratio = last.figures[-1]
    return (
        f"{model}: at {last.keys[2]} tokens ({last.keys[1]}) full / sparse is {ratio.text} "
        f"({ratio.interval or 'counted'})."
    )


def profile_pictures(request: Request, table: PaperTable, folder: Path) -> list[Picture]:
    """The figures of the profile."""
    kind = "latency" if request.definition.metric == "prefill_ms" else "memory"
    pictures = []
    for model in request.study.models:
        result = request.study.result("profile", model=model)
        source = result.folder / "figures" / f"{kind}.png" if result is not None else None
        if source is None or not source.is_file():
            continue
        name = f"{kind}_{model}"
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for suffix in (".png", ".svg"):
            target = folder / "figures" / f"{name}{suffix}"
            shutil.copyfile(source.with_suffix(suffix), target)
        pictures.append(Picture(name, f"{model}: {request.definition.about}."))
    return pictures


def cost(request: Request) -> PaperTable:
    """One line per training run: steps and hours, next to those of the paper."""
    lines = []
    for model, row, result in request.each("train"):
        if result is None:
            lines.append(Line((model, row.name, ""), (Figure(),) * 4))
            continue
        host, history = result.stamp.get("hardware", {}), result.history()
        steps = float(history["step"].max()) if len(history) else math.nan
        hours = float(result.stamp["seconds"]) / 3600
        on_cpu = result.parameters.get("runtime.device") == "cpu"
        where = f"{host.get('cores')} cores of {host.get('cpu')}" if on_cpu else "GPU"
        values = {
            "steps": steps,
            "hours": hours,
            # The record of a job does not contain its number of GPUs.
            "device_hours": hours * int(host["cores"]) if on_cpu else math.nan,
            "seconds_a_step": 3600 * hours / steps,
        }
        paper = request.published_model(model), row.as_published
        cells = tuple(
            _cost(request, result, value, figure_of(request.definition.published, *paper, name))
            for name, value in values.items()
        )
        lines.append(Line((model, row.name, where), cells))
    columns = ("steps", "hours", "device-hours", "seconds per step")
    keys = ("model", "trained with", "devices")
    return PaperTable(keys, columns, tuple(lines), request.published_of)


def _cost(request: Request, result: Result, value: float, published: float | None) -> Figure:
    if math.isnan(value):
        return request.figure(result)
    return request.figure(
        result,
        text=three_digits(value),
        value=value,
        published="" if published is None else f"{published:g}",
        verdict=verdict(value, published, 100.0, comparable=False),
    )


def cost_sentence(model: str, lines: Sequence[Line]) -> str:
    parts = [f"{line.keys[1]} took {line.figures[1].text} hours" for line in lines]
    return f"{model}: {', '.join(parts)}."


def cost_pictures(request: Request, table: PaperTable, folder: Path) -> list[Picture]:
    """The history of each training run."""
    pictures = []
    for model, row, result in request.each("train"):
        where = f"{request.of(model)}, {row.name}"
        drawing = training_picture(result.history(), where) if result is not None else None
        if drawing is not None:
            caption = f"{request.of(model)}: training of {row.name}."
            pictures.append(saved(drawing, f"{model}_{row.name}", caption, folder))
    return pictures

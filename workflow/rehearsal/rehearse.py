"""A check of a complete study: its bill, and every fault that is detectable without running it."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from sf.config import Params
from sf.errors import ConfigError, SparsityForcingError
from sf.rehearsal.least_memory import Need
from sf.rehearsal.shapes import ModelShape, shape_of
from sf.scales import FOLDER, scale_values
from sf.validation import read_yaml
from workflow.jobs import jobs
from workflow.rehearsal.bill import GIB, Bill, bill_of
from workflow.rehearsal.findings import dense_ratios, rank_faults, unfit_bases, usable
from workflow.rehearsal.memory import GPU_GIB, JobNeed, least_needs, memory_faults
from workflow.rehearsal.sources import source_faults
from workflow.terms import terms_notes

__all__ = ["Options", "Rehearsal", "as_json", "rehearse", "shown"]

CURRENT = Path("params.yaml")


@dataclass(frozen=True)
class Options:
    """Options outside a study's parameters.

    Attributes:
        gpu_gib: memory of each GPU.
        disk_gib: free space for the results; None for that of this disk, if the study runs here.
        seconds_a_step: training time per step; None for an estimate from the published time.
        peak: run a step of each training and a batch of each evaluated method on shapes, for the
            peak memory; takes minutes.
    """

    gpu_gib: float = GPU_GIB
    disk_gib: float | None = None
    seconds_a_step: float | None = None
    peak: bool = False


@dataclass(frozen=True)
class Rehearsal:
    """The findings.

    Attributes:
        scale: the study's name.
        needs: least memory of trainings, evaluations and calibrations; or peak memory.
        bill: None if the parameters are unusable.
        faults: errors that name a parameter and the rule.
        notes: omitted checks, with the reason.
    """

    scale: str
    bill: Bill | None = None
    needs: list[JobNeed] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def rehearse(scale: str | None, options: Options = Options(), folder: Path = FOLDER) -> Rehearsal:
    """Check a study; runs, downloads and writes nothing.

    Args:
        scale: its name; None for `params.yaml`.
        options: outside its parameters.
        folder: of the scales.

    Raises:
        ConfigError: no such scale, or a file that is not YAML. All other errors are findings.
    """
    values = read_yaml(CURRENT) if scale is None else scale_values(scale, folder)
    where = str(CURRENT if scale is None else folder / f"{scale}.yaml")
    params, faults = usable(values, f"{where}: ")
    name = str(values.get("scale", scale))
    if params is None:
        return Rehearsal(name, faults=faults, notes=["no bill: the parameters are unusable"])
    unfit = list(unfit_bases(params))
    faults += [error for _, error in unfit]
    faults += [*dense_ratios(params), *source_faults(params)]
    try:
        specs = jobs(params)
    except ConfigError as error:
        return Rehearsal(name, faults=[*faults, error], notes=["no bill: the jobs are unknown"])
    shapes, notes = _shapes(params)
    notes += terms_notes(specs)
    for model in dict.fromkeys(model for model, _ in unfit):
        shapes[model] = None
        notes.append(f"jobs on base.{model} count with their limits: its training cannot start")
    divided = list(rank_faults(specs, params))
    bill = bill_of(params, specs, shapes, options.seconds_a_step)
    needs = least_needs(params, specs, shapes)
    if options.peak:
        from workflow.rehearsal.peaks import with_peaks, without_peaks

        needs = with_peaks(needs, specs, shapes)
        notes += without_peaks(specs, shapes)
    faults += [*divided, *memory_faults(needs, params, options.gpu_gib)]
    faults += [*_limit_faults(bill), *_disk_faults(bill, params, options, notes)]
    return Rehearsal(name, bill, needs, list(dict.fromkeys(faults)), notes)


def _shapes(params: Params) -> tuple[dict[str, ModelShape | None], list[str]]:
    shapes: dict[str, ModelShape | None] = {}
    notes = []
    for model, spec in params.base.items():
        try:
            shapes[model] = shape_of(spec)
        except SparsityForcingError:
            shapes[model] = None  # the sources are looked at apart
        if shapes[model] is None:
            notes.append(f"the sizes of base.{model} ({spec.source}) are unknown")
    return shapes, notes


def _limit_faults(bill: Bill) -> Iterator[ConfigError]:
    """Errors for time limits below the known or assumed time of a job."""
    for charge in bill.charges:
        if charge.hours <= charge.limit:
            continue
        run = charge.job.stage.run
        rule = f"is too short for {charge.job.name}, which takes {charge.hours:.1f} h"
        if run == "train":
            steps = charge.job.parameters["train"]["steps"]
            seconds = charge.hours * 3600 / steps
            rule += f" ({steps:,} steps of {seconds:.1f} s, checkpoints included, {charge.basis})"
        remedy = f"raise it to {math.ceil(1.1 * charge.hours)} or more"
        if run == "train":
            remedy += ", or lower train.steps"
        yield ConfigError(f"resources.{run}.hours", charge.limit, rule, remedy)


def _disk_faults(
    bill: Bill, params: Params, options: Options, notes: list[str]
) -> Iterator[ConfigError]:
    """Errors for too little disk space for checkpoints and weights."""
    free = options.disk_gib
    if free is None and (params.runtime.device == "cpu" or torch.cuda.is_available()):
        free = shutil.disk_usage(Path.cwd()).free / GIB
    if free is None:
        notes.append("the disk is not checked: give its free space with --disk-gib")
    elif free < bill.disk / GIB:
        keep = "keep fewer checkpoints (train.save_every up, train.collapse.patience down)"
        rule = f"must hold {bill.disk / GIB:,.0f} GiB of checkpoints and weights"
        yield ConfigError("free disk space", f"{free:,.1f} GiB", rule, f"free some, or {keep}")


def shown(seen: Rehearsal) -> Iterator[Table | str]:
    """The terminal output: tables and sentences, with the faults last."""
    yield f"rehearsal of {seen.scale}"
    if seen.bill is not None:
        yield from _bill_tables(seen.bill)
        yield from _memory_table(seen.needs)
    yield from (f"note: {note}" for note in seen.notes)
    yield from (f"error: {fault}" for fault in seen.faults)
    count = len(seen.faults)
    yield "no errors found" if not count else f"{count} errors"


def _table(titles: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    table = Table()
    for title in titles:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    return table


def _bill_tables(bill: Bill) -> Iterator[Table | str]:
    rules: dict[str, list[Any]] = {}
    for charge in bill.charges:
        rules.setdefault(charge.job.stage.name, []).append(charge)
    yield _table(
        ("stage", "jobs", "GPUs each", "hours each", "limit", "GPU-hours", "from"),
        (
            (
                name,
                len(charges),
                _span(charge.gpus for charge in charges),
                _span(charge.hours for charge in charges),
                _span(charge.limit for charge in charges),
                f"{sum(charge.gpu_hours for charge in charges):,.0f}",
                ", ".join(dict.fromkeys(charge.basis for charge in charges)),
            )
            for name, charges in rules.items()
        ),
    )
    yield _table(
        ("table", "jobs it needs", "GPU-hours", "hours of jobs"),
        (
            (name, count, f"{gpu_hours:,.0f}", f"{hours:,.0f}")
            for name, (count, gpu_hours, hours) in bill.tables.items()
        ),
    )
    if bill.downloads:
        yield _table(
            ("download", "GiB", "source of the size"),
            (
                (each.what, "not known" if each.gib is None else f"{each.gib:,.1f}", each.source)
                for each in bill.downloads
            ),
        )
    yield from _sentences(bill)


def _memory_table(needs: Sequence[JobNeed]) -> Iterator[Table | str]:
    shared = "on each GPU or in each process, at the longest prompts"
    texts = {
        "peak memory": f"{shared} and answers, nearly all tokens kept; the CUDA context and "
        "fragmentation come on top",
        "least memory": f"{shared}, without activations",
    }
    for title, text in texts.items():
        listed = [each for each in needs if each.least == (title == "least memory")]
        if listed:
            yield _table(
                (title, "part", "GiB", "of which"),
                (
                    (each.job.name, need.part, f"{need.total / GIB:,.2f}", _categories(need))
                    for each in listed
                    for need in each.needs
                ),
            )
            yield f"{title}: {text}"


def _categories(need: Need) -> str:
    """The categories that are not zero to two decimals, in GiB."""
    shown = {name: f"{size / GIB:,.2f}" for name, size in need.bytes.most_common()}
    return ", ".join(f"{name} {text}" for name, text in shown.items() if text != "0.00")


def _span(values: Iterable[float]) -> str:
    every = [f"{value:.4g}" for value in sorted(values)]
    return every[0] if every[0] == every[-1] else f"{every[0]} to {every[-1]}"


def _sentences(bill: Bill) -> Iterator[str]:
    limited = any(charge.basis == "limit" for charge in bill.charges)
    about = "at most" if limited else "about"
    yield f"{len(bill.charges)} jobs, {about} {bill.gpu_hours:,.0f} GPU-hours"
    where = (
        f"; {bill.wall_clock:,.0f} on {bill.machine} GPUs of one machine" if bill.machine else ""
    )
    yield f"{about} {bill.longest_chain:,.0f} hours with unlimited parallel jobs{where}"
    if bill.downloads:
        unknown = f", and {len(bill.unknown)} of unknown size" if bill.unknown else ""
        space = "unpacked archives need the same space again"
        yield f"downloads: {bill.known_gib:,.0f} GiB{unknown}; {space}"
    yield f"results: up to {bill.disk / GIB:,.1f} GiB of checkpoints and weights"
    yield from (f"assumed: {sentence}" for sentence in bill.assumptions)


def as_json(seen: Rehearsal) -> dict[str, Any]:
    """Plain values for programs."""
    bill = seen.bill
    return {
        "scale": seen.scale,
        "bill": None if bill is None else _bill_values(bill),
        **{
            name: [
                {"job": each.job.name, "part": need.part, "bytes": dict(need.bytes)}
                for each in seen.needs
                if each.least == least
                for need in each.needs
            ]
            for name, least in (("least_memory", True), ("peak_memory", False))
        },
        "notes": seen.notes,
        "faults": [_fault_values(fault) for fault in seen.faults],
    }


def _fault_values(fault: Exception) -> dict[str, Any]:
    named = {name: getattr(fault, name, None) for name in ("field", "value", "rule", "remedy")}
    plain = (str, int, float, bool, type(None))
    value = named["value"] if isinstance(named["value"], plain) else str(named["value"])
    return {**named, "value": value, "message": str(fault)}


def _bill_values(bill: Bill) -> dict[str, Any]:
    return {
        "jobs": [
            {
                "name": charge.job.name,
                "stage": charge.job.stage.name,
                "gpus": charge.gpus,
                "hours": charge.hours,
                "limit_hours": charge.limit,
                "basis": charge.basis,
                "disk_bytes": max(charge.disk, charge.kept),
            }
            for charge in bill.charges
        ],
        "tables": {
            name: {"jobs": count, "gpu_hours": gpu_hours, "hours": hours}
            for name, (count, gpu_hours, hours) in bill.tables.items()
        },
        "downloads": [
            {"what": each.what, "gib": each.gib, "source": each.source} for each in bill.downloads
        ],
        "gpu_hours": bill.gpu_hours,
        "longest_chain_hours": bill.longest_chain,
        "machine_gpus": bill.machine,
        "wall_clock_hours": bill.wall_clock,
        "disk_bytes": bill.disk,
        "assumptions": bill.assumptions,
    }

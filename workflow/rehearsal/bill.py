"""The cost of a study: jobs, hours, GPU-hours, downloads and disk, in total and by table.

The jobs are those of both engines (`workflow.jobs`). Hours are measured if this job or another one
of its rule has a result. Otherwise training hours follow from the published time of a step, and
other hours are the time limits in `resources`, which are upper bounds.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sf.config import Params
from sf.evaluation.benchmarks import benchmarks_of
from sf.jobs import stage_module
from sf.profiling.models import SHAPES, class_and_config
from sf.rehearsal.shapes import ModelShape
from sf.rehearsal.weights import WeightCounts, weight_counts
from sf.report.published import figure_of
from sf.training.checkpoints import checkpoint_bytes
from sf.training.collapse import kept_checkpoints
from sf.validation import validated
from workflow.jobs import JobSpec, resources_of
from workflow.status import expected_by_job, study_status
from workflow.targets import closure

__all__ = ["Bill", "Charge", "Download", "bill_of"]

PUBLISHED_MODEL, PUBLISHED_ROLLOUTS = "qwen2.5-vl-7b", 8
CHECKPOINT_BYTES_A_SECOND = 0.7e9
GIB = 2.0**30


@dataclass(frozen=True)
class Charge:
    """The cost of a job.

    Attributes:
        job: of the study.
        gpus: number of GPUs that it uses.
        hours: expected time.
        limit: time limit in `resources`, in hours.
        basis: of `hours`: "measured", "published" or "limit".
        disk: bytes needed during the run. kept: bytes that remain.
    """

    job: JobSpec
    gpus: int
    hours: float
    limit: float
    basis: str
    disk: float = 0.0
    kept: float = 0.0

    @property
    def gpu_hours(self) -> float:
        return self.hours * self.gpus


@dataclass(frozen=True)
class Download:
    """A download; `gib` is None if its size is unknown."""

    what: str
    gib: float | None
    source: str


@dataclass(frozen=True)
class Bill:
    """The cost of a study.

    Attributes:
        charges: one per job, in the study's order.
        tables: number of jobs, GPU-hours and sequential hours of each table with its inputs.
        downloads: everything to be fetched.
        longest_chain: hours with unlimited parallelism.
        machine: number of GPUs for `wall_clock`; 0 if the study needs none.
        wall_clock: hours on such a machine.
        assumptions: sentences.
    """

    charges: list[Charge]
    tables: dict[str, tuple[int, float, float]]
    downloads: list[Download]
    longest_chain: float
    machine: int
    wall_clock: float
    assumptions: list[str]

    @property
    def gpu_hours(self) -> float:
        return sum(charge.gpu_hours for charge in self.charges)

    @property
    def disk(self) -> float:
        """Bytes on the results' disk if all training jobs run at once."""
        return sum(max(charge.disk, charge.kept) for charge in self.charges)

    @property
    def unknown(self) -> list[Download]:
        return [each for each in self.downloads if each.gib is None]

    @property
    def known_gib(self) -> float:
        return sum(each.gib or 0.0 for each in self.downloads)


def bill_of(
    params: Params,
    specs: Sequence[JobSpec],
    shapes: Mapping[str, ModelShape | None],
    seconds_a_step: float | None = None,
) -> Bill:
    """The bill of a study; runs nothing.

    Args:
        params: of the study.
        specs: its jobs.
        shapes: of its base models, by name; None if unknown.
        seconds_a_step: training time per step; None for an estimate from the published time.
    """
    measured = expected_by_job(study_status(specs))
    charges = [_charge(job, params, measured[job.name], shapes, seconds_a_step) for job in specs]
    by_stamp = {charge.job.stamp: charge for charge in charges}
    tables = {}
    for job in specs:
        if job.stage.name == "table":
            needed = [by_stamp[each.stamp] for each in closure([job], specs)]
            tables[job.name] = (
                len(needed),
                sum(charge.gpu_hours for charge in needed),
                sum(charge.hours for charge in needed),
            )
    machine = max((charge.gpus for charge in charges), default=0)
    return Bill(
        charges=charges,
        tables=tables,
        downloads=_downloads(params, shapes),
        longest_chain=_schedule(charges, 0),
        machine=machine,
        wall_clock=_schedule(charges, machine),
        assumptions=_assumptions(charges, seconds_a_step),
    )


def _charge(
    job: JobSpec,
    params: Params,
    measured: float | None,
    shapes: Mapping[str, ModelShape | None],
    seconds_a_step: float | None,
) -> Charge:
    _, given = resources_of(job.stage.run, job.parameters, params)
    hours, basis, disk, kept = given.hours, "limit", 0.0, 0.0
    shape = shapes.get(job.parameters.get("model", ""))
    if job.stage.run == "base" and shape is not None:
        kept = 2.0 * shape.num_parameters
    if job.stage.run == "train" and shape is not None:
        p = validated(stage_module("train").Parameters, job.parameters)
        counts = weight_counts(shape, p)
        size = checkpoint_bytes(counts.every, counts.trained)
        disk, kept = float(size * (kept_checkpoints(p) + 1)), 4.0 * counts.every
        step = seconds_a_step or _published_step(p, counts, given.processes)
        if step is not None:
            saves = p.train.steps // p.train.save_every
            seconds = p.train.steps * step + saves * size / CHECKPOINT_BYTES_A_SECOND
            hours, basis = seconds / 3600, "given" if seconds_a_step else "published"
    if measured is not None:
        hours, basis = measured / 3600, "measured"
    return Charge(job, given.all_gpus, hours, given.hours, basis, disk, kept)


def _published_step(p: Any, counts: WeightCounts, ranks: int) -> float | None:
    """Seconds per step, from the published time; None on a CPU."""
    published = figure_of("cost", PUBLISHED_MODEL, "sparsity_forcing", "seconds_a_step")
    if p.runtime.device == "cpu" or published is None:
        return None
    rollouts = p.train.questions_per_step * p.objective.group_size / ranks
    shape = SHAPES[PUBLISHED_MODEL]
    weights = ModelShape(*class_and_config(shape), shape.hub).num_parameters
    return published * (counts.every / weights) * (rollouts / PUBLISHED_ROLLOUTS)


def _downloads(params: Params, shapes: Mapping[str, ModelShape | None]) -> list[Download]:
    listed = []
    for model, spec in params.base.items():
        shape = shapes[model]
        if spec.source.startswith("hub:"):
            gib = None if shape is None else 2 * shape.num_parameters / GIB
            note = "unknown" if shape is None else f"computed: {shape.origin}, 2 bytes per weight"
            listed.append(Download(spec.source.removeprefix("hub:"), gib, note))
    if params.prepare.source.startswith("hub:"):
        name = params.prepare.source.removeprefix("hub:")
        listed.append(Download(name, None, "unknown until the download starts"))
    if params.benchmarks.source == "hub":
        sizes: dict[str, tuple[str, float]] = {}
        for benchmark in benchmarks_of(params.benchmarks.suites):
            for task in benchmark.tasks:
                sizes.setdefault(task.repository, (benchmark.title, benchmark.download_gib))
        for repository, (title, gib) in sizes.items():
            note = "an estimate, not checked against the hub"
            listed.append(Download(f"{repository} ({title})", gib, note))
    return listed


def _schedule(charges: Sequence[Charge], gpus: int) -> float:
    """Hours until the last job ends; a job waits for its inputs and its GPUs.

    Args:
        charges: each after those that it reads.
        gpus: of the machine; 0 for no limit.
    """
    ends: dict[str, float] = {}
    free = [0.0] * gpus  # when each GPU is free
    heapq.heapify(free)
    for charge in charges:
        start = max((ends.get(stamp, 0.0) for stamp in charge.job.inputs), default=0.0)
        taken = [heapq.heappop(free) for _ in range(charge.gpus)] if gpus else []
        end = max([start, *taken]) + charge.hours
        for _ in taken:
            heapq.heappush(free, end)
        ends[charge.job.stamp] = end
    return max(ends.values(), default=0.0)


def _assumptions(charges: Sequence[Charge], seconds_a_step: float | None) -> list[str]:
    bases = {charge.basis for charge in charges}
    sentences = []
    if "measured" in bases:
        sentences.append("jobs with a result of their own or of their rule count with its time")
    if "published" in bases:
        seconds = figure_of("cost", PUBLISHED_MODEL, "sparsity_forcing", "seconds_a_step")
        sentences.append(
            f"a training step takes the published {seconds:g} s (Qwen2.5-VL-7B, 8 questions with "
            "8 rollouts on 8 A100), scaled by weights and rollouts per GPU, for every objective"
        )
    if "given" in bases:
        sentences.append(f"a training step takes {seconds_a_step:g} s, as given")
    if bases & {"published", "given"}:
        rate = CHECKPOINT_BYTES_A_SECOND / 1e9
        sentences.append(f"a checkpoint is written and hashed at {rate:g} GB per second")
    if "limit" in bases:
        sentences.append("other jobs count with their time limit in resources, an upper bound")
    return sentences

"""Jobs of a study whose least memory exceeds that of a GPU or a node."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from sf.config import Params, Resources
from sf.errors import ConfigError
from sf.evaluation.benchmarks import benchmarks_of
from sf.jobs import stage_module
from sf.rehearsal.least_memory import Need, answering, training
from sf.rehearsal.shapes import ModelShape
from sf.validation import validated
from workflow.jobs import JobSpec
from workflow.rehearsal.bill import GIB

__all__ = ["GPU_GIB", "JobNeed", "least_needs", "memory_faults"]

GPU_GIB = 79.0
"""Memory available to torch on an 80 GB GPU."""
_FLOAT32 = 4


@dataclass(frozen=True)
class JobNeed:
    """The least memory of a job.

    Attributes:
        job: the first of the jobs with the same needs.
        given: its resources. section: their key.
        needs: on each GPU, by part.
        host: bytes on each node while weights are loaded.
        least: whether the needs are lower bounds, or peaks.
        new_tokens: length of the longest reply; 0 for trainings.
    """

    job: JobSpec
    given: Resources
    section: str
    needs: tuple[Need, ...]
    host: int
    least: bool = True
    new_tokens: int = 0

    @property
    def largest(self) -> Need:
        return max(self.needs, key=lambda need: need.total)


def least_needs(
    params: Params, specs: Sequence[JobSpec], shapes: Mapping[str, ModelShape | None]
) -> list[JobNeed]:
    """The needs of training jobs, and of one evaluation and one calibration per base model.

    Training jobs whose rollouts cannot be divided over their processes are omitted.
    """
    listed: list[JobNeed] = []
    seen: set[tuple[str, str]] = set()
    for job in specs:
        run, model = job.stage.run, str(job.parameters.get("model", ""))
        shape = shapes.get(model)
        section, given = params.resources_of(run)
        if shape is None or run not in ("train", "evaluate", "calibrate"):
            continue
        tokens = 0
        if run == "train":
            p = validated(stage_module("train").Parameters, job.parameters)
            try:
                needs = tuple(training(shape, p, given.processes))
            except ConfigError:
                continue  # reported by `findings.rank_faults`
            host = _FLOAT32 * shape.num_parameters * given.processes_a_node
        else:
            if (run, model) in seen:
                continue
            seen.add((run, model))
            tokens = params.answering.max_completion_tokens
            if run == "evaluate":
                tasks = [t for b in benchmarks_of(params.benchmarks.suites) for t in b.tasks]
                tokens = max(task.max_new_tokens for task in tasks)
            batch = params.evaluate.batch if run == "evaluate" else params.calibrate.batch
            need = answering(shape, params.runtime, params.evaluation_vision, batch, tokens, run)
            needs, host = (need,), need.fixed * given.processes_a_node
        listed.append(JobNeed(job, given, section, needs, host, new_tokens=tokens))
    return listed


def memory_faults(listed: Sequence[JobNeed], params: Params, gpu_gib: float) -> Iterator[Exception]:
    """Errors for jobs whose certain needs already exceed the memory.

    Args:
        listed: from `least_needs`.
        params: of the study.
        gpu_gib: memory of each GPU.
    """
    for each in _largest(listed):
        cpu = params.runtime.device == "cpu"
        host = each.host + (each.largest.total if cpu else 0)
        if not cpu and each.largest.total > gpu_gib * GIB:
            yield _fault(each, gpu_gib)
        if host > each.given.mem_gib * GIB:
            rule = f"is too little for {each.job.name}, which needs {_about(each, host)}"
            where = "for its step" if cpu else "on each node while weights are loaded"
            remedy = f"raise it to {math.ceil(1.2 * host / GIB)} or more"
            field = f"resources.{each.section}.mem_gib"
            yield ConfigError(field, each.given.mem_gib, f"{rule} {where}", remedy)


def _largest(listed: Sequence[JobNeed]) -> list[JobNeed]:
    """The needs; of the evaluations of each base model, which share their batch, the largest."""
    largest: dict[str, JobNeed] = {}
    for each in listed:
        if each.job.stage.run == "evaluate":
            known = largest.setdefault(each.job.parameters["model"], each)
            if each.largest.total > known.largest.total:
                largest[each.job.parameters["model"]] = each
    kept = {id(each) for each in largest.values()}
    return [each for each in listed if each.job.stage.run != "evaluate" or id(each) in kept]


def _fault(each: JobNeed, gpu_gib: float) -> ConfigError:
    need, job = each.largest, each.job
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in need.bytes.most_common() if size)
    rule = (
        f"does not fit: {job.name} needs {_about(each, need.total)} on each GPU in "
        f"{need.part} ({parts}), and a GPU has {gpu_gib:g}"
    )
    if need.fixed > gpu_gib * GIB:
        value = job.parameters.get("train", {}).get("sharding")
        if job.stage.run == "train":
            remedy = "divide the weights (fsdp) over more GPUs, or train adapters (train.lora)"
            return ConfigError("train.sharding", value, rule, remedy)
        return ConfigError("runtime.dtype", job.parameters["runtime"]["dtype"], rule, "use a GPU "
                           "with more memory, or a smaller model")  # fmt: skip
    section, _, field = need.batch.partition(".")
    value = job.parameters[section][field]
    if value > 1:
        return ConfigError(need.batch, value, rule, "lower it")
    train = job.parameters.get("train", {})
    if train.get("gradient_checkpointing") is False:
        return ConfigError("train.gradient_checkpointing", False, rule, "set it to true")
    bounds = "vision" if job.stage.run == "train" else "evaluation_vision"
    frames = job.parameters["vision"]["video_max_frames"]
    remedy = "lower it or the pixels of an image or a frame, or use more or larger GPUs"
    return ConfigError(f"{bounds}.video_max_frames", frames, rule, remedy)


def _about(each: JobNeed, size: float) -> str:
    return f"{'at least' if each.least else 'up to'} {size / GIB:.1f} GiB"

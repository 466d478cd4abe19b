"""Peak memory of a study: a step of each training and a batch of each method, run on shapes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from transformers.utils import logging

from sf.attention.trained import TrainedAttention
from sf.baselines import Method
from sf.baselines.registry import BLOCKS, TRAINED
from sf.baselines.resolve import resolve_record
from sf.errors import ConfigError
from sf.jobs import stage_module
from sf.processes import map_processes
from sf.progress import progress
from sf.rehearsal.answering_peak import answering_peaks
from sf.rehearsal.depth import by_depth
from sf.rehearsal.least_memory import Need
from sf.rehearsal.live_memory import Peaks
from sf.rehearsal.shapes import ModelShape
from sf.rehearsal.training_peak import SAMPLING, training_peaks
from sf.sections import SCRATCH_FAMILIES
from sf.training.build_trainer import check_sharding, trained_attention_of
from sf.training.parameters import RunParameters
from sf.validation import validated
from workflow.jobs import JobSpec
from workflow.rehearsal.memory import JobNeed

__all__ = ["with_peaks", "without_peaks"]


def with_peaks(
    listed: Sequence[JobNeed], specs: Sequence[JobSpec], shapes: Mapping[str, ModelShape | None]
) -> list[JobNeed]:
    """The needs with peaks, where a job can be run on shapes.

    - Trainings: in the place of their lower bounds; those that differ only in their seed are run
      once. A training whose weights cannot be divided keeps its lower bound
      (`findings.rank_faults` reports it).
    - Evaluations: after the base model's lower bound, one for each attention of its evaluations,
      `axes.methods` and that of each training (see `without_peaks` for those left out).

    What needs a LLaVA model, whose longest inputs are not known here, keeps its lower bound.

    Args:
        listed: from `least_needs`.
        specs: the jobs of the study.
        shapes: of the base models.
    """
    answered = {
        model: [each for each in _attentions(model, specs) if each.runs(shape)]
        for model, shape in shapes.items()
    }
    runs: dict[str, _Run] = {}
    planned: list[tuple[JobNeed, _Run | None]] = []
    for each in listed:
        if each.job.stage.run == "train":
            planned.append((each, _training(each, shapes, runs)))
            continue
        planned.append((each, None))
        if each.job.stage.run == "evaluate":
            model = str(each.job.parameters["model"])
            planned += [_batch(each, shapes[model], answering) for answering in answered[model]]
    each_once = list(dict.fromkeys(run for _, run in planned if run is not None))
    with progress("peak memory", len(each_once)) as counter:
        found = map_processes(_Run.needs, each_once, lambda run: counter.advance(note=run.name))
    needs = dict(zip(each_once, found, strict=True))
    return [
        each if run is None else replace(each, needs=needs[run], least=False)
        for each, run in planned
    ]


def without_peaks(
    specs: Sequence[JobSpec], shapes: Mapping[str, ModelShape | None]
) -> Iterator[str]:
    """Sentences on the attentions of evaluations that have a lower bound only.

    They decode token by token, need weights that the base model lacks, or run on a LLaVA model.

    Args:
        specs: the jobs of the study.
        shapes: of the base models.
    """
    for model, shape in shapes.items():
        left = [each.method.name for each in _attentions(model, specs) if not each.runs(shape)]
        if left:
            names = ", ".join(dict.fromkeys(left))
            yield f"memory of evaluations of {model}: lower bound only for {names}"


@dataclass(frozen=True)
class _Answering:
    """An attention under which a base model or a checkpoint trained from it is evaluated.

    Attributes:
        method: with its value.
        job: the first evaluation of it.
    """

    method: Method
    job: JobSpec

    def runs(self, shape: ModelShape | None) -> bool:
        """Whether a batch can be run on shapes."""
        return (
            shape is not None
            and _runs(shape)
            and self.method.decodes_densely
            and self.method.name not in BLOCKS
        )


def _attentions(model: str, specs: Sequence[JobSpec]) -> list[_Answering]:
    """The different attentions of a base model's evaluations, in the order of the jobs."""
    jobs = [each for each in specs if each.parameters.get("model") == model]
    trained: dict[str, TrainedAttention] = {}
    for job in jobs:
        if job.stage.run == "train":
            p = validated(stage_module("train").Parameters, job.parameters)
            trained.setdefault(p.row, trained_attention_of(p))
    methods: dict[Method, JobSpec] = {}
    for job in jobs:
        if job.stage.run == "evaluate":
            given = job.parameters
            record = trained[given["row"]] if given["method"] == TRAINED else None
            retention_p = given["evaluate"]["retention_p"]
            method = resolve_record(record, given["method"], given["value"], retention_p)
            methods.setdefault(method, job)
    return [_Answering(*each) for each in methods.items()]


@dataclass(frozen=True, eq=False)
class _Run:
    """What is run on shapes: a training's step, or a batch of an evaluation.

    Attributes:
        name: of the job.
        peaks: runs it; can be pickled.
        batch: the parameter that sets a stage's batch size, by stage; "" for the others.
    """

    name: str
    peaks: Callable[[], Peaks]
    batch: Mapping[str, str]

    def needs(self) -> tuple[Need, ...]:
        with _quiet():
            peaks = self.peaks()
        batch = self.batch
        return tuple(Need(*each, batch.get(each[0], batch[""])) for each in peaks.items())


def _training(
    each: JobNeed, shapes: Mapping[str, ModelShape | None], runs: dict[str, _Run]
) -> _Run | None:
    """The run of a training, that of an equal one in `runs`, or None for a lower bound."""
    p = validated(stage_module("train").Parameters, each.job.parameters)
    ranks, shape = each.given.processes, shapes[p.model]
    if shape is None or not _runs(shape) or not _divides(p, ranks):
        return None
    key = f"{ranks} {p.model_dump_json(exclude={'seed', 'row'})}"
    batch = {SAMPLING: "train.questions_per_step", "": "train.rollouts_per_forward"}
    return runs.setdefault(key, _Run(each.job.name, partial(_peaks, shape, p, ranks), batch))


def _batch(least: JobNeed, shape: ModelShape | None, answering: _Answering) -> tuple[JobNeed, _Run]:
    """The job of one evaluation, and its run.

    Args:
        least: of the model's evaluations.
        shape: of the model.
        answering: what to evaluate.
    """
    assert shape is not None
    p = validated(stage_module("evaluate").Parameters, answering.job.parameters)
    given = p.runtime.dtype, p.vision, p.evaluate.batch, least.new_tokens, answering.method
    run = partial(answering_peaks, shape, *given)
    return replace(least, job=answering.job), _Run(answering.job.name, run, {"": "evaluate.batch"})


@contextmanager
def _quiet() -> Iterator[None]:
    """Warnings and notes are for the run itself."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def _runs(shape: ModelShape) -> bool:
    return shape.config.model_type in SCRATCH_FAMILIES


def _divides(p: RunParameters, ranks: int) -> bool:
    try:
        check_sharding(p, ranks)
    except ConfigError:
        return False
    return True


def _peaks(shape: ModelShape, p: RunParameters, ranks: int) -> Peaks:
    return by_depth(lambda each: training_peaks(each, p, ranks), shape)

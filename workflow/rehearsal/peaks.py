"""Peak memory of a study's trainings: one step of each, run on shapes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from transformers.utils import logging

from sf.config import validated
from sf.errors import ConfigError
from sf.jobs import stage_module
from sf.progress import progress
from sf.rehearsal.depth import by_depth
from sf.rehearsal.least_memory import Need
from sf.rehearsal.live_memory import Peaks
from sf.rehearsal.shapes import ModelShape
from sf.rehearsal.training_peak import SAMPLING, training_peaks
from sf.sections import SCRATCH_FAMILIES
from sf.training.parameters import RunParameters
from sf.training.run import check_sharding
from workflow.rehearsal.memory import JobNeed

__all__ = ["with_peaks"]


def with_peaks(listed: Sequence[JobNeed], shapes: Mapping[str, ModelShape | None]) -> list[JobNeed]:
    """The needs with peaks in the place of the trainings' lower bounds.

    Trainings that differ only in their seed are run once. A training whose weights cannot be
    divided keeps its lower bound (`findings.rank_faults` reports it), and so does one of a LLaVA
    model, whose longest inputs are not known here.

    Args:
        listed: from `least_needs`.
        shapes: of the base models.
    """
    trainings = {at: each for at, each in enumerate(listed) if each.job.stage.run == "train"}
    known: dict[str, tuple[Need, ...]] = {}
    result = list(listed)
    with progress("peak memory", len(trainings)) as counter, _quiet():
        for at, each in trainings.items():
            p = validated(stage_module("train").Parameters, each.job.parameters)
            ranks, shape = each.given.processes, shapes[p.model]
            key = f"{ranks} {p.model_dump_json(exclude={'seed', 'row'})}"
            if shape is not None and _runs(shape) and _divides(p, ranks):
                if key not in known:
                    known[key] = _needs(_peaks(shape, p, ranks))
                result[at] = replace(each, needs=known[key], least=False)
            counter.advance(note=each.job.name)
    return result


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


def _needs(peaks: Peaks) -> tuple[Need, ...]:
    per_step, per_forward = "train.questions_per_step", "train.rollouts_per_forward"
    return tuple(
        Need(stage, bytes_, per_step if stage == SAMPLING else per_forward)
        for stage, bytes_ in peaks.items()
    )

"""Peaks on shapes against the memory that real steps of the mini world take."""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from sf.config import Params
from sf.jobs import stage_module
from sf.profiling.memory import peak_of
from sf.rehearsal.depth import at_depth, by_depth
from sf.rehearsal.live_memory import FIXED, GATHERED, GRADIENTS, OPTIMISER, WEIGHTS, LiveMemory
from sf.rehearsal.shapes import ModelShape, shape_of
from sf.rehearsal.training_peak import run_step, training_peaks
from sf.scales import scale_values
from sf.training.objectives import OBJECTIVES
from sf.training.parameters import RunParameters
from sf.validation import merged, validated
from workflow.jobs import jobs

FOLDER = Path(__file__).parent.parent.parent / "params"
pytestmark = pytest.mark.filterwarnings("ignore")


def training(objective: str, **train: Any) -> tuple[ModelShape, RunParameters]:
    """The mini world's base model, and its training with one question a step."""
    values = scale_values("mini", FOLDER)
    values["objectives"] = {"row": {"objective": objective}}
    values = merged(values, {"train": {"questions_per_step": 1, "steps": 1, **train}})
    params = validated(Params, values)
    job = next(job for job in jobs(params) if job.stage.run == "train")
    shape = shape_of(params.base[job.parameters["model"]])
    assert shape is not None
    return shape, validated(stage_module("train").Parameters, job.parameters)


@pytest.fixture(scope="module")
def sft() -> Counter[str]:
    """The whole step's peak of supervised fine-tuning."""
    return largest(training_peaks(*training("zipvl_sft")))


def largest(peaks: dict[str, Counter[str]]) -> Counter[str]:
    return max(peaks.values(), key=Counter.total)


QUICK = ("sparsity_forcing", "zipvl_sft", "distil")


@pytest.mark.parametrize(
    "objective",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in OBJECTIVES],
)
def test_the_peak_is_near_that_of_a_real_step(objective: str) -> None:
    """Which torch's profiler counts, on random weights, with real selection and sampling."""
    shape, p = training(objective)
    logged: list[dict[str, float]] = []
    gc.collect()  # what others left would be freed within, and count as negative

    def run(mark: Any) -> None:
        logged.append(run_step(shape, p))
        mark()

    measured = peak_of(run, torch.device("cpu")).prefill
    predicted = largest(training_peaks(shape, p, token_ratio=logged[0]["token_ratio"])).total()
    assert predicted == pytest.approx(measured, rel=0.15)


def test_all_tokens_are_an_upper_bound(sft: Counter[str]) -> None:
    shape, p = training("zipvl_sft")
    few = largest(training_peaks(shape, p, token_ratio=0.25))
    assert few.total() < sft.total()
    assert few[WEIGHTS] == sft[WEIGHTS]


def test_counting_a_real_step_gives_what_the_profiler_gives() -> None:
    """To the byte: what is counted by operators is what is allocated."""
    shape, p = training("zipvl_sft")
    memory = LiveMemory(shape.config.get_text_config().vocab_size)
    gc.collect()

    def run(mark: Any) -> None:
        with memory.counting():
            run_step(shape, p, memory)
        mark()

    measured = peak_of(run, torch.device("cpu")).prefill
    assert largest(memory.peaks).total() == measured


def test_weights_gradients_and_state_are_those_of_the_model() -> None:
    shape, p = training("sparsity_forcing")
    peak = training_peaks(shape, p)["optimiser step"]
    model = shape.meta()
    every = sum(4 * weight.numel() for weight in model.parameters())
    trained = every - sum(4 * weight.numel() for weight in model.model.visual.parameters())
    buffers = sum(each.nbytes for each in model.buffers())
    assert peak[WEIGHTS] == 2 * (every + buffers)  # and the reference
    assert peak[GRADIENTS] == trained
    assert peak[OPTIMISER] == pytest.approx(2 * trained, rel=0.001)  # and counts of steps


def test_sharded_weights_are_divided_by_the_ranks_and_a_layer_is_put_together() -> None:
    shape, p = training("zipvl_sft", questions_per_step=2)
    whole = training_peaks(shape, p)["optimiser step"]
    sharded = p.model_copy(update={"train": p.train.model_copy(update={"sharding": "fsdp"})})
    peaks = training_peaks(shape, sharded, ranks=2)
    model = shape.meta()
    tower = sum(4 * weight.numel() for weight in model.model.visual.parameters())
    layer = sum(4 * weight.numel() for weight in model.model.language_model.layers[0].parameters())
    held = peaks["optimiser step"]
    buffers = sum(each.nbytes for each in model.buffers())
    assert held[WEIGHTS] == tower + buffers + (whole[WEIGHTS] - tower - buffers) // 2
    assert held[GRADIENTS] == whole[GRADIENTS] // 2
    assert held[OPTIMISER] == pytest.approx(whole[OPTIMISER] / 2, rel=0.001)
    assert held[GATHERED] == 0
    assert peaks["forward"][GATHERED] >= layer
    assert not torch.distributed.is_initialized()


def test_data_parallel_gradients_have_buffers() -> None:
    shape, p = training("zipvl_sft", questions_per_step=2)
    alone, beside = (training_peaks(shape, p, ranks)["optimiser step"] for ranks in (1, 2))
    assert beside[GRADIENTS] == 2 * alone[GRADIENTS]
    assert beside[WEIGHTS] == alone[WEIGHTS]


@pytest.mark.parametrize("checkpointing", [True, False])
def test_two_and_four_layers_give_six_exactly(checkpointing: bool) -> None:
    shape, p = training("zipvl_sft", gradient_checkpointing=checkpointing)
    run: list[int] = []

    def peaks_of(each: ModelShape) -> dict[str, Counter[str]]:
        run.append(each.config.get_text_config().num_hidden_layers)
        return training_peaks(each, p)

    six = at_depth(shape, 6)
    predicted = by_depth(peaks_of, six)
    assert run == [2, 4]
    for stage, peak in training_peaks(six, p).items():
        assert predicted[stage].total() == peak.total(), stage
        assert {name: predicted[stage][name] for name in FIXED} == {
            name: peak[name] for name in FIXED
        }

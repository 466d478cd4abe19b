"""Peaks on shapes against the memory that real batches of answers take."""

from __future__ import annotations

import gc
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sf.baselines import build
from sf.profiling.memory import peak_of
from sf.rehearsal.answering_peak import answer_batch, answering_peaks
from sf.rehearsal.live_memory import WEIGHTS, LiveMemory
from sf.rehearsal.shapes import ModelShape, shape_of
from sf.scales import load_scale
from sf.sections import Vision

FOLDER = Path(__file__).parent.parent.parent / "params"


def mini() -> tuple[ModelShape, Vision]:
    params = load_scale("mini", FOLDER)
    (spec,) = params.base.values()
    shape = shape_of(spec)
    assert shape is not None
    return shape, params.evaluation_vision


@pytest.mark.parametrize("method", ["full", "zipvl", "fastv", "visionzip"])
def test_the_peak_is_near_that_of_a_real_batch(method: str) -> None:
    """Of eight questions; one ran on shapes."""
    shape, vision = mini()
    given = (shape, "float32", vision, 8, 16, build(method))
    predicted = max(answering_peaks(*given).values(), key=Counter.total).total()
    gc.collect()

    def run(mark: Any) -> None:
        answer_batch(*given)
        mark()

    measured = peak_of(run, torch.device("cpu")).prefill
    assert predicted == pytest.approx(measured, rel=0.15)


def test_a_deep_tower_adds_its_weights_alone() -> None:
    """Its blocks with attention in windows take no more memory than those of full attention."""
    shape, vision = mini()
    config = deepcopy(shape.config)
    config.vision_config.depth, config.vision_config.fullatt_block_indexes = 6, [5]
    deep = replace(shape, config=config, origin="six blocks")
    given = ("float32", vision, 2, 16, build("full"))
    memory = LiveMemory(0)
    with memory.counting():
        answer_batch(deep, *given, memory)
    counted = answering_peaks(deep, *given)
    assert set(counted) == set(memory.peaks) == {"vision tower", "prefill", "decoding"}
    for stage, peak in memory.peaks.items():
        assert counted[stage][WEIGHTS] == pytest.approx(peak[WEIGHTS], rel=0.01)
        assert counted[stage].total() == pytest.approx(peak.total(), rel=0.15), stage


def test_counting_puts_torch_back() -> None:
    """Also after a composite operator, whose parts are counted within."""
    own = torch.UntypedStorage.resize_
    memory = LiveMemory(0)
    with memory.counting(), torch.inference_mode():
        torch.nn.functional.linear(torch.ones(2, 3), torch.ones(4, 3))
        assert torch.UntypedStorage.resize_ is not own
    assert torch.UntypedStorage.resize_ is own
    assert memory.peaks[""].total() >= 4 * (6 + 12 + 8)

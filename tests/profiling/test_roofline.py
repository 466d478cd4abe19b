"""Work counted from shapes, against hand counts and torch's own counter."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sf.profiling.measurement import Settings, _roofline
from sf.profiling.models import SHAPES, LoadedModel, Shape, load_by_name
from sf.profiling.prompts import text_inputs
from sf.profiling.roofline import (
    Ceilings,
    Sizes,
    Work,
    ceilings,
    decode_work,
    floored,
    prefill_work,
    roofline_lines,
)
from sf.profiling.timing import Run
from sf.selection import TopK

# 2 layers, width 64, 4 heads of 16 over 2 KV heads, MLP 96, 256 words, float32.
TINY = Shape(64, 2, 4, 2, 96, 256, True, "a test's")
SIZES = Sizes(layers=2, model=64, heads=4, groups=2, head=16, mlp=96, vocabulary=256, element=4)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """Random weights of a tiny shape."""
    SHAPES["tiny"] = TINY
    try:
        return load_by_name("tiny", Path(), "float32", "cpu", seed=0)
    finally:
        del SHAPES["tiny"]


def test_sizes_are_read_from_a_model(loaded: LoadedModel) -> None:
    assert Sizes.of(loaded.model) == SIZES
    assert Sizes.of(deepcopy(loaded.model).bfloat16()) == replace(SIZES, element=2)


def test_a_dense_prefill_by_hand() -> None:
    work = prefill_work(SIZES, 1, 3)
    # Per token and layer: q and o 64 x 64, k and v 64 x 32.
    assert work["projections"].flops == 2 * 3 * 2 * (2 * 64 * 64 + 2 * 64 * 32)
    # 1 + 2 + 3 pairs, two products of 16 channels in 4 heads.
    assert work["attention"].flops == 2 * 4 * 16 * 6 * 4
    assert work["mlp"].flops == 2 * 3 * 2 * 3 * 64 * 96
    assert work["other"].flops == 2 * 64 * 256
    assert "selection" not in work
    # q, k, v and out of three tokens.
    assert work["attention"].bytes == 2 * 3 * 16 * (2 * 4 + 2 * 2) * 4
    assert work["mlp"].bytes == 2 * 4 * (3 * 64 * 96 + 2 * 3 * 64)
    assert work["other"].bytes == 4 * (64 * 256 + 64 + 256)


def test_a_sparse_prefill_by_hand() -> None:
    length, kept = 1024, [256.0, 128.0]
    work = prefill_work(SIZES, 2, length, kept)
    rows = 2 * (256 + 128)
    asked = rows + 2 * 2 * 128  # the probes' queries as well
    linear = 2 * 64 * 64 * (asked + rows) + 2 * 64 * 64 * 2 * 2 * length
    assert work["projections"].flops == linear
    assert work["attention"].flops == 2 * 4 * 4 * 16 * (256 * 257 / 2 + 128 * 129 / 2)
    assert work["selection"].flops == 2 * 2 * (2 * 4 * 16) * 128 * length
    assert work["mlp"] == prefill_work(SIZES, 2, length)["mlp"]


def test_short_prompts_project_every_token() -> None:
    dense = prefill_work(SIZES, 1, 256)
    assert prefill_work(SIZES, 1, 256, [64.0] * 2)["projections"] == dense["projections"]


def test_keeping_everything_is_dense() -> None:
    assert prefill_work(SIZES, 1, 700, [700.0] * 2) == prefill_work(SIZES, 1, 700)


def test_a_decoded_token_by_hand() -> None:
    work = decode_work(SIZES, 3, [10.0, 30.0])
    assert work["attention"].flops == 3 * 4 * 4 * 16 * 40
    # K and V of 40 entries in 2 KV heads, and a query and an output in each layer.
    assert work["attention"].bytes == 3 * 16 * 4 * (2 * 40 * 2 + 2 * 2 * 4)
    weights = 2 * (2 * 64 * 64 + 2 * 64 * 32)
    moved = weights + 3 * 2 * (64 + 128 + 64 + 64)
    assert work["projections"].bytes == 4 * moved


@pytest.mark.parametrize("length", [40, 96])
def test_torch_counts_the_same_products(loaded: LoadedModel, length: int) -> None:
    """torch's counter sees linear layers and, with eager attention, all L x L pairs."""
    inputs = text_inputs(loaded.model, 2, length, 0)
    decoder = loaded.model.get_decoder()
    decoder.set_attn_implementation("eager")
    try:
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            loaded.model(**inputs, logits_to_keep=1)
    finally:
        decoder.set_attn_implementation("sdpa")
    work = prefill_work(SIZES, 2, length)
    causal = length * (length + 1) / 2
    square = work["attention"].flops / causal * length**2
    rest = sum(part.flops for name, part in work.items() if name != "attention")
    # Rope's frequencies are a product too: head / 2 of them for each of three positions.
    rope = 2 * 3 * 2 * length * 8
    assert counter.get_total_flops() - rest - square in (0, rope)


def test_a_floor_is_the_higher_of_two() -> None:
    limits = Ceilings(flops=1e9, bytes=1e6)
    assert limits.floor_ms(Work(1e9, 1.0)) == pytest.approx(1000.0)
    assert limits.bound(Work(1e9, 1.0)) == "compute"
    assert limits.floor_ms(Work(1.0, 2e6)) == pytest.approx(2000.0)
    assert limits.bound(Work(1.0, 2e6)) == "memory"


def test_the_whole_is_the_sum_of_its_parts() -> None:
    work = {"mlp": Work(4e9, 1.0), "attention": Work(1.0, 3e6)}
    limits = Ceilings(flops=1e9, bytes=1e6)
    lines = {
        str(line["part"]): line
        for line in roofline_lines({}, "prefill", work, {"mlp": 8000.0, "whole": 14000.0}, limits)
    }
    assert lines["whole"]["floor_ms"] == pytest.approx(7000.0)
    assert lines["whole"]["share"] == pytest.approx(0.5)
    assert lines["mlp"]["share"] == pytest.approx(0.5)
    assert lines["attention"]["share"] is None
    assert lines["whole"]["flops"] == 4e9 + 1


def test_floors_follow_the_better_of_two_measurements() -> None:
    slow, quick = Ceilings(flops=1e9, bytes=2e6), Ceilings(flops=2e9, bytes=1e6)
    best = slow.best(quick)
    assert best == Ceilings(flops=2e9, bytes=2e6)
    work = {"mlp": Work(4e9, 1.0), "attention": Work(1.0, 4e6)}
    taken = {"mlp": 8000.0, "whole": 14000.0}
    one = roofline_lines({"side": "full"}, "prefill", work, taken, slow)
    two = roofline_lines({"side": "sparse"}, "prefill", work, taken, quick)
    lines = floored([*one, *two], best)
    expected = [
        *roofline_lines({"side": "full"}, "prefill", work, taken, best),
        *roofline_lines({"side": "sparse"}, "prefill", work, taken, best),
    ]
    assert lines == expected
    assert [line["floor_ms"] for line in lines] == pytest.approx([2000.0, 2000.0, 4000.0] * 2)


def test_a_point_has_both_phases(loaded: LoadedModel) -> None:
    settings = Settings((600,), TopK(ratio=0.25), "top-k", repeats=3, decode_tokens=5)
    parts = {"mlp": [2.0] * 3, "vision": [4.0] * 3}
    run = Run([10.0] * 3, [1.0] * 3, parts, 1, 1, 1, 0.25, [0.5] * 3, layer_ratios=[0.2, 0.3])
    lines = _roofline(loaded, 600, settings, "sparse", run, Ceilings(1e9, 1e9))
    whole = {str(line["phase"]): line for line in lines if line["part"] == "whole"}
    assert whole["prefill"]["measured_ms"] == 6.0  # without the tower
    assert whole["decode"]["measured_ms"] == 0.5
    work = prefill_work(SIZES, 1, 600, [120.0, 180.0])
    assert whole["prefill"]["flops"] == sum(part.flops for part in work.values())
    # generate wrote tokens 1-5 of the reply; the loop warms up with the 6th, then 7 to 11.
    seen = decode_work(SIZES, 1, [120.0 + 9, 180.0 + 9])
    assert whole["decode"]["bytes"] == sum(part.bytes for part in seen.values())


def test_ceilings_are_measured() -> None:
    measured = ceilings(torch.device("cpu"), torch.float32, seconds=0.05)
    assert 1e8 < measured.flops < 1e14
    assert 1e8 < measured.bytes < 1e12

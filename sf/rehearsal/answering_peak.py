"""Peak memory of a batch of answers: prefill and decoding of the longest prompts, on shapes."""

from __future__ import annotations

from collections import Counter
from typing import Any
from unittest.mock import patch

import torch

from sf.attention.decoding import generate, greedy
from sf.baselines import Method
from sf.rehearsal.depth import by_depth, extrapolated, few_blocks
from sf.rehearsal.live_memory import WEIGHTS, LiveMemory, Peaks
from sf.rehearsal.longest_inputs import longest_inputs
from sf.rehearsal.shape_run import shapes_only
from sf.rehearsal.shapes import ModelShape
from sf.rehearsal.training_peak import noted_caches, stated_sizes
from sf.sections import Vision

__all__ = ["answer_batch", "answering_peaks"]

DEPTHS = (3, 5)
"""FastV keeps all tokens in two layers."""
TOWER, PREFILL, DECODING = "vision tower", "prefill", "decoding"


def answering_peaks(
    shape: ModelShape, dtype: str, vision: Vision, batch: int, new_tokens: int, attention: Method
) -> Peaks:
    """Peak bytes by stage and category.

    Models run with `DEPTHS` decoder layers (`by_depth`) and two blocks of the vision tower
    (`few_blocks`), to which the weights of the others are added. All but the weights grows in
    proportion to the batch, so one question gives any number of them.

    Args:
        shape: of the model.
        dtype: of its weights.
        vision: pixel and frame bounds.
        batch: questions answered at once.
        new_tokens: length of the longest reply.
        attention: a method that decodes densely; others decode token by token, which takes long.
    """
    few = few_blocks(shape)

    def peaks_of(each: ModelShape) -> Peaks:
        one = _peaks(each, dtype, vision, 1, new_tokens, attention)
        held = {stage: Counter({WEIGHTS: peak[WEIGHTS]}) for stage, peak in one.items()}
        return extrapolated(held, one, batch)

    peaks = by_depth(peaks_of, few, DEPTHS)
    missing = shape.num_parameters - few.num_parameters
    for peak in peaks.values():
        peak[WEIGHTS] += getattr(torch, dtype).itemsize * missing
    return peaks


def _peaks(
    shape: ModelShape, dtype: str, vision: Vision, batch: int, new_tokens: int, attention: Method
) -> Peaks:
    memory = LiveMemory(shape.config.get_text_config().vocab_size)
    with shapes_only(), memory.counting(), stated_sizes(), noted_caches(memory):
        answer_batch(shape, dtype, vision, batch, new_tokens, attention, memory)
    return memory.peaks


def answer_batch(
    shape: ModelShape,
    dtype: str,
    vision: Vision,
    batch: int,
    new_tokens: int,
    attention: Method,
    memory: LiveMemory | None = None,
) -> None:
    """Answer one batch; the arguments are those of `answering_peaks`."""
    memory = memory or LiveMemory(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        model: Any = shape.new().eval()
    finally:
        torch.set_default_dtype(before)
    memory.weights(model)
    tower = model.model.visual
    tower.forward = memory.staged(TOWER, tower.forward)
    with torch.no_grad():
        inputs = longest_inputs(shape.config, vision, batch)
    memory.peaks.clear()
    decode = memory.staged(DECODING, generate.decode)
    with memory.stage(PREFILL), patch.object(generate, "decode", decode):
        greedy(
            model, inputs, attention.apply(model), decodes_densely=attention.decodes_densely,
            max_new_tokens=new_tokens, tokens={"eos_token_id": None, "pad_token_id": 0},
        )  # fmt: skip

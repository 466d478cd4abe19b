"""One measured point: a subject at one length, as JSON-able lines, or that it does not fit."""

from __future__ import annotations

from typing import Any

from sf.config import Profile
from sf.profiling.measure import KeepAll, Workload, measure
from sf.profiling.memory import available_bytes
from sf.profiling.subjects import Subject, prompt_ids
from sf.profiling.summary import FULL, SPARSE, not_fitting, speedups, tidy
from sf.selection import Policy, TopK

__all__ = ["least_bytes", "point"]

BATCH = 1
TRANSFORMERS = "transformers"


def least_bytes(model: Any, batch: int, length: int) -> int:
    """Bytes that a prefill needs at the very least: KV of all layers and one MLP's activations."""
    text = model.config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * text.num_key_value_heads * head
    activations = 2 * text.hidden_size + 2 * text.intermediate_size
    return batch * length * (cache + activations) * next(model.parameters()).element_size()


def point(subject: Subject, length: int, settings: Profile) -> dict[str, Any]:
    """Measure one subject at one length.

    Args:
        subject: model on its device.
        length: prompt tokens.
        settings: ratio, repeats and decoded tokens.

    Returns:
        {"lines": tidy lines, "speedups": lines}; where memory does not suffice for a side its
        lines say so and there are no speed-ups. Other lengths are not affected.
    """
    model = subject.model
    sides: dict[str, Policy | None] = {
        FULL: KeepAll(),
        SPARSE: TopK(ratio=settings.profile_ratio),
    }
    if length == min(settings.profile_lengths):
        sides[TRANSFORMERS] = None
    fits = least_bytes(model, BATCH, length) <= available_bytes(model.device)
    runs = {}
    if fits:
        ids = prompt_ids(model, BATCH, length, seed=length)
        work = Workload(model, ids, settings.profile_decode_tokens)
        runs = measure(work, sides, settings.profile_repeats)
    extra = {
        "weights": subject.weights,
        "ratio_set_by": f"top-k {settings.profile_ratio:g}",
        "note": subject.note,
    }
    lines = tidy(subject.name, length, BATCH, runs)
    for side in sides.keys() - runs.keys():
        lines += not_fitting(subject.name, length, BATCH, side)
    ratios = speedups(subject.name, length, BATCH, runs) if {FULL, SPARSE} <= runs.keys() else []
    return {
        "lines": [{**line, **extra} for line in lines],
        "speedups": [{**line, **extra} for line in ratios],
    }

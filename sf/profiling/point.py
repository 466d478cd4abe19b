"""One measured point: a subject at one length, as JSON-able lines, or that it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sf.profiling.fit import fits, largest, memory_of
from sf.profiling.measure import KeepAll, Run, Side, Workload, measure
from sf.profiling.memory import available_bytes
from sf.profiling.prompts import text_inputs, video_inputs
from sf.profiling.roofline import Ceilings, Sizes, decode_work, prefill_work, roofline_lines
from sf.profiling.subjects import Subject
from sf.profiling.summary import FULL, SPARSE, median, not_fitting, speedups, tidy

__all__ = ["FIT", "Settings", "least_bytes", "limits_of", "point"]

TRANSFORMERS = "transformers"
FIT = ("subject", "side", "what", "batch", "length", "bounded", "tries", "limit_gib")


@dataclass(frozen=True)
class Settings:
    """How a subject is measured.

    Attributes:
        lengths: prompt tokens.
        sparse: what stands beside full attention; see `sf.profiling.measure.Side`.
        ratio_set_by: how its token ratio came about, for the tables.
        repeats, decode_tokens, batch: of each point.
        prompts: random text, or a question about a video.
        video: the file of such a video; None: a drawn one.
        fit: search the largest batch and the longest prompt.
        fit_gib: memory limit of that search on a CPU.
    """

    lengths: tuple[int, ...]
    sparse: Side
    ratio_set_by: str
    repeats: int
    decode_tokens: int
    batch: int = 1
    prompts: Literal["text", "video"] = "text"
    video: Path | None = None
    fit: bool = False
    fit_gib: float = 0.0

    def inputs(self, subject: Subject, batch: int, length: int) -> Mapping[str, Any]:
        """The prompt of a point."""
        if self.prompts == "text":
            return text_inputs(subject.model, batch, length, seed=length)
        return video_inputs(subject.model, subject.processor, batch, length, file=self.video)

    def sides(self) -> dict[str, Side]:
        """Full and sparse."""
        return {FULL: KeepAll(), SPARSE: self.sparse}


def least_bytes(model: Any, batch: int, length: int) -> int:
    """Bytes that a prefill needs at the very least: KV of all layers and one MLP's activations."""
    s = Sizes.of(model)
    cache = 2 * s.layers * s.groups * s.head
    return batch * length * (cache + 2 * s.model + 2 * s.mlp) * s.element


def point(subject: Subject, length: int, settings: Settings, limits: Ceilings) -> dict[str, Any]:
    """Measure one subject at one length.

    Args:
        subject: model on its device.
        length: prompt tokens; a video's prompt is as long as its frames make it.
        settings: what and how often.
        limits: of the device.

    Returns:
        {"lines": tidy lines, "speedups": lines, "roofline": lines}; where memory does not suffice
        for a side its lines say so and there are no speed-ups. Other lengths are not affected.
    """
    model, batch = subject.model, settings.batch
    sides = settings.sides()
    if length == min(settings.lengths):
        sides[TRANSFORMERS] = None
    runs: dict[str, Run] = {}
    if least_bytes(model, batch, length) <= available_bytes(model.device):
        inputs = settings.inputs(subject, batch, length)
        length = int(inputs["input_ids"].shape[1])
        runs = measure(Workload(model, inputs, settings.decode_tokens), sides, settings.repeats)
    extra = {
        "weights": subject.weights,
        "ratio_set_by": settings.ratio_set_by,
        "note": subject.note,
    }
    lines = tidy(subject.name, length, batch, runs)
    for side in [name for name in sides if name not in runs]:
        lines += not_fitting(subject.name, length, batch, side)
    ratios = speedups(subject.name, length, batch, runs) if {FULL, SPARSE} <= runs.keys() else []
    return {
        "lines": [{**line, **extra} for line in lines],
        "speedups": [{**line, **extra} for line in ratios],
        "roofline": [
            line
            for side in (FULL, SPARSE)
            # Work is counted for pruned caches; the loop runs on those alone.
            if side in runs and (side == FULL or runs[side].step_ms)
            for line in _roofline(subject, length, settings, side, runs[side], limits)
        ],
    }


def _roofline(
    subject: Subject, length: int, settings: Settings, side: str, run: Run, limits: Ceilings
) -> list[dict[str, object]]:
    sizes, batch = Sizes.of(subject.model), settings.batch
    ratios = run.layer_ratios or [run.token_ratio] * sizes.layers
    kept = [ratio * length for ratio in ratios]
    head = {"subject": subject.name, "length": length, "batch": batch, "side": side}
    parts = {name: median(values).value for name, values in run.parts_ms.items() if values}
    # The tower's work depends on its own shape; the decoder's time is what is compared.
    whole = median(run.prefill_ms).value - parts.pop("vision", 0.0)
    prefill = prefill_work(sizes, batch, length, None if side == FULL else kept)
    lines = roofline_lines(head, "prefill", prefill, {**parts, "whole": whole}, limits)
    if run.step_ms:
        # The loop's tokens follow those of generate.
        first = settings.decode_tokens + 2 + (settings.decode_tokens - 1) / 2
        decode = decode_work(sizes, batch, [width + first for width in kept])
        taken = {"whole": median(run.step_ms).value}
        lines += roofline_lines(head, "decode", decode, taken, limits)
    return lines


def limits_of(subject: Subject, settings: Settings) -> list[dict[str, Any]]:
    """The longest prompt at this batch and the largest batch at the longest length, both sides."""
    limit = memory_of(subject.model.device, settings.fit_gib)
    shortest, longest = min(settings.lengths), max(settings.lengths)

    def line(side: str, what: str) -> dict[str, Any]:
        def fit(value: int) -> bool:
            batch, length = (settings.batch, value) if what == "length" else (value, longest)

            def inputs() -> Mapping[str, Any]:
                return settings.inputs(subject, batch, length)

            return fits(subject.model, settings.sides()[side], inputs, 2, limit)

        if what == "length":
            found = largest(fit, shortest, 64 * longest, step=shortest)
            batch, length = settings.batch, found.value
        else:
            found = largest(fit, 1, 1024)
            batch, length = found.value, longest
        return {
            "subject": subject.name,
            "side": side,
            "what": what,
            "batch": batch,
            "length": length,
            "bounded": found.bounded,
            "tries": found.tries,
            "limit_gib": None if limit is None else settings.fit_gib,
        }

    return [line(side, what) for what in ("length", "batch") for side in (FULL, SPARSE)]

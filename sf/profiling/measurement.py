"""One measurement: a model at one length, as JSON-able lines, or that it does not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from sf.profiling.dense import Dense, fastest
from sf.profiling.generation import Side, Workload
from sf.profiling.max_memory import fits, largest, memory_of
from sf.profiling.memory import available_bytes
from sf.profiling.models import LoadedModel
from sf.profiling.prompts import milliseconds, text_inputs, video_encoder
from sf.profiling.roofline import Ceilings, Sizes, decode_work, prefill_work, roofline_lines
from sf.profiling.summary import FULL, SPARSE, median, not_fitting, speedups, tidy
from sf.profiling.timing import Run, measure

__all__ = ["DENSE", "LARGEST", "LAYERS", "Settings", "find_largest", "least_bytes", "point"]

TRANSFORMERS = "transformers"
LARGEST = ("model", "side", "what", "batch", "length", "bounded", "tries", "limit_gib", "dense")
DENSE = ("model", "length", "batch", "path", "layer_ms", "chosen")  # timed dense implementations
LAYERS = ("model", "length", "batch", "side", "layer", "token_ratio")


@dataclass(frozen=True)
class Settings:
    """The settings of a measurement.

    Attributes:
        lengths: prompt tokens.
        sparse: the side to compare with full attention; see `sf.profiling.generation.Side`.
        ratio_set_by: origin of its token ratio, for the tables.
        repeats, decode_tokens, batch: of each measurement.
        prompts: random text, or a question about a video.
        video: file of the video; None for a drawn one.
        find_largest: whether to search the largest batch and the longest prompt.
        memory_limit_gib: memory limit of that search on a CPU.
    """

    lengths: tuple[int, ...]
    sparse: Side
    ratio_set_by: str
    repeats: int
    decode_tokens: int
    batch: int = 1
    prompts: Literal["text", "video"] = "text"
    video: Path | None = None
    find_largest: bool = False
    memory_limit_gib: float = 0.0

    def encoder(
        self, loaded: LoadedModel, batch: int, length: int
    ) -> Callable[[], Mapping[str, Any]]:
        """A function that creates the prompt of a measurement."""
        if self.prompts == "text":
            return partial(text_inputs, loaded.model, batch, length, seed=length)
        return video_encoder(loaded.model, loaded.processor, batch, length, file=self.video)


def least_bytes(model: Any, batch: int, length: int) -> int:
    """Lower bound of a prefill's bytes: KV of all layers and one MLP's activations."""
    s = Sizes.of(model)
    cache = 2 * s.layers * s.groups * s.head
    return batch * length * (cache + 2 * s.model + 2 * s.mlp) * s.element


def point(loaded: LoadedModel, length: int, settings: Settings, limits: Ceilings) -> dict[str, Any]:
    """Measure one model at one length.

    Args:
        loaded: the model, on its device.
        length: prompt tokens; for a video, its frames determine the actual length.
        settings: of the measurement.
        limits: of the device.

    Returns:
        {"lines": tidy lines, "speedups": lines, "roofline": lines, "dense": timed dense
        implementations, "layers": kept shares}. If a side does not fit in memory, its lines say so
        and there are no speed-ups.
    """
    model, batch = loaded.model, settings.batch
    names = [FULL, SPARSE, *([TRANSFORMERS] if length == min(settings.lengths) else [])]
    runs: dict[str, Run] = {}
    timed: dict[str, float] = {}
    dense = ""
    if least_bytes(model, batch, length) <= available_bytes(model.device):
        encode = settings.encoder(loaded, batch, length)
        inputs = encode()
        length = int(inputs["input_ids"].shape[1])
        path, timed = fastest(model, batch, length)
        dense = path.name
        sides = dict(zip(names, (Dense(path), settings.sparse, None), strict=False))
        runs = measure(Workload(model, inputs, settings.decode_tokens), sides, settings.repeats)
        if settings.prompts == "video" and loaded.processor is not None:
            taken = milliseconds(encode, settings.repeats, model.device)
            for run in runs.values():
                run.processor_ms = taken
    head = {"model": loaded.name, "length": length, "batch": batch}
    extra = {
        "weights": loaded.weights,
        "ratio_set_by": settings.ratio_set_by,
        "dense": dense,
        "note": loaded.note,
    }
    if settings.prompts == "video" and loaded.processor is None:
        extra["note"] += "; random pixels, no processor"
    lines = tidy(loaded.name, length, batch, runs)
    for side in [name for name in names if name not in runs]:
        lines += not_fitting(loaded.name, length, batch, side)
    ratios = speedups(loaded.name, length, batch, runs) if {FULL, SPARSE} <= runs.keys() else []
    return {
        "lines": [{**line, **extra} for line in lines],
        "speedups": [{**line, **extra} for line in ratios],
        "roofline": [
            line
            for side in (FULL, SPARSE)
            # Work is counted for pruned caches, the only ones that the loop supports.
            if side in runs and (side == FULL or runs[side].step_ms)
            for line in _roofline(loaded, length, settings, side, runs[side], limits)
        ],
        "dense": [
            {**head, "path": name, "layer_ms": taken, "chosen": name == dense}
            for name, taken in timed.items()
        ],
        "layers": [
            {**head, "side": SPARSE, "layer": layer, "token_ratio": ratio}
            for layer, ratio in enumerate(runs[SPARSE].layer_ratios if SPARSE in runs else [])
        ],
    }


def _roofline(
    loaded: LoadedModel, length: int, settings: Settings, side: str, run: Run, limits: Ceilings
) -> list[dict[str, object]]:
    sizes, batch = Sizes.of(loaded.model), settings.batch
    ratios = run.layer_ratios or [run.token_ratio] * sizes.layers
    kept = [ratio * length for ratio in ratios]
    head = {"model": loaded.name, "length": length, "batch": batch, "side": side}
    parts = {name: median(values).value for name, values in run.parts_ms.items() if values}
    # Only the decoder is compared: the tower's work depends on its own shape.
    whole = median(run.prefill_ms).value - parts.pop("vision", 0.0)
    prefill = prefill_work(sizes, batch, length, None if side == FULL else kept)
    lines = roofline_lines(head, "prefill", prefill, {**parts, "whole": whole}, limits)
    if run.step_ms:
        # The tokens of the loop follow those of generate.
        first = settings.decode_tokens + 2 + (settings.decode_tokens - 1) / 2
        decode = decode_work(sizes, batch, [width + first for width in kept])
        taken = {"whole": median(run.step_ms).value}
        lines += roofline_lines(head, "decode", decode, taken, limits)
    return lines


def find_largest(loaded: LoadedModel, settings: Settings) -> list[dict[str, Any]]:
    """The longest prompt at this batch and the largest batch at the longest length, both sides."""
    limit = memory_of(loaded.model.device, settings.memory_limit_gib)
    shortest, longest = min(settings.lengths), max(settings.lengths)
    path, _ = fastest(loaded.model, settings.batch, longest)
    sides: dict[str, Side] = {FULL: Dense(path), SPARSE: settings.sparse}

    def line(side: str, what: str) -> dict[str, Any]:
        def fit(value: int) -> bool:
            batch, length = (settings.batch, value) if what == "length" else (value, longest)

            def inputs() -> Mapping[str, Any]:
                return settings.encoder(loaded, batch, length)()

            return fits(loaded.model, sides[side], inputs, 2, limit)

        if what == "length":
            end = largest(fit, shortest, 64 * longest, step=shortest, within=0.02)
            batch, length = settings.batch, end.value
        else:
            end = largest(fit, 1, 1024)
            batch, length = end.value, longest
        return {
            "model": loaded.name,
            "side": side,
            "what": what,
            "batch": batch,
            "length": length,
            "bounded": end.bounded,
            "tries": end.tries,
            "limit_gib": None if limit is None else settings.memory_limit_gib,
            "dense": path.name,
        }

    return [line(side, what) for what in ("length", "batch") for side in (FULL, SPARSE)]

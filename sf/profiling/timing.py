"""Times and memory of answering one prompt, with full and sparse attention interleaved.

Both sides run transformers' `generate`, including its overhead, on the same prompt for the same
number of forced tokens; the decode loop then continues from its cache, which gives the time per
token without Python's overhead. A repeat runs every side once, and the order alternates between
repeats, so that a drifting clock or other load affects all sides equally.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from sf.attention.decoding import DecodeLoop
from sf.profiling.breakdown import watched
from sf.profiling.clock import Clock
from sf.profiling.generation import Position, Side, Workload, context_of, generate, loop_after
from sf.profiling.memory import cache_bytes, is_out_of_memory, peak_of

__all__ = ["Run", "attempt", "free", "measure", "take_peak"]

log = logging.getLogger(__name__)


@dataclass
class Run:
    """The results of one side; lists have one number per repeat.

    Attributes:
        prefill_ms: from the call to the first new token.
        decode_ms: mean per further token of `generate`.
        step_ms: the same for the decode loop; empty if it does not apply or fit.
        parts_ms: prefill milliseconds by part of the model (`sf.profiling.breakdown`).
        kv_bytes: keys and values after the last token.
        peak_prefill_bytes: peak until the first token, above the level before the call.
        peak_decode_bytes: the same from the first token on.
        held_decode_bytes: the amount above that level at the last token.
        reserved_bytes: peak of the GPU memory reserved by the allocator, including weights.
        token_ratio: kept / prompt tokens, mean over layers and rows; 1 for full.
        layer_ratios: the same by layer, mean over rows.
        processor_ms: time of the processor before prefill (decoding, resizing, tokenising, the
            copy to the device); empty for a prompt that needs none.
    """

    prefill_ms: list[float] = field(default_factory=list)
    decode_ms: list[float] = field(default_factory=list)
    parts_ms: dict[str, list[float]] = field(default_factory=dict)
    kv_bytes: int = 0
    peak_prefill_bytes: int = 0
    peak_decode_bytes: int = 0
    token_ratio: float = 1.0
    step_ms: list[float] = field(default_factory=list)
    held_decode_bytes: int | None = None
    reserved_bytes: int | None = None
    layer_ratios: list[float] = field(default_factory=list)
    processor_ms: list[float] = field(default_factory=list)

    @property
    def first_token_ms(self) -> list[float]:
        """From the media files to the first new token; empty without media."""
        if not self.processor_ms:
            return []
        return [a + b for a, b in zip(self.processor_ms, self.prefill_ms, strict=True)]


def _timed(work: Workload, side: Side, clock: Clock, run: Run, *, loop: bool) -> None:
    marks = []
    with context_of(work.model, side) as trace:
        position = Position(work.model)
        try:
            with watched(work.model, clock) as parts:

                def each() -> None:
                    marks.append(clock.mark())
                    if not parts.closed:  # decoding is timed without the hooks
                        parts.close()
                        marks.append(clock.mark())

                clock.synchronize()
                start = clock.mark()
                output = generate(work, each)
                clock.synchronize()
        finally:
            position.close()
        run.prefill_ms.append(clock.ms(start, marks[0]))
        run.decode_ms.append(clock.ms(marks[1], marks[-1]) / work.decode_tokens)
        for name, value in parts.milliseconds(run.prefill_ms[-1]).items():
            run.parts_ms.setdefault(name, []).append(value)
        run.kv_bytes = cache_bytes(output.past_key_values)
        if trace is not None:
            run.token_ratio = float(trace.token_ratio.float().mean())
            run.layer_ratios = trace.layer_ratios.float().mean(1).tolist()
        steps = loop_after(work, side, output, position.last) if loop else None
        if steps is not None:
            run.step_ms.append(_time_steps(steps, work.decode_tokens, clock))


def _time_steps(steps: DecodeLoop, tokens: int, clock: Clock) -> float:
    """Mean milliseconds per token."""
    steps.advance(1)
    clock.synchronize()
    start = clock.mark()
    steps.advance(tokens)
    end = clock.mark()
    clock.synchronize()
    return clock.ms(start, end) / tokens


def _nothing() -> None:
    """Do nothing; for steps without a mark."""


def take_peak(work: Workload, side: Side, run: Run) -> None:
    """Measure the peak memory of a run, untimed."""

    def call(mark: Callable[[], None]) -> None:
        made = 0

        def each() -> None:
            nonlocal made
            made += 1
            if made in (1, work.decode_tokens + 1):
                mark()

        with context_of(work.model, side):
            generate(work, each)

    peak = peak_of(call, work.inputs["input_ids"].device)
    run.peak_prefill_bytes, run.peak_decode_bytes = peak.prefill, peak.decode
    run.held_decode_bytes, run.reserved_bytes = peak.held, peak.reserved


def free(device: torch.device) -> None:
    """Free the memory of an abandoned attempt."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def attempt(what: str, call: Callable[[], object], device: torch.device) -> bool:
    """Whether a call has enough memory; cleans up in either case."""
    try:
        call()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        log.warning("%s does not fit: %s", what, str(error).splitlines()[0])
        # The traceback's frames keep the tensors alive.
        error.__traceback__ = None
        fits = False
    else:
        fits = True
    free(device)
    return fits


def measure(
    work: Workload, sides: Mapping[str, Side], repeats: int, *, warm_up: int = 1
) -> dict[str, Run]:
    """Measure every side at one length.

    Args:
        work: prompt and model.
        sides: by name.
        repeats: timed runs per side, interleaved.
        warm_up: untimed runs per side beforehand.

    Returns:
        The runs of each side that fits in the device's memory. Peaks come from a separate, untimed
        run, which also tests whether the side fits.
    """
    device = work.inputs["input_ids"].device
    clock = Clock(device)
    runs: dict[str, Run] = {}
    loops: dict[str, bool] = {}
    for name, side in sides.items():
        run = Run()

        def warm(side: Side = side, run: Run = run) -> None:
            for _ in range(warm_up - 1):
                with context_of(work.model, side):
                    generate(work, _nothing)
            take_peak(work, side, run)  # also the last warm-up

        def warm_loop(side: Side = side) -> None:
            _timed(work, side, clock, Run(), loop=True)

        if attempt(f"{name} at {work.length} tokens", warm, device):
            runs[name] = run
            # Its buffers are filled in addition to the cache, so it may need more than generate.
            loops[name] = device.type != "cuda" or attempt(f"{name}'s loop", warm_loop, device)
    for repeat in range(repeats):
        order = list(runs) if repeat % 2 == 0 else list(reversed(runs))
        for name in order:
            _timed(work, sides[name], clock, runs[name], loop=loops[name])
    return runs

"""Times and bytes of one prompt's answer, full and sparse attention interleaved.

Both sides go through transformers' own `generate`, with all that it costs, on the same prompt and
for the same number of forced tokens; then the decode loop goes on from the cache that `generate`
left, which says what a token costs without Python. A repeat runs every side once, and the order
alternates from repeat to repeat, so that a drifting clock or a busy neighbour meets all sides
alike.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from sf.attention import sparsify
from sf.attention.decoding import DecodeLoop, Prefilled
from sf.attention.decoding.generate import position_after, rules_of
from sf.attention.layer import NAME as SPARSE_ATTENTION
from sf.profiling.clock import Clock
from sf.profiling.memory import cache_bytes, is_out_of_memory, peak_of
from sf.profiling.parts import watched
from sf.selection import Policy, Scores

__all__ = ["KeepAll", "Run", "Side", "Workload", "attempt", "free", "measure", "take_peak"]

log = logging.getLogger(__name__)

Side = Any
"""A selection policy, a method of `sf.baselines` (anything with `apply(model)`), or None for the
model as transformers runs it."""


@dataclass(frozen=True)
class KeepAll(Policy):
    """The policy of the dense side: every token in every layer.

    Prefill is then the model's own dense attention, untouched, and decoding uses the same cache
    that grows in place as the sparse side does. transformers' own cache copies itself at every
    token, the more the longer it is: as a baseline it would credit sparsity with what is only a
    better cache. It is measured too, as "transformers", at the shortest length, where it loses
    least.
    """

    needs_scores: ClassVar[bool] = False

    def keep(self, scores: Scores, layer: int) -> Tensor:
        """All valid tokens."""
        return scores.valid


@dataclass(frozen=True)
class Workload:
    """What one side is asked to do.

    Attributes:
        model: in evaluation mode, on its device.
        inputs: what `generate` takes: `input_ids` int64 (batch, length), its mask, media.
        decode_tokens: forced tokens after the first.
    """

    model: Any
    inputs: Mapping[str, Any]
    decode_tokens: int

    @property
    def batch(self) -> int:
        """Rows."""
        return int(self.inputs["input_ids"].shape[0])

    @property
    def length(self) -> int:
        """Prompt tokens of a row."""
        return int(self.inputs["input_ids"].shape[1])


@dataclass
class Run:
    """What the repeats of one side gave, one number per repeat where it is a list.

    Attributes:
        prefill_ms: from the call to the first new token.
        decode_ms: per further token of `generate`, mean over them.
        step_ms: the same of the decode loop; empty where it does not apply or fit.
        parts_ms: prefill milliseconds by part of the model (`sf.profiling.parts`).
        kv_bytes: keys and values held after the last token.
        peak_prefill_bytes: highest above the level before the call, until the first token.
        peak_decode_bytes: the same from the first token on.
        held_decode_bytes: above that level when the last token is there.
        reserved_bytes: highest that the allocator took from a GPU, weights included.
        token_ratio: kept / prompt tokens, mean over layers and rows; 1 for full.
        layer_ratios: the same per layer, mean over rows.
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


class _Steps:
    """A stopping criterion that never stops: it marks the time of every new token."""

    def __init__(self, each: Callable[[], None]) -> None:
        self.each = each

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        self.each()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def _context(model: Any, side: Side) -> AbstractContextManager[Any]:
    if side is None:
        return nullcontext()
    if isinstance(side, Policy):
        # The dense side drops nothing: choosing rows to project would only cost it time.
        return sparsify(model, side, skip_dropped=not isinstance(side, KeepAll))
    context: AbstractContextManager[Any] = side.apply(model)
    return context


@torch.inference_mode()
def _generate(work: Workload, each: Callable[[], None]) -> Any:
    """One forced generation, inside the side's context."""
    from transformers import StoppingCriteriaList

    tokens = work.decode_tokens + 1
    return work.model.generate(
        **work.inputs,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        temperature=None,
        top_p=None,
        top_k=None,
        return_dict_in_generate=True,
        stopping_criteria=StoppingCriteriaList([_Steps(each)]),
    )


def _loop(work: Workload, side: Side, output: Any, position: Tensor | None) -> DecodeLoop | None:
    """The decode loop that goes on where `generate` stopped; None where it would be another thing.

    A method that attends in a way of its own while it decodes is not what the loop computes.
    """
    model = work.model
    pruned = model.get_decoder().config._attn_implementation == SPARSE_ATTENTION
    if position is None or not (pruned or side is None):
        return None
    prompt, token = output.sequences[:, :-1], output.sequences[:, -1]
    valid = torch.ones_like(prompt, dtype=torch.bool)
    valid[:, : work.length] = work.inputs["attention_mask"].bool()
    start = Prefilled(
        model=model,
        prompt=prompt,
        valid=valid,
        token=token,
        position=position_after(position, work.batch) + work.decode_tokens,
        cache=output.past_key_values,
        rules=rules_of(model.generation_config, True, ()),
        trace=None,
    )
    return start.loop(work.decode_tokens + 1)


class _Position:
    """Remembers where the prompt's last token stands; a hook on the decoder for one forward."""

    def __init__(self, model: Any) -> None:
        self.last: Tensor | None = None
        self._hook = model.get_decoder().register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: Any, args: Any, kwargs: Mapping[str, Any]) -> None:
        position = kwargs.get("position_ids")
        self.last = None if position is None else position[..., -1:]
        self._hook.remove()

    def close(self) -> None:
        self._hook.remove()


def _timed(work: Workload, side: Side, clock: Clock, run: Run, *, loop: bool) -> None:
    marks = []
    with _context(work.model, side) as trace:
        position = _Position(work.model)
        try:
            with watched(work.model, clock) as parts:

                def each() -> None:
                    parts.close()  # hooks in prefill only: decoding is timed without them
                    marks.append(clock.mark())

                clock.synchronize()
                start = clock.mark()
                output = _generate(work, each)
                clock.synchronize()
        finally:
            position.close()
        run.prefill_ms.append(clock.ms(start, marks[0]))
        run.decode_ms.append(clock.ms(marks[0], marks[-1]) / work.decode_tokens)
        for name, value in parts.milliseconds(run.prefill_ms[-1]).items():
            run.parts_ms.setdefault(name, []).append(value)
        run.kv_bytes = cache_bytes(output.past_key_values)
        if trace is not None:
            run.token_ratio = float(trace.token_ratio.float().mean())
            run.layer_ratios = trace.layer_ratios.float().mean(1).tolist()
        steps = _loop(work, side, output, position.last) if loop else None
        if steps is not None:
            run.step_ms.append(_time_steps(steps, work.decode_tokens, clock))


def _time_steps(steps: DecodeLoop, tokens: int, clock: Clock) -> float:
    """Milliseconds per token, mean."""
    steps.advance(1)
    clock.synchronize()
    start = clock.mark()
    steps.advance(tokens)
    end = clock.mark()
    clock.synchronize()
    return clock.ms(start, end) / tokens


def _nothing() -> None:
    """The step that is not marked."""


def take_peak(work: Workload, side: Side, run: Run) -> None:
    """Fill in a run's bytes at the peak, untimed."""

    def call(mark: Callable[[], None]) -> None:
        made = 0

        def each() -> None:
            nonlocal made
            made += 1
            if made in (1, work.decode_tokens + 1):
                mark()

        with _context(work.model, side):
            _generate(work, each)

    peak = peak_of(call, work.inputs["input_ids"].device)
    run.peak_prefill_bytes, run.peak_decode_bytes = peak.prefill, peak.decode
    run.held_decode_bytes, run.reserved_bytes = peak.held, peak.reserved


def free(device: torch.device) -> None:
    """Give back what an abandoned attempt held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def attempt(what: str, call: Callable[[], object], device: torch.device) -> bool:
    """Whether a call finds the memory that it needs; cleans up either way."""
    try:
        call()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        log.warning("%s does not fit: %s", what, str(error).splitlines()[0])
        # The frames of the traceback hold what did not fit.
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
        repeats: timed runs of each side, interleaved.
        warm_up: untimed runs of each side before.

    Returns:
        Runs of each side that the device's memory holds. Peaks come from one more, untimed run,
        which also finds out what does not fit.
    """
    device = work.inputs["input_ids"].device
    clock = Clock(device)
    runs: dict[str, Run] = {}
    loops: dict[str, bool] = {}
    for name, side in sides.items():
        run = Run()

        def warm(side: Side = side, run: Run = run) -> None:
            for _ in range(warm_up - 1):
                with _context(work.model, side):
                    _generate(work, _nothing)
            take_peak(work, side, run)  # the last warm-up as well

        def warm_loop(side: Side = side) -> None:
            _timed(work, side, clock, Run(), loop=True)

        if attempt(f"{name} at {work.length} tokens", warm, device):
            runs[name] = run
            # Its buffers are filled beside the cache: it may need more than generate did.
            loops[name] = device.type != "cuda" or attempt(f"{name}'s loop", warm_loop, device)
    for repeat in range(repeats):
        order = list(runs) if repeat % 2 == 0 else list(reversed(runs))
        for name in order:
            _timed(work, sides[name], clock, runs[name], loop=loops[name])
    return runs

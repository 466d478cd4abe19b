"""Times and bytes of `generate` at one prompt length, full and sparse attention interleaved.

Both sides go through transformers' own `generate`, with all that it costs, on the same prompt and
for the same number of forced tokens. A repeat runs every side once, and the order alternates from
repeat to repeat, so that a drifting clock or a busy neighbour meets all sides alike.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from sf.profiling.clock import Clock
from sf.profiling.memory import cache_bytes, is_out_of_memory, peak_of
from sf.profiling.parts import watched
from sf.selection import Policy, Scores

__all__ = ["KeepAll", "Run", "Workload", "measure"]

log = logging.getLogger(__name__)


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

    def keep(self, scores: Scores, layer: int) -> torch.Tensor:
        """All valid tokens."""
        return scores.valid


@dataclass(frozen=True)
class Workload:
    """What one side is asked to do.

    Attributes:
        model: in evaluation mode, on its device.
        ids: int64 (batch, length) prompt tokens.
        decode_tokens: forced tokens after the first.
    """

    model: Any
    ids: torch.Tensor
    decode_tokens: int


@dataclass
class Run:
    """What the repeats of one side gave, one number per repeat where it is a list.

    Attributes:
        prefill_ms: from the call to the first new token.
        decode_ms: per further token, mean over them.
        parts_ms: prefill milliseconds by part of the model (`sf.profiling.parts`).
        kv_bytes: keys and values held after the last token.
        peak_prefill_bytes: highest above the level before the call, until the first token.
        peak_decode_bytes: the same from the first token on.
        token_ratio: kept / prompt tokens, mean over layers and rows; 1 for full.
    """

    prefill_ms: list[float] = field(default_factory=list)
    decode_ms: list[float] = field(default_factory=list)
    parts_ms: dict[str, list[float]] = field(default_factory=dict)
    kv_bytes: int = 0
    peak_prefill_bytes: int = 0
    peak_decode_bytes: int = 0
    token_ratio: float = 1.0


class _Steps:
    """A stopping criterion that never stops: it marks the time of every new token."""

    def __init__(self, each: Callable[[], None]) -> None:
        self.each = each

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.each()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def _generate(work: Workload, policy: Any | None, each: Callable[[], None]) -> tuple[Any, Any]:
    """One forced generation; returns transformers' output and the trace (None for full)."""
    from transformers import StoppingCriteriaList

    from sf.attention import sparsify

    tokens = work.decode_tokens + 1
    context: Any = nullcontext()
    if policy is not None:
        # The dense side drops nothing: choosing rows to project would only cost it time.
        context = sparsify(work.model, policy, skip_dropped=not isinstance(policy, KeepAll))
    with context as trace:
        output = work.model.generate(
            input_ids=work.ids,
            attention_mask=torch.ones_like(work.ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            return_dict_in_generate=True,
            stopping_criteria=StoppingCriteriaList([_Steps(each)]),
        )
    return output, trace


def _timed(work: Workload, policy: Any | None, clock: Clock, run: Run) -> None:
    marks = []
    with watched(work.model, clock) as parts:

        def each() -> None:
            parts.close()  # hooks in prefill only: decoding is timed without them
            marks.append(clock.mark())

        clock.synchronize()
        start = clock.mark()
        output, trace = _generate(work, policy, each)
        clock.synchronize()
    run.prefill_ms.append(clock.ms(start, marks[0]))
    run.decode_ms.append(clock.ms(marks[0], marks[-1]) / work.decode_tokens)
    for name, value in parts.milliseconds(run.prefill_ms[-1]).items():
        run.parts_ms.setdefault(name, []).append(value)
    run.kv_bytes = cache_bytes(output.past_key_values)
    if trace is not None:
        run.token_ratio = float(trace.token_ratio.float().mean())


def _nothing() -> None:
    """The step that is not marked."""


def _peak(work: Workload, policy: Any | None, device: torch.device, run: Run) -> None:
    def call(first_token: Callable[[], None]) -> None:
        seen: list[bool] = []

        def each() -> None:
            if not seen:
                first_token()
            seen.append(True)

        _generate(work, policy, each)

    peak = peak_of(call, device)
    run.peak_prefill_bytes, run.peak_decode_bytes = peak.prefill, peak.decode


def measure(
    work: Workload, sides: Mapping[str, Any | None], repeats: int, *, warm_up: int = 1
) -> dict[str, Run]:
    """Measure every side at one length.

    Args:
        work: prompt and model.
        sides: name -> sparse policy, or None for full attention.
        repeats: timed runs of each side, interleaved.
        warm_up: untimed runs of each side before.

    Returns:
        Runs of each side that the device's memory holds. Peaks come from one more, untimed run,
        which also finds out what does not fit.
    """
    device = work.ids.device
    clock = Clock(device)
    runs: dict[str, Run] = {}
    for name, policy in sides.items():
        run = Run()
        try:
            for _ in range(warm_up - 1):
                _generate(work, policy, _nothing)
            _peak(work, policy, device, run)  # the last warm-up as well
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            log.warning("%s at %d tokens: %s", name, work.ids.shape[1], error)
        else:
            runs[name] = run
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    for repeat in range(repeats):
        order = list(runs) if repeat % 2 == 0 else list(reversed(runs))
        for name in order:
            _timed(work, sides[name], clock, runs[name])
    return runs

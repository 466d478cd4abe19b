"""Prefill of a whole random model: first and second call under top-p, time to first token."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from table import Row, exact, interval

from gpu_sections.attention import BACKENDS
from gpu_sections.model import GIB, built
from gpu_sections.scale import RATIO, Scale
from sf.attention.backends import using_backend
from sf.attention.decoding import prefill
from sf.profiling.clock import Clock
from sf.profiling.dense import KeepAll, fastest, using
from sf.profiling.prompts import text_inputs
from sf.profiling.timing import free
from sf.selection import TopK, TopP

__all__ = ["steps", "top_p_steps"]

TARGETS = {131072: 2.3}
COMPARED = 65536  # the longest prompt at which every dense kernel is tried


def top_p_steps(scale: Scale) -> dict[str, Callable[[], list[Row]]]:
    """A step for each of our kernels, because a count is new only once in a process."""
    return {f"top-p {name}": partial(top_p, scale, name) for name in BACKENDS}


def steps(scale: Scale) -> dict[str, Callable[[], list[Row]]]:
    """The lengths of the targets first."""
    return {f"prefill {length}": partial(whole, scale, length) for length in scale.prefills}


def milliseconds(scale: Scale, length: int, seed: int, policy: Any) -> tuple[float, Any]:
    """The time of a prefill up to its first token, and its trace."""
    model, clock = built(scale), Clock(scale.at)
    inputs = text_inputs(model, 1, length, seed)
    clock.synchronize()
    start = clock.mark()
    made = prefill(model, inputs, policy, forced=True)
    end = clock.mark()
    clock.synchronize()
    return clock.ms(start, end), made.trace


def top_p(scale: Scale, name: str) -> list[Row]:
    """The first and the second call of two prompts whose layers keep different counts.

    Random weights spread attention nearly evenly, so a threshold of 0.25 keeps about a quarter of
    the tokens; the exact count differs in every layer.
    """
    policy, length = TopP(p=RATIO), scale.top_p
    rows = []
    with using_backend(BACKENDS[name]):
        # Libraries load and allocate, at another length and with no selection of theirs.
        milliseconds(scale, length // 2, 1, KeepAll())
        milliseconds(scale, length // 2, 1, TopK(ratio=RATIO))
        for seed in (2, 3):
            cold, trace = milliseconds(scale, length, seed, policy)
            again, _ = milliseconds(scale, length, seed, policy)
            counts = {int(mask.sum()) for mask in trace.kept}
            label = f"top-p {length} {name}, prompt {seed - 1}"
            rows += [
                exact(f"{label}, first time", cold, "ms"),
                exact(f"{label}, again", again, "ms"),
                exact(f"{label}, different counts", float(len(counts)), "layers"),
                exact(f"{label}, token ratio", float(trace.token_ratio.mean()), "kept / length"),
            ]
    free(scale.at)
    return rows


def whole(scale: Scale, length: int) -> list[Row]:
    """Time to the first token and peak memory, sparse and dense by the fastest kernel."""
    model = built(scale)
    path, tried = fastest(model, 1, min(length, COMPARED), repeats=1)
    sides: dict[str, Any] = {"dense": KeepAll(), "sparse": TopK(ratio=RATIO)}
    times: dict[str, list[float]] = {side: [] for side in sides}
    peaks = {}
    # A short prompt loads the kernels; the long one is timed from its first call.
    for repeat in range(scale.long_repeats + 1):
        for side, policy in sides.items() if repeat % 2 else reversed(sides.items()):
            with using(model, path):
                if repeat == 0:
                    milliseconds(scale, max(scale.prefills[0] // 16, 8), 1, policy)
                    continue
                if scale.at.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(scale.at)
                times[side].append(milliseconds(scale, length, repeat, policy)[0])
                if scale.at.type == "cuda":
                    peaks[side] = torch.cuda.max_memory_allocated(scale.at) / GIB
    pairs = zip(times["dense"], times["sparse"], strict=True)
    gains = interval([dense / sparse for dense, sparse in pairs])
    label = f"prefill {length}"
    free(scale.at)
    return [
        *(exact(f"{label} one layer's {name}", taken, "ms") for name, taken in tried.items()),
        Row(f"{label} dense", *interval(times["dense"]), "ms"),
        Row(f"{label} sparse", *interval(times["sparse"]), "ms"),
        Row(f"{label} sparse over dense", *gains, "x", TARGETS.get(length), "higher"),
        *(exact(f"{label} {side}, peak memory", peak, "GiB") for side, peak in peaks.items()),
    ]

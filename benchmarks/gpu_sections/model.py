"""Decoding with a whole model of random weights: time per token, memory, batch, throughput.

A token's floor is the number of bytes that it must read divided by the copy bandwidth of the same
process. Caches contain random keys and values: the same amount is read as after a prefill, which
another section measures. Dense is the same loop over whole caches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from table import Row, exact, interval

from gpu_sections.measure import by_kernel, kernel_rows
from gpu_sections.scale import RATIO, Scale
from sf.attention.backends import using_backend
from sf.attention.backends.cuda import CudaBackend
from sf.attention.decoding import DecodeLoop
from sf.profiling.clock import Clock
from sf.profiling.generation import random_prefilled
from sf.profiling.memory import available_bytes
from sf.profiling.models import load_by_name
from sf.profiling.roofline import Ceilings, Sizes, ceilings, decode_work
from sf.profiling.timing import attempt, free

__all__ = ["built", "engine_steps", "profile_steps", "steps", "throughput_steps"]

FLOOR_TARGET, THROUGHPUT_TARGET, KV_TARGET = 1.2, 3.3, 0.27
MARGIN_BYTES = 4 << 30
GIB = 2.0**30
SIDES = {"dense": 1.0, "sparse": RATIO}


@cache
def built(scale: Scale) -> Any:
    """The whole model with random weights, built once per process."""
    dtype = str(scale.dtype).removeprefix("torch.")
    return load_by_name(scale.shape, Path(), dtype, scale.device, seed=0).model


@cache
def limits(scale: Scale) -> Ceilings:
    """The ceilings of this process, for the floor of a token."""
    return ceilings(scale.at, scale.dtype, 0.05 if scale.rehearsal else 0.5)


def steps(scale: Scale) -> dict[str, Callable[[], list[Row]]]:
    """Time per token at the longest prompt, then memory."""
    longest = scale.long[-1]
    return {
        f"token {longest}": lambda: token(scale, longest),
        **{f"memory {length}": partial(memory, scale, length) for length in scale.memory},
        f"batch {longest}": lambda: batch_that_fits(scale, longest),
    }


def profile_steps(scale: Scale) -> dict[str, Callable[[], list[Row]]]:
    """One recorded step by kernel."""
    return {"kernels of a token": lambda: kernels(scale, scale.long[-1])}


def engine_steps(scale: Scale) -> dict[str, Callable[[], list[Row]]]:
    """The decode loop at the batch sizes of rollouts."""
    return {f"rollouts, batch {rows}": partial(rollouts, scale, rows) for rows in scale.batches}


def throughput_steps(scale: Scale) -> dict[str, Callable[[], list[Row]]]:
    """Throughput at the paper's length."""
    return {f"throughput {scale.throughput}": lambda: throughput(scale)}


def loop_of(scale: Scale, length: int, side: str, rows: int) -> DecodeLoop:
    """A recorded loop over `rows` copies of a random cache."""
    model = built(scale)
    kept = max(1, round(SIDES[side] * length))
    start = random_prefilled(model, 1, length, [kept] * Sizes.of(model).layers)
    return start.loop(scale.tokens, repeat=rows)


def token_ms(loop: DecodeLoop, tokens: int, repeats: int) -> list[float]:
    """Milliseconds per token of each repeat, after a warm-up."""
    clock, times = Clock(loop.device), []
    for repeat in range(repeats + 1):
        loop.restart()
        clock.synchronize()
        start = clock.mark()
        loop.advance(tokens)
        end = clock.mark()
        clock.synchronize()
        if repeat:
            times.append(clock.ms(start, end) / tokens)
    return times


def floor_ms(scale: Scale, loop: DecodeLoop) -> float:
    """Milliseconds that reading the bytes of a token takes, for the middle token of the run."""
    masks = loop.step.cache.masks
    seen = [int(mask[0].sum()) - scale.tokens + (scale.tokens + 1) / 2 for mask in masks]
    work = decode_work(Sizes.of(built(scale)), len(loop.step.cache.keys[0]), seen)
    return 1e3 * sum(part.bytes for part in work.values()) / limits(scale).bytes


def token(scale: Scale, length: int) -> list[Row]:
    """Time per token over its floor, batch 1; sparse also by the model's own modules."""
    rows, taken = [], {}
    for side, note in (("dense", ""), ("sparse", ""), ("sparse", ", by modules")):
        with using_backend(CudaBackend(fuses=not note)):
            loop = loop_of(scale, length, side, 1)
        times = token_ms(loop, scale.tokens, scale.repeats)
        floor = floor_ms(scale, loop)
        label = f"token {length} {side}{note}"
        over = interval([ms / floor for ms in times])
        target = None if note else FLOOR_TARGET
        rows += [
            Row(label, *interval(times), "ms"),
            exact(f"{label}, floor", floor, "ms"),
            Row(f"{label} over its floor", *over, "x", target, "lower"),
        ]
        taken[side + note] = times
        del loop
        free(scale.at)
    pairs = zip(taken["dense"], taken["sparse"], strict=True)
    gains = interval([dense / sparse for dense, sparse in pairs])
    return [*rows, Row(f"token {length} sparse over dense", *gains, "x")]


def memory(scale: Scale, length: int) -> list[Row]:
    """Keys and values of one row, and all memory held while decoding."""
    rows, held = [], {}
    for side in SIDES:
        try:
            loop = loop_of(scale, length, side, 1)
        except torch.OutOfMemoryError:
            continue
        held[side] = loop.step.cache.nbytes
        rows.append(exact(f"KV {length} {side}", held[side] / GIB, "GiB"))
        if scale.at.type == "cuda":
            allocated = torch.cuda.memory_allocated(scale.at) / GIB
            rows.append(exact(f"memory {length} {side}", allocated, "GiB"))
        del loop
        free(scale.at)
    if len(held) == 2:
        share = held["sparse"] / held["dense"]
        rows.append(Row(f"KV {length} share", share, share, share, "x", KV_TARGET, "lower"))
    return rows


def largest_batch(scale: Scale, length: int, side: str) -> int:
    """The largest number of rows that fits, searched downwards from what the bytes allow."""
    sizes = Sizes.of(built(scale))
    entries = SIDES[side] * length + scale.tokens
    row = 2 * sizes.layers * sizes.groups * sizes.head * entries * sizes.element
    room = int((available_bytes(scale.at) - MARGIN_BYTES) // row)
    batch = min(max(1, room), scale.most_rows)
    while batch > 1:

        def run(rows: int = batch) -> None:
            token_ms(loop_of(scale, length, side, rows), 1, 1)

        if attempt(f"batch {batch}", run, scale.at):
            break
        batch -= 1
    return batch


def batch_that_fits(scale: Scale, length: int) -> list[Row]:
    """The largest batch of each side that decodes."""
    return [
        exact(f"batch {length} {side}", float(largest_batch(scale, length, side)), "rows")
        for side in SIDES
    ]


class Rates(NamedTuple):
    """Tokens per second of each repeat, KV bytes, and the bound by bandwidth, by side."""

    per_second: dict[str, list[float]]
    held: dict[str, int]
    bound: dict[str, float]


def rates(scale: Scale, length: int, rows_by_side: dict[str, int]) -> Rates:
    """The sides of `rows_by_side`, each at its number of rows.

    Each loop is built and timed in turn, twice: the second round shows drift.
    """
    made = Rates({side: [] for side in rows_by_side}, {}, {})
    for side in [*rows_by_side, *reversed(rows_by_side)]:
        rows = rows_by_side[side]
        loop = loop_of(scale, length, side, rows)
        taken = token_ms(loop, scale.tokens, scale.loop_repeats)
        made.per_second[side] += [1e3 * rows / ms for ms in taken]
        made.held[side] = loop.step.cache.nbytes
        made.bound[side] = 1e3 * rows / floor_ms(scale, loop)
        del loop
        free(scale.at)
    return made


def rate_rows(label: str, measured: dict[str, list[float]], target: float | None) -> list[Row]:
    """Both sides and their ratio."""
    pairs = zip(measured["sparse"], measured["dense"], strict=True)
    gains = interval([sparse / dense for sparse, dense in pairs])
    return [
        *(Row(f"{label} {side}", *interval(each), "tokens/s") for side, each in measured.items()),
        Row(f"{label} sparse over dense", *gains, "x", target, "higher"),
    ]


def rollouts(scale: Scale, rows: int) -> list[Row]:
    """One batch of rollouts after a prompt of a training step's length."""
    measured = rates(scale, scale.rollout_prompt, dict.fromkeys(SIDES, rows)).per_second
    return rate_rows(f"rollouts after {scale.rollout_prompt}, batch {rows},", measured, None)


def throughput(scale: Scale) -> list[Row]:
    """Both sides at the largest batch of dense caches, then each at its own largest batch.

    At equal batches the gain is bounded by the bytes of the weights, which both sides read.
    """
    length = scale.throughput
    largest = {side: largest_batch(scale, length, side) for side in SIDES}
    equal = rates(scale, length, dict.fromkeys(SIDES, largest["dense"]))
    own = rates(scale, length, {"sparse": largest["sparse"]})
    share = equal.held["sparse"] / equal.held["dense"]
    label = f"throughput {length}"
    return [
        *(exact(f"{label}, batch {side}", float(rows), "rows") for side, rows in largest.items()),
        *rate_rows(f"{label}, equal batch,", equal.per_second, THROUGHPUT_TARGET),
        exact(f"{label}, equal batch, bound", equal.bound["sparse"] / equal.bound["dense"], "x"),
        *rate_rows(
            f"{label}, own batch,", {**equal.per_second, **own.per_second}, THROUGHPUT_TARGET
        ),
        Row(f"{label} KV", share, share, share, "x", KV_TARGET, "lower"),
    ]


def kernels(scale: Scale, length: int) -> list[Row]:
    """Time and launches of each kernel in a recorded sparse step; on a CPU, of each operator."""
    loop = loop_of(scale, length, "sparse", 1)
    spent = by_kernel(lambda: loop.advance(1), scale.at, min(8, scale.tokens - 1))
    return kernel_rows(spent, f"token {length} sparse,", "a token")

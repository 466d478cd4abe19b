"""The largest batch and the longest prompt that fit in memory.

The search doubles the value until it does not fit, then bisects. Every trial runs a prefill and a
few tokens and frees its memory. A CPU would start to swap long before an allocation fails, so a
given limit replaces the device's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sf.errors import ConfigError
from sf.profiling.generation import Side, Workload
from sf.profiling.memory import available_bytes
from sf.profiling.timing import Run, attempt, take_peak

__all__ = ["Largest", "fits", "largest", "memory_of"]


@dataclass(frozen=True)
class Largest:
    """The result of a search.

    Attributes:
        value: the largest number that fits; 0 if none does.
        bounded: whether it is the upper end of the search, so that more may fit.
        tries: number of trials.
    """

    value: int
    bounded: bool
    tries: int


def largest(
    fit: Callable[[int], bool], start: int, end: int, step: int = 1, within: float = 0.0
) -> Largest:
    """Search the largest multiple of `step` that fits.

    Args:
        fit: whether a number fits; it must be monotone.
        start: first trial, a multiple of `step`.
        end: upper end of the search.
        step: resolution.
        within: relative tolerance that ends the search, since trials of long prompts take minutes.

    Raises:
        ConfigError: not 0 < step <= start <= end.
    """
    if not 0 < step <= start <= end:
        raise ConfigError("start, end, step", (start, end, step), "0 < step <= start <= end")
    tries = 0

    def tried(value: int) -> bool:
        nonlocal tries
        tries += 1
        return fit(value)

    good, bad, value = 0, end + step, start
    while value <= end:
        if not tried(value):
            bad = value
            break
        good = value
        if value == end:
            break
        value = min(2 * value, end // step * step)
        if value == good:
            break
    while bad - good > max(step, within * good):
        middle = (good + bad) // 2 // step * step
        if middle <= good:
            break
        if tried(middle):
            good = middle
        else:
            bad = middle
    return Largest(good, bad > end, tries)


def fits(
    model: Any, side: Side, inputs: Callable[[], Any], tokens: int, limit_bytes: float | None
) -> bool:
    """Whether prefill and some tokens of one side fit in memory.

    Args:
        model: on its device.
        side: as in `measure`.
        inputs: creates the prompt.
        tokens: number of tokens decoded after the first, at least 1.
        limit_bytes: limit including the weights; None for the device's memory.
    """
    device = next(model.parameters()).device
    run = Run()

    def call() -> None:
        take_peak(Workload(model, inputs(), tokens), side, run)

    if not attempt("a try", call, device):
        return False
    if limit_bytes is None:
        return True
    weights = sum(part.nbytes for part in {p.data_ptr(): p for p in model.parameters()}.values())
    return max(run.peak_prefill_bytes, run.peak_decode_bytes) + weights <= limit_bytes


def memory_of(device: torch.device, limit_gib: float) -> float | None:
    """The limit of a search in bytes.

    Args:
        device: for a GPU, the limit is its memory and `limit_gib` is ignored.
        limit_gib: of a CPU.

    Raises:
        ConfigError: a CPU without a limit, or with one above the free memory.
    """
    if device.type == "cuda":
        return None
    limit, free = limit_gib * 2.0**30, available_bytes(device)
    if not 0 < limit <= free:
        raise ConfigError(
            "memory_limit_gib",
            limit_gib,
            f"a search on a CPU needs a limit in (0, {free / 2**30:.1f}], the free memory",
            "set it",
        )
    return limit

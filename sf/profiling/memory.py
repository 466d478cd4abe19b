"""Memory in bytes: of a KV cache, at the peak of a call, and free on the device.

The peak is the maximum of torch's allocated memory above its level before the call. On CUDA the
allocator counts it; on a CPU torch's profiler reports each allocation, and the running sum is
exact. It excludes the weights and memory that CPU libraries allocate without torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch.profiler import ProfilerActivity, profile, record_function

__all__ = ["Peak", "available_bytes", "cache_bytes", "is_out_of_memory", "peak_of"]

DECODE_MARK = "sf.profiling.decode"


@dataclass(frozen=True)
class Peak:
    """Bytes above the level before the call.

    Attributes:
        prefill: maximum until the first new token.
        decode: maximum from the first new token on.
        held: level at the last new token; None if the call did not report it.
        reserved: on CUDA, the maximum that the allocator reserved, including weights and unused
            memory.
    """

    prefill: int
    decode: int
    held: int | None = None
    reserved: int | None = None


def cache_bytes(cache: Any) -> int:
    """Bytes of the keys and values of a transformers cache, including spare capacity.

    Args:
        cache: with `layers`, each with `keys` and `values`; shared storage counts once.
    """
    storages = {}
    for layer in cache.layers:
        for tensor in (layer.keys, layer.values):
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def peak_of(run: Callable[[Callable[[], None]], object], device: torch.device) -> Peak:
    """Run a call and return its peak memory.

    Args:
        run: the call; it receives a function to call at the first and at the last new token.
        device: of the call.
    """
    return _cuda_peak(run, device) if device.type == "cuda" else _cpu_peak(run)


def _cuda_peak(run: Callable[[Callable[[], None]], object], device: torch.device) -> Peak:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    prefill: list[int] = []
    held: list[int] = []
    reserved: list[int] = []

    def mark() -> None:
        torch.cuda.synchronize(device)
        held.append(torch.cuda.memory_allocated(device) - before)
        if not prefill:
            prefill.append(torch.cuda.max_memory_allocated(device) - before)
            reserved.append(torch.cuda.max_memory_reserved(device))
            torch.cuda.reset_peak_memory_stats(device)

    run(mark)
    torch.cuda.synchronize(device)
    reserved.append(torch.cuda.max_memory_reserved(device))
    return Peak(
        prefill[0],
        torch.cuda.max_memory_allocated(device) - before,
        held[1] if len(held) > 1 else None,
        max(reserved),
    )


def _cpu_peak(run: Callable[[Callable[[], None]], object]) -> Peak:
    def mark() -> None:
        with record_function(DECODE_MARK):
            pass

    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else each profile writes two lines to stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run(mark)
    assert record.profiler is not None
    results = record.profiler.kineto_results
    assert results is not None
    events = sorted(
        (event.start_ns(), event.name() == DECODE_MARK, event.nbytes())
        for event in results.events()
        if event.name() in ("[memory]", DECODE_MARK)
    )
    held, peaks, levels = 0, [0, 0], list[int]()
    for _, marked, change in events:
        if marked:
            levels.append(held)
        held += change
        phase = min(len(levels), 1)
        peaks[phase] = max(peaks[phase], held)
    return Peak(peaks[0], peaks[1], levels[1] if len(levels) > 1 else None)


def available_bytes(device: torch.device) -> int:
    """Bytes available on the device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    return int(psutil.virtual_memory().available)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error means that memory ran out; torch has no class for this on a CPU.

    Errors during the cleanup after such an error (the end of a graph capture) count too.
    """
    while error is not None:
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
            isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False

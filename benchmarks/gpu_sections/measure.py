"""Times of interleaved variants, and the exception of steps that cannot be measured."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import torch
from table import Row, exact, interval

from gpu_sections.scale import Scale
from sf.profiling.clock import Clock

__all__ = [
    *("Skipped", "Spent", "Times", "by_kernel", "gain", "kernel_rows", "recorded", "rows_of"),
    *("timed", "timed_graphs"),
]

SHOWN_KERNELS = 20
Times = dict[str, list[float]]
Spent = list[tuple[str, float, float]]
"""Name, milliseconds and launches of each kernel, the longest first."""


class Skipped(Exception):
    """The machine lacks something that a step needs; the message names it."""


def timed(
    variants: Mapping[str, Callable[[], Any]], scale: Scale, repeats: int | None = None
) -> Times:
    """Milliseconds of each variant in each repeat, in random order, after warm-up rounds."""
    repeats = scale.repeats if repeats is None else repeats
    order, clock = list(variants), Clock(scale.at)
    times: Times = {name: [] for name in variants}
    for repeat in range(scale.warm + repeats):
        random.shuffle(order)
        for name in order:
            clock.synchronize()
            began = clock.mark()
            variants[name]()
            ended = clock.mark()
            clock.synchronize()
            if repeat >= scale.warm:
                times[name].append(clock.ms(began, ended))
    return times


def timed_graphs(variants: Mapping[str, list[Callable[[], Any]]], scale: Scale) -> Times:
    """Milliseconds of one call of each variant, whose calls are recorded as one graph.

    For calls that take less time than their launch; on copies of their inputs, so that these are
    read from memory.
    """
    graphs = {name: recorded(calls, scale.at) for name, calls in variants.items()}
    return {
        name: [taken / len(variants[name]) for taken in each]
        for name, each in timed(graphs, scale).items()
    }


def by_kernel(call: Callable[[], Any], device: torch.device, calls: int = 4) -> Spent:
    """What one call spends, on a CPU by operator.

    Raises:
        Skipped: the profiler saw nothing.
    """
    from torch.profiler import ProfilerActivity, profile

    call()
    cuda = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as record:
        for _ in range(calls):
            call()
            Clock(device).synchronize()
    spent = [
        (
            event.key,
            (event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e3 / calls,
            event.count / calls,
        )
        for event in record.key_averages()
    ]
    spent = sorted((each for each in spent if each[1] > 0), key=lambda each: -each[1])
    if not spent:
        raise Skipped("the profiler saw no kernel on this device")
    return spent


def kernel_rows(spent: Spent, label: str, per: str) -> list[Row]:
    """The longest kernels, and the sums of all."""
    return [
        *(
            Row(f"{label} kernel {name[:80]}", ms, None, None, f"ms {per} in {launches:g} launches")
            for name, ms, launches in spent[:SHOWN_KERNELS]
        ),
        exact(f"{label} all kernels", sum(each[1] for each in spent), f"ms {per}"),
        exact(f"{label} launches", sum(each[2] for each in spent), per),
    ]


def rows_of(times: Times, label: str) -> list[Row]:
    """The median of each variant."""
    return [Row(f"{label} {name}", *interval(taken), "ms") for name, taken in times.items()]


def gain(times: Times, label: str, name: str, base: str, target: float | None = None) -> Row:
    """The speed-up of a variant over another one within the same repeats."""
    pairs = zip(times[base], times[name], strict=True)
    speedup = interval([slow / fast for slow, fast in pairs])
    return Row(f"{label} {name} over {base}", *speedup, "x", target, "higher")


def recorded(calls: list[Callable[[], Any]], device: torch.device) -> Callable[[], Any]:
    """A replay of all calls as one graph; on a CPU, the calls themselves."""

    def together() -> None:
        for call in calls:
            call()

    if device.type != "cuda":
        return together
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        together()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        together()
    return graph.replay

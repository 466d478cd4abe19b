"""The device itself: ceilings, the SDPA kernel that PyTorch chooses, the cost of a new length."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from table import Row, exact, interval
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from gpu_sections.attention import quantities
from gpu_sections.scale import Scale
from sf.profiling.clock import Clock
from sf.profiling.dense import KERNELS, accepted
from sf.profiling.roofline import ceilings

__all__ = ["steps"]

OWN = "PyTorch's choice"


def steps(scale: Scale) -> dict[str, Callable[[], list[Row]]]:
    """Ceilings first: every other figure is read beside them."""
    return {
        "ceilings": lambda: limits(scale),
        "kernel choice": lambda: choice(scale),
        "new lengths": lambda: new_lengths(scale),
    }


def limits(scale: Scale) -> list[Row]:
    """The rates of the fastest product and of the fastest copy."""
    best = ceilings(scale.at, scale.dtype, 0.05 if scale.rehearsal else 0.5)
    return [
        exact("ceiling, products", best.flops / 1e12, "TFLOP/s"),
        exact("ceiling, copy", best.bytes / 1e9, "GB/s"),
    ]


def choice(scale: Scale) -> list[Row]:
    """The kernel that PyTorch would run for a dense prefill and for a token; cuDNN's version."""
    names = {kernel.value: name for name, kernel in KERNELS.items()}
    names[SDPBackend.MATH.value] = "SDPA math"
    rows = []
    for what, queries, causal in (("prefill", 1024, True), ("a token", 1, False)):
        query, key, value = quantities(scale, 1, 1024)
        query = query[:, :, :queries]
        chosen = torch._fused_sdp_choice(
            query, key, value, None, 0.0, causal, scale=None, enable_gqa=True
        )
        rows.append(
            Row(f"PyTorch chooses for {what}", chosen, None, None, names.get(chosen, "none"))
        )
    version = torch.backends.cudnn.version()
    return [*rows, exact("cuDNN", float(version or 0), "version, 0 for none")]


def new_lengths(scale: Scale) -> list[Row]:
    """The first and the second call of each kernel at new lengths."""
    count, first = scale.plans
    kernels: dict[str, Any] = {OWN: None, **KERNELS}
    rows = []
    for at, (name, kernel) in enumerate(kernels.items()):
        # Other lengths for each: PyTorch's choice may be one of the others.
        lengths = [first + 131 * (at + len(kernels) * n) for n in range(count)]
        if not accepted(lambda k=kernel: call(scale, first - 1, k), scale.at):
            continue
        once, again = zip(*(twice(scale, length, kernel) for length in lengths), strict=True)
        label = f"new length, {name}"
        rows += [
            Row(f"{label}, first call", *interval(once), "ms"),
            Row(f"{label}, second call", *interval(again), "ms"),
            exact(f"{label}, slowest first call", max(once), "ms"),
            exact(f"{label}, plan", median(once) - median(again), "ms more in the first call"),
        ]
    return rows


def twice(scale: Scale, length: int, kernel: SDPBackend | None) -> tuple[float, float]:
    """Milliseconds of the first two calls at a length."""
    clock, taken = Clock(scale.at), []
    parts = quantities(scale, 1, length)
    for _ in range(2):
        clock.synchronize()
        start = clock.mark()
        attend(parts, kernel)
        end = clock.mark()
        clock.synchronize()
        taken.append(clock.ms(start, end))
    return taken[0], taken[1]


def call(scale: Scale, length: int, kernel: SDPBackend | None) -> Any:
    """One call on new tensors."""
    return attend(quantities(scale, 1, length), kernel)


def attend(parts: tuple[Any, ...], kernel: SDPBackend | None) -> Any:
    """Causal attention by one kernel, or by PyTorch's choice."""
    if kernel is None:
        return scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True)
    with sdpa_kernel(kernel):
        return scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=True)

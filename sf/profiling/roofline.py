"""Roofline model: work counted from shapes, ceilings measured in the same run.

For each part of the model, FLOPs are the products that its result needs (causal attention counts
the attended pairs), and bytes are the minimum to move: weights, the part's input and its output,
each once. The floor of a part is the longer of FLOPs / ceiling and bytes / ceiling; the achieved
share is floor / measured time. Norms, RoPE, activations and residual sums are not counted, which
lowers the share.

Symbols: B rows, L prompt tokens, W a layer's kept tokens, M model size, H heads, G KV heads, D head
size, I width of the MLP, V vocabulary, P probes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sf.attention.sparse_projections import LEAST_COLUMNS
from sf.profiling.clock import Clock

__all__ = [
    "ROOFLINE",
    "Ceilings",
    "Sizes",
    "Work",
    "ceilings",
    "decode_work",
    "floored",
    "prefill_work",
    "roofline_lines",
]

ROOFLINE = (  # columns of the table
    *("model", "length", "batch", "side", "phase", "part", "flops", "bytes"),
    *("floor_ms", "bound", "measured_ms", "share"),
)
PROBES = 128
WHOLE = "whole"


@dataclass(frozen=True)
class Work:
    """The minimal work of a part.

    Attributes:
        flops: multiplications and additions, two per product.
        bytes: bytes read and written.
    """

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)


@dataclass(frozen=True)
class Sizes:
    """A decoder's shape; `element` is the number of bytes per element."""

    layers: int
    model: int
    heads: int
    groups: int
    head: int
    mlp: int
    vocabulary: int
    element: int

    @staticmethod
    def of(model: Any) -> Sizes:
        """The shape of a transformers model's decoder."""
        text = model.config.get_text_config()
        return Sizes(
            layers=text.num_hidden_layers,
            model=text.hidden_size,
            heads=text.num_attention_heads,
            groups=text.num_key_value_heads,
            head=getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            mlp=text.intermediate_size,
            vocabulary=text.vocab_size,
            element=next(model.parameters()).element_size(),
        )

    def linear(self, rows: float, wide: int, out: int) -> Work:
        """Work of a projection of `rows` tokens."""
        moved = wide * out + rows * (wide + out)
        return Work(2.0 * rows * wide * out, moved * self.element)

    def mlp_work(self, rows: float) -> Work:
        """Work of gate, up and down projections; intermediate results do not count as moved."""
        weights = 3 * self.model * self.mlp
        return Work(2.0 * rows * weights, (weights + 2 * rows * self.model) * self.element)

    def head_work(self, rows: float) -> Work:
        """Work of the logits of the rows' last tokens."""
        return self.linear(rows, self.model, self.vocabulary)


def prefill_work(
    sizes: Sizes, batch: int, length: int, kept: Sequence[float] | None = None
) -> dict[str, Work]:
    """Work of a prefill, by part.

    Args:
        sizes: of the decoder.
        batch, length: B and L.
        kept: W by layer (mean over rows) of a sparse prefill, which skips the projections of
            dropped tokens; None for dense.
    """
    s, total = sizes, dict.fromkeys(PARTS, Work(0.0, 0.0))
    for width in [length] * s.layers if kept is None else kept:
        sparse = width < length
        lean = sparse and length >= LEAST_COLUMNS
        probes = min(PROBES, length)
        query_rows = batch * (min(width + probes, length) if lean else length)
        output_rows = batch * (width if lean else length)
        total["projections"] += s.linear(query_rows, s.model, s.heads * s.head)
        total["projections"] += s.linear(batch * length, s.model, 2 * s.groups * s.head)
        total["projections"] += s.linear(output_rows, s.heads * s.head, s.model)
        total["attention"] += attention_work(s, batch, width * (width + 1) / 2, width, width)
        if sparse:
            scored = attention_work(s, batch, probes * length, probes, length)
            # Only scores: values are not read and no output is written.
            mass = batch * length * 4
            keys = batch * (length * s.groups + probes * s.heads) * s.head * s.element
            total["selection"] += Work(scored.flops / 2, keys + mass)
        total["mlp"] += s.mlp_work(batch * length)
    total["other"] += s.head_work(batch)
    return {name: work for name, work in total.items() if work.bytes}


PARTS = ("projections", "selection", "attention", "mlp", "other")


def decode_work(sizes: Sizes, batch: int, entries: Sequence[float]) -> dict[str, Work]:
    """Work of one further token for every row, by part.

    Args:
        sizes: of the decoder.
        batch: B.
        entries: number of tokens that the new token attends to in each layer, including itself
            (mean over rows).
    """
    s, total = sizes, dict.fromkeys(PARTS, Work(0.0, 0.0))
    for seen in entries:
        total["projections"] += s.linear(batch, s.model, (s.heads + 2 * s.groups) * s.head)
        total["projections"] += s.linear(batch, s.heads * s.head, s.model)
        total["attention"] += attention_work(s, batch, seen, 1, seen)
        total["mlp"] += s.mlp_work(batch)
    total["other"] += s.head_work(batch)
    return {name: work for name, work in total.items() if work.bytes}


def attention_work(s: Sizes, batch: int, pairs: float, queries: float, keys: float) -> Work:
    """Work of attention of `queries` over `keys`, with `pairs` attended pairs."""
    flops = 4.0 * batch * s.heads * s.head * pairs
    moved = batch * s.head * (2 * queries * s.heads + 2 * keys * s.groups)
    return Work(flops, moved * s.element)


@dataclass(frozen=True)
class Ceilings:
    """The peak rates measured on this device in this run.

    Attributes:
        flops: FLOP per second of a square matrix product in the run's dtype.
        bytes: bytes read and written per second of copying.
    """

    flops: float
    bytes: float

    def floor_ms(self, work: Work) -> float:
        """Minimal time of the work in milliseconds."""
        return 1e3 * max(work.flops / self.flops, work.bytes / self.bytes)

    def bound(self, work: Work) -> str:
        """The ceiling that limits the work."""
        return "compute" if work.flops / self.flops > work.bytes / self.bytes else "memory"

    def best(self, other: Ceilings) -> Ceilings:
        """The higher of two measurements; disturbances can only lower a rate."""
        return Ceilings(max(self.flops, other.flops), max(self.bytes, other.bytes))


def ceilings(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> Ceilings:
    """Measure both ceilings, each as the fastest trial within `seconds`.

    Args:
        device: the measured device.
        dtype: of the products.
        seconds: time for each ceiling.
    """
    cuda = device.type == "cuda"
    side = 8192 if cuda else 1024
    left = torch.randn(side, side, dtype=dtype, device=device)
    right, out = torch.randn_like(left), torch.empty_like(left)
    # Much larger than any cache.
    source = torch.ones((1 << 30) if cuda else (1 << 26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    with torch.inference_mode():
        product = _fastest(lambda: torch.mm(left, right, out=out), device, seconds)
        copy = _fastest(lambda: target.copy_(source), device, seconds)
    return Ceilings(2.0 * side**3 / product, 2.0 * source.nbytes / copy)


def _fastest(call: Callable[[], Any], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest trial; the first trials warm up."""
    clock = Clock(device)
    for _ in range(3):
        call()
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until:
        clock.synchronize()
        start = clock.mark()
        call()
        end = clock.mark()
        clock.synchronize()
        best = min(best, clock.ms(start, end) / 1e3)
    return best


def roofline_lines(
    head: Mapping[str, object],
    phase: str,
    work: Mapping[str, Work],
    measured_ms: Mapping[str, float],
    limits: Ceilings,
) -> list[dict[str, object]]:
    """Lines of the table: each part, then the whole.

    Args:
        head: model, length, batch and side.
        phase: "prefill" or "decode".
        work: by part.
        measured_ms: by part and "whole"; a part without its own time has no share.
        limits: of the device.
    """
    whole = Work(sum(w.flops for w in work.values()), sum(w.bytes for w in work.values()))
    lines: list[dict[str, object]] = [
        {
            **head,
            "phase": phase,
            "part": name,
            "flops": part.flops,
            "bytes": part.bytes,
            "measured_ms": measured_ms.get(name),
        }
        for name, part in [*work.items(), (WHOLE, whole)]
    ]
    return floored(lines, limits)


def floored(lines: Sequence[Mapping[str, Any]], limits: Ceilings) -> list[dict[str, object]]:
    """The same lines with the floors, bounds and shares for these ceilings.

    Args:
        lines: from `roofline_lines`: the parts of a phase, then the whole.
        limits: of the device.
    """
    floored_lines, parts = list[dict[str, object]](), 0.0
    for line in lines:
        part = Work(line["flops"], line["bytes"])
        # Parts run sequentially, so the floor of the whole is the sum of their floors.
        floor = parts if line["part"] == WHOLE else limits.floor_ms(part)
        parts = 0.0 if line["part"] == WHOLE else parts + floor
        measured = line["measured_ms"]
        floored_lines.append(
            {
                **line,
                "floor_ms": floor,
                "bound": limits.bound(part),
                "share": floor / measured if measured else None,
            }
        )
    return floored_lines

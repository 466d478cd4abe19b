"""A whole model on a CUDA device against the project's targets: random weights, token ratio set.

- Prefill: `generate` to its first token, dense and sparse interleaved.
- Time per token of the decode loop (one recorded graph) over its floor: the bytes that a token must
  read divided by the copy bandwidth measured in the same run.
- Decode throughput and KV bytes at the largest batch that fits dense: a batch that could not be
  prefilled at once is one prompt's cache, copied into every row; what a token reads is the same.
  Dense and sparse cannot lie in memory side by side there, so each is timed alone, in turn.

Dense is in prefill the fastest of PyTorch's kernels and flash-attn at that length (named in the
row), and in decoding the same loop over a whole cache. Rows are printed and written as they come: a
run that is killed loses what it had not measured yet.

    python benchmarks/model_gpu.py [--shape qwen2.5-vl-7b] [--compiled] [--json FILE]

The targets are meant for an H200 and the 7B shape. By count of operations the defaults take about 6
minutes there (not measured), the prefills of 131,072 and 200,000 tokens most of it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import sf  # noqa: F401  (before transformers)

# isort: split
import torch
from table import Report, Row, arguments_parser, exact, interval

from sf import TopK
from sf.attention.decoding import DecodeLoop, prefill
from sf.profiling.clock import Clock
from sf.profiling.dense import Dense, KeepAll, fastest
from sf.profiling.generation import Workload
from sf.profiling.hardware import after, describe, require_device
from sf.profiling.memory import available_bytes
from sf.profiling.models import load_subject
from sf.profiling.prompts import text_inputs
from sf.profiling.roofline import Ceilings, Sizes, ceilings, decode_work
from sf.profiling.timing import attempt, free, measure

PREFILL_TARGETS = {131072: 2.3}
FLOOR_TARGET, FLOOR_FROM = 1.5, 32768
THROUGHPUT_TARGET, KV_TARGET = 3.3, 0.27
MARGIN_BYTES = 4 << 30
TOKENS = 64
Sides = dict[str, Any]


def prefills(model: Any, length: int, sparse: Any, repeats: int) -> list[Row]:
    """Time to the first token of both sides."""
    work = Workload(model, text_inputs(model, 1, length, length), 4)
    path, tried = fastest(model, 1, length)
    runs = measure(work, {"dense": Dense(path), "sparse": sparse}, repeats)
    label = f"prefill {length}"
    rows = [exact(f"{label} one layer's {name}", taken, "ms") for name, taken in tried.items()]
    names = {"dense": f"dense ({path.name})", "sparse": "sparse"}
    rows += [
        Row(f"{label} {names[side]}", *interval(run.prefill_ms), "ms") for side, run in runs.items()
    ]
    if len(runs) == 2:
        pairs = zip(runs["dense"].prefill_ms, runs["sparse"].prefill_ms, strict=True)
        gains = interval([dense / sparse for dense, sparse in pairs])
        target = PREFILL_TARGETS.get(length)
        rows.append(Row(f"{label} sparse speed-up", *gains, "x", target, "higher"))
        share = [
            part / whole
            for part, whole in zip(
                runs["sparse"].parts_ms["selection"], runs["sparse"].prefill_ms, strict=True
            )
        ]
        rows.append(Row(f"{label} selection's share", *interval(share), "of sparse"))
    return rows


def loop_of(model: Any, length: int, side: Any, batch: int, compiled: bool) -> DecodeLoop:
    """A recorded loop over `batch` copies of one prompt's cache."""
    start = prefill(model, text_inputs(model, 1, length, length), side, forced=True)
    free(model.device)
    return start.loop(TOKENS, repeat=batch, compiled=compiled)


def token_ms(loop: DecodeLoop, repeats: int) -> list[float]:
    """Milliseconds per token of each repeat."""
    clock, times = Clock(loop.device), []
    for repeat in range(repeats + 1):
        loop.restart()
        clock.synchronize()
        start = clock.mark()
        loop.advance(TOKENS)
        end = clock.mark()
        clock.synchronize()
        if repeat:
            times.append(clock.ms(start, end) / TOKENS)
    return times


def floor_ms(model: Any, loop: DecodeLoop, limits: Ceilings) -> float:
    """Milliseconds that reading a token's bytes takes, the middle token of the run."""
    cache = loop.step.cache
    seen = [int(mask[0].sum()) - TOKENS + (TOKENS + 1) / 2 for mask in cache.masks]
    work = decode_work(Sizes.of(model), len(cache.keys[0]), seen)
    return 1e3 * sum(part.bytes for part in work.values()) / limits.bytes


def tokens(
    model: Any, length: int, sides: Sides, limits: Ceilings, arguments: argparse.Namespace
) -> list[Row]:
    """Time per token over its floor, batch 1."""
    rows = []
    for name, side in sides.items():
        loop = loop_of(model, length, side, 1, arguments.compiled)
        times = token_ms(loop, arguments.repeats)
        floor = floor_ms(model, loop, limits)
        label, target = f"token {length} {name}", FLOOR_TARGET if length >= FLOOR_FROM else None
        over = interval([taken / floor for taken in times])
        rows.append(Row(label, *interval(times), "ms"))
        rows.append(Row(f"{label} over its floor", *over, "x", target, "lower"))
        del loop
        free(model.device)
    return rows


def largest_batch(model: Any, length: int, side: Any, arguments: argparse.Namespace) -> int:
    """Rows of the loop that fit, found downwards from what the bytes allow."""
    sizes = Sizes.of(model)
    row = 2 * sizes.layers * sizes.groups * sizes.head * (length + TOKENS) * sizes.element
    room = int((available_bytes(model.device) - MARGIN_BYTES) // row)
    batch = min(max(1, room), arguments.most_rows)
    while batch > 1:
        found = batch

        def run(found: int = found) -> None:
            token_ms(loop_of(model, length, side, found, arguments.compiled), 1)

        if attempt(f"batch {batch}", run, model.device):
            break
        batch -= 1
    return batch


def throughput(model: Any, length: int, sides: Sides, arguments: argparse.Namespace) -> list[Row]:
    """Tokens per second and KV bytes at the largest batch that fits dense."""
    batch = largest_batch(model, length, sides["dense"], arguments)
    label = f"decode {length}, batch {batch}"
    rates: dict[str, list[float]] = {"dense": [], "sparse": []}
    held: dict[str, int] = {}
    # Each loop is built and timed in turn, twice: the second round shows what drifted.
    for name in ("dense", "sparse", "sparse", "dense"):
        loop = loop_of(model, length, sides[name], batch, arguments.compiled)
        rates[name] += [1e3 * batch / taken for taken in token_ms(loop, arguments.repeats)]
        held[name] = loop.step.cache.nbytes
        del loop
        free(model.device)
    pairs = zip(rates["sparse"], rates["dense"], strict=True)
    gains = interval([sparse / dense for sparse, dense in pairs])
    share = held["sparse"] / held["dense"]
    return [
        *(Row(f"{label} {name}", *interval(each), "tokens/s") for name, each in rates.items()),
        Row(f"{label} sparse speed-up", *gains, "x", THROUGHPUT_TARGET, "higher"),
        Row(f"{label} sparse KV", share, share, share, "of dense", KV_TARGET, "lower"),
    ]


def main() -> None:
    """Measure, print a table, write it as JSON where asked."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--shape", default="qwen2.5-vl-7b")
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--prefill-lengths", type=int, nargs="*", default=[32768, 131072])
    parser.add_argument("--token-lengths", type=int, nargs="*", default=[32768, 131072])
    parser.add_argument("--throughput-lengths", type=int, nargs="*", default=[200_000])
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--compiled", action="store_true", help="torch.compile the step as well")
    parser.add_argument("--most-rows", type=int, default=1024, help="of the throughput's batch")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run")
    parser.add_argument("--dtype", default="bfloat16")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("model_gpu.py: no CUDA device is visible to PyTorch; run it on a GPU machine")
    device = require_device(arguments.device)
    facts = describe(device)
    name = facts["gpu"]["name"] if "gpu" in facts else facts["host"]["cpu"]
    head = f"{name}, torch {torch.__version__}, {arguments.shape}, {arguments.dtype}"
    report = Report(f"{head}, token ratio {arguments.ratio:g} (top-k)", arguments.json)
    for note in facts["notes"]:
        report.begin(f"note: {note}")
    report.begin("ceilings")
    limits = ceilings(device, getattr(torch, arguments.dtype))
    report.add(
        [
            exact("ceiling, products", limits.flops / 1e12, "TFLOP/s"),
            exact("ceiling, copy", limits.bytes / 1e9, "GB/s"),
        ]
    )
    report.begin(f"building {arguments.shape}")
    model = load_subject(arguments.shape, Path(), arguments.dtype, arguments.device, seed=0).model
    sides: Sides = {"dense": KeepAll(), "sparse": TopK(ratio=arguments.ratio)}
    for length in arguments.token_lengths:
        report.begin(f"time per token at {length}")
        report.add(tokens(model, length, sides, limits, arguments))
    for length in arguments.prefill_lengths:
        report.begin(f"prefill of {length}")
        report.add(prefills(model, length, sides["sparse"], arguments.repeats))
    for length in arguments.throughput_lengths:
        report.begin(f"throughput at {length}")
        report.add(throughput(model, length, sides, arguments))
    for note in after(device):
        report.begin(f"note: {note}")
    report.end()


if __name__ == "__main__":
    main()

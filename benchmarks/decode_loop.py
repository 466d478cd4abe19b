"""Time per token: `generate` with transformers' cache and with ours, and the decode loop.

The model has two layers of a quarter of Qwen2.5-VL-3B's width and random weights; top-k sets the
token ratio to 0.25. Each repeat runs all variants on the same prompt, in alternating order; ratios
are taken within a repeat, with a 95 % bootstrap interval. On a CPU the loop saves the time that
`generate` spends in Python for each token; `gpu_session.py` measures the graph that the loop
replays on a GPU.

    python benchmarks/decode_loop.py [--lengths 512 4096] [--repeats 6] [--json FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import sf  # noqa: F401  (before transformers)

# isort: split
import torch
from table import Report, Row, arguments_parser, exact, interval

from sf import TopK
from sf.profiling.dense import KeepAll
from sf.profiling.generation import Workload
from sf.profiling.models import load_by_name
from sf.profiling.prompts import text_inputs
from sf.profiling.timing import measure

SHAPE, RATIO = "qwen2.5-vl-3b-quarter", 0.25


def rows(length: int, arguments: argparse.Namespace) -> list[Row]:
    """Times per token at one length, and speed-ups."""
    model = load_by_name(SHAPE, Path(), "float32", "cpu", seed=0).model
    work = Workload(model, text_inputs(model, 1, length, length), arguments.tokens)
    sides = {"transformers": None, "dense": KeepAll(), "sparse": TopK(ratio=RATIO)}
    runs = measure(work, sides, arguments.repeats)
    times = {f"{name}, generate": run.decode_ms for name, run in runs.items()}
    times |= {f"{name}, loop": runs[name].step_ms for name in ("dense", "sparse")}
    label = f"token {length}"
    table = [Row(f"{label} {name}", *interval(taken), "ms") for name, taken in times.items()]
    for base, other in (
        ("transformers, generate", "dense, generate"),
        ("dense, generate", "dense, loop"),
        ("sparse, generate", "sparse, loop"),
        ("dense, loop", "sparse, loop"),
    ):
        pairs = zip(times[base], times[other], strict=True)
        gains = interval([slow / fast for slow, fast in pairs])
        table.append(Row(f"{label} {other} over {base}", *gains, "x", None, "higher"))
    share = runs["sparse"].kv_bytes / runs["dense"].kv_bytes
    table.append(exact(f"KV {length} sparse", share, "of dense"))
    return table


def main() -> None:
    """Measure, print a table, and write it as JSON if requested."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 4096])
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    head = f"cpu, {arguments.threads} threads, {arguments.repeats} repeats"
    report = Report(head, arguments.json)
    for length in arguments.lengths:
        report.begin(f"tokens after a prompt of {length}")
        report.add(rows(length, arguments))
    report.end()


if __name__ == "__main__":
    main()

"""The time of each attention method relative to full attention on the same prompt.

A prompt of text and one image goes through `generate` with random weights of a real shape. Each
repeat runs all methods in random order; a figure is the mean over repeats of method time / full
time within a repeat, with a 95 % bootstrap interval. Prefill is `generate` of one token, vision
tower included; decoding is the time of the further tokens.

    python benchmarks/methods.py [--visual 1600] [--text 200] [--repeats 6] [--json FILE]

On a shared machine, `--clock cpu` measures the CPU time of the process.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

import sf  # noqa: F401  (before transformers: it lets torchvision import beside a CPU-only torch)

# isort: split
import torch
from table import Report, Row, arguments_parser, exact

from sf.baselines import METHODS, build
from sf.baselines.registry import OWN_WEIGHTS
from sf.evaluation.intervals import bootstrap_mean
from sf.profiling.models import load_by_name
from sf.profiling.prompts import prompt_ids

X = "x full attention"


def prompt(model: Any, visual: int, text: int) -> dict[str, torch.Tensor]:
    """Half of the text, one image of about `visual` tokens, the other half."""
    side = max(1, round(visual**0.5))
    grid = torch.tensor([[1, 2 * side, 2 * side]], device=model.device)
    words = prompt_ids(model, 1, text, 0)[0]
    image = torch.full((side * side,), model.config.image_token_id, device=model.device)
    ids = torch.cat([words[: text // 2], image, words[text // 2 :]])[None]
    patch = 3 * 2 * 14 * 14
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(4 * side * side, patch, generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": (ids == model.config.image_token_id).long(),
        "pixel_values": pixels.to(model.device, model.dtype),
        "image_grid_thw": grid,
    }


def deeper(arguments: argparse.Namespace) -> Any:
    """The model with as many layers as requested: FastV's first two are dense."""
    model = load_by_name(arguments.shape, Path(), arguments.dtype, arguments.device, 0).model
    text = model.config.get_text_config()
    text.num_hidden_layers = arguments.layers
    text.layer_types = ["full_attention"] * arguments.layers
    torch.manual_seed(0)
    fresh = type(model)(model.config)
    return fresh.to(model.device, model.dtype).eval()


def seconds(model: Any, inputs: dict[str, torch.Tensor], name: str, tokens: int, clock: Any) -> Any:
    """Time of `generate` under a method, and the trace's token ratio."""
    with torch.inference_mode(), build(name).apply(model) as trace:
        start = clock()
        model.generate(**inputs, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        return clock() - start, float(trace.token_ratio.mean())


def measure(arguments: argparse.Namespace, report: Report) -> list[Row]:
    """Times relative to full attention, and each method's token ratio on this prompt."""
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    model = deeper(arguments)
    inputs = prompt(model, arguments.visual, arguments.text)
    names = [name for name in METHODS if name not in OWN_WEIGHTS]
    prefill: dict[str, list[float]] = {name: [] for name in names}
    decode: dict[str, list[float]] = {name: [] for name in names}
    ratios = {}
    for repeat in range(arguments.repeats + 1):
        report.begin(f"repeat {repeat} of {arguments.repeats}" if repeat else "warm-up")
        random.shuffle(names)
        for name in names:
            first, _ = seconds(model, inputs, name, 1, clock)
            whole, ratios[name] = seconds(model, inputs, name, 1 + arguments.tokens, clock)
            if repeat:  # the one before the first warms up
                prefill[name].append(first)
                decode[name].append(max(whole - first, 1e-9) / arguments.tokens)
    rows = []
    for stage, times in (("prefill", prefill), ("decode", decode)):
        for name in METHODS:
            if name in times and name != "full":
                shares = [one / full for one, full in zip(times[name], times["full"], strict=True)]
                mean = sum(shares) / len(shares)
                rows.append(
                    Row(f"{stage} {name}", mean, *bootstrap_mean(shares, 0), X, None, "lower")
                )
    ratio_rows = [exact(f"token ratio {name}", ratios[name], "random weights") for name in names]
    return [*rows, *ratio_rows]


def main() -> None:
    """Measure, print a table, and write it as JSON if requested."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--shape", default="qwen2.5-vl-3b-quarter")
    parser.add_argument("--visual", type=int, default=1600)
    parser.add_argument("--text", type=int, default=200)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    how = f"{arguments.device}, {arguments.threads} threads, {arguments.clock} clock"
    report = Report(f"{how}, {arguments.repeats} repeats", arguments.json, "mean")
    report.add(measure(arguments, report))
    report.end()


if __name__ == "__main__":
    main()

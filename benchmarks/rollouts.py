"""Answers of very different lengths: our decode loop, transformers' generate and its batching.

A model of a quarter of Qwen2.5-VL-3B's width with random weights samples answers to text prompts.
The length of each answer is drawn beforehand (log-uniform), so that all variants generate the same
number of tokens, and every variant prefills its own prompts. `generate` continues until its longest
row has ended; transformers' continuous batching and our loop let rows leave and others enter. Each
repeat runs all variants in alternating order; ratios are taken within a repeat, with a 95 %
bootstrap interval.

    python benchmarks/rollouts.py [--prompts 512 4096] [--rollouts 64] [--repeats 4] [--json FILE]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import sf  # noqa: F401  (before transformers)

# isort: split
import torch
from table import Report, Row, arguments_parser, interval
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, StoppingCriteriaList

from sf import TopK
from sf.attention.decoding import DecodeLoop, Prompts, Rules, Sampled, Waiting, prefill
from sf.profiling.models import load_by_name
from sf.profiling.prompts import text_inputs

SHAPE, RATIO = "qwen2.5-vl-3b-quarter", 0.25
TARGETS = {512: 2.0, 4096: 3.0}


def lengths(count: int, least: int, most: int) -> list[int]:
    """Tokens of each answer, log-uniform from `least` to `most`."""
    drawn = np.random.default_rng(0).uniform(np.log(least), np.log(most), count)
    return [round(value) for value in np.exp(drawn)]


class _Lengths:
    """A stopping criterion: each row ends at its own length."""

    def __init__(self, prompt: int, tokens: list[int]) -> None:
        self.width = prompt + torch.tensor(tokens)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return input_ids.shape[1] >= self.width


def by_generate(model: Any, ids: Tensor, tokens: list[int], batch: int) -> int:
    """transformers' generate, `batch` rows at a time; returns the number of generated tokens."""
    made = 0
    for start in range(0, len(ids), batch):
        part, own = ids[start : start + batch], tokens[start : start + batch]
        model.generate(
            input_ids=part,
            attention_mask=torch.ones_like(part),
            do_sample=True,
            max_new_tokens=max(own),
            eos_token_id=None,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([_Lengths(part.shape[1], own)]),
        )
        made += sum(own)
    return made


def by_loop(model: Any, ids: Tensor, tokens: list[int], batch: int, policy: Any) -> int:
    """Our decode loop with `batch` slots; a prompt is prefilled when a slot is free."""

    def read(row: int) -> Prompts:
        inputs = {"input_ids": ids[row : row + 1], "attention_mask": torch.ones_like(ids[:1])}
        start = prefill(model, inputs, policy, forced=True)
        prompts = start.prompts(tokens[row])
        size = model.config.get_text_config().vocab_size
        prompts.choice = Sampled(1.0, [], [row], size, ids.device)
        return prompts

    loop = DecodeLoop(model, batch, max(tokens), Rules())
    answers = loop.answer([Waiting(1, partial(read, row)) for row in range(len(ids))])
    return sum(len(part.tokens[0]) for part in answers)


def by_batching(model: Any, ids: Tensor, tokens: list[int], batch: int) -> int:
    """transformers' continuous batching."""
    made = 0
    settings = GenerationConfig(do_sample=True, eos_token_id=-1, pad_token_id=0)
    with model.continuous_batching_context_manager(
        generation_config=settings,
        continuous_batching_config=ContinuousBatchingConfig(max_batch_tokens=ids.shape[1] + batch),
    ) as manager:
        for row, count in enumerate(tokens):
            manager.add_request(ids[row].tolist(), request_id=str(row), max_new_tokens=count)
        for _ in tokens:
            made += len(manager.get_result(timeout=3600).generated_tokens)
    return made


def main() -> None:
    """Measure, print a table, and write it as JSON if requested."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--prompts", type=int, nargs="*", default=[512, 4096])
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--least", type=int, default=16)
    parser.add_argument("--most", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batching", action="store_true", help="transformers' batching as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tokens = lengths(arguments.rollouts, arguments.least, arguments.most)
    head = f"cpu, {arguments.threads} threads, {arguments.rollouts} answers of {min(tokens)} to "
    report = Report(f"{head}{max(tokens)} tokens, {arguments.batch} at a time", arguments.json)
    model = load_by_name(SHAPE, Path(), "float32", "cpu", seed=0).model
    for length in arguments.prompts:
        report.begin(f"answers to prompts of {length}")
        report.add(_rows(model, length, tokens, arguments))
    report.end()


def _rows(model: Any, length: int, tokens: list[int], arguments: argparse.Namespace) -> list[Row]:
    ids = text_inputs(model, len(tokens), length, length)["input_ids"]
    batch = arguments.batch
    sides: dict[str, Callable[[], int]] = {
        "generate": lambda: by_generate(model, ids, tokens, batch),
        "loop, dense": lambda: by_loop(model, ids, tokens, batch, None),
        "loop, 0.25": lambda: by_loop(model, ids, tokens, batch, TopK(ratio=RATIO)),
    }
    if arguments.batching:
        sides["batching"] = lambda: by_batching(model, ids, tokens, batch)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(arguments.repeats):
        for name in sorted(sides, reverse=repeat % 2 == 1):
            began = time.perf_counter()
            made = sides[name]()
            assert made == sum(tokens), (name, made)
            rates[name].append(made / (time.perf_counter() - began))
    label = f"prompt {length}"
    rows = [Row(f"{label} {name}", *interval(taken), "tokens/s") for name, taken in rates.items()]
    for name in list(sides)[1:]:
        gains = [ours / base for ours, base in zip(rates[name], rates["generate"], strict=True)]
        target = TARGETS.get(length) if name == "loop, 0.25" else None
        rows.append(Row(f"{label} {name} over generate", *interval(gains), "x", target, "higher"))
    return rows


if __name__ == "__main__":
    main()

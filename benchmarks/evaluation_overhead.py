"""Overhead of our evaluation over lmms-eval's `qwen2_5_vl` class: records, digests, traces.

Both classes answer the same synthetic benchmarks with the same weights, method full, batch 1 and
lmms-eval's own media loading; the replies are checked for equality. A run is a whole benchmark:
requests, replies, scoring. Each repeat runs the variants in random order under the same load; the
overhead is the median over repeats of ours / built-in - 1 within a repeat, with a 95 % bootstrap
interval. The models are random and far smaller than published ones, so the shares are upper bounds:
the overhead does not grow with the model.

    python benchmarks/evaluation_overhead.py [--samples 4] [--repeats 7] [--json FILE]

On a shared machine, `--clock cpu` measures the CPU time of the process.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import sf  # noqa: F401  (before transformers: it lets torchvision import beside a CPU-only torch)

# isort: split
import torch
from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL
from table import Report, Row, arguments_parser, interval
from transformers import Qwen2_5_VLForConditionalGeneration

from sf.evaluation.benchmarks import benchmark_named
from sf.evaluation.model import SparseChatModel
from sf.evaluation.run import evaluate_benchmarks
from sf.mini.benchmarks import write_benchmarks
from sf.models import build_tiny

BENCHMARKS = ("mmstar", "ocrbench", "videomme")
TARGET = 0.05
TOKENS = 8
SHAPES = {
    "tiny": {},
    "small": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12},
}
BOUNDS = {"video_min_pixels": 784, "video_max_pixels": 50176, "video_max_frames": 4}


class Builtin(Qwen2_5_VL):
    """lmms-eval's class, kept alive between tasks and scored as ours is."""

    asked: Any = None

    def clean(self) -> None:
        """Keep the model."""

    def answered(self, task: str) -> list[Any]:
        """Our class's records: scoring checks that the replies are the same."""
        return self.asked.answered(task)


def checkpoint(shape: str, folder: Path) -> None:
    """A random model with large weights, so that replies differ, and its processor."""
    model, processor = build_tiny("qwen2_5_vl", ["What color is the ring? A. red"] * 3, seed=1)
    if SHAPES[shape]:
        config = model.config
        for name, value in SHAPES[shape].items():
            setattr(config.text_config, name, value)
        config.text_config.layer_types = ["full_attention"] * config.text_config.num_hidden_layers
        head = config.text_config.hidden_size // config.text_config.num_attention_heads
        sections = [head // 8, 3 * head // 16, 3 * head // 16]
        config.text_config.rope_parameters["mrope_section"] = sections
        config.vision_config.out_hidden_size = config.text_config.hidden_size
        torch.manual_seed(1)
        generation = model.generation_config
        model = Qwen2_5_VLForConditionalGeneration(config)
        model.generation_config = generation
    for weight in model.model.language_model.layers.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=2.8 / weight.shape[1] ** 0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def measure(shape: str, home: Path, work: Path, arguments: argparse.Namespace) -> list[Row]:
    """Seconds per run of each variant, and the overhead."""
    path = work / shape
    checkpoint(shape, path)
    first = SparseChatModel(str(path), media="lmms_eval", opened=True, **BOUNDS)
    builtin = Builtin(
        str(path),
        device="cpu",
        device_map="cpu",
        batch_size=1,
        min_pixels=784,
        max_pixels=50176,
        max_num_frames=4,
    )
    builtin._model.float().load_state_dict(first.model.state_dict())
    builtin.asked = first
    benchmarks = [benchmark_named(name) for name in BENCHMARKS]
    clock = time.process_time if arguments.clock == "cpu" else time.perf_counter
    times: dict[str, list[float]] = {"built-in": [], "ours": [], "again": []}

    def run(lm: Any) -> float:
        began = clock()
        evaluate_benchmarks(lm, benchmarks, home, work / "scratch", most_new_tokens=TOKENS)
        return clock() - began

    run(first)  # warm, and the replies that the built-in's must equal
    for repeat in range(arguments.repeats + 1):
        records = work / "records" / f"{shape}{repeat}"
        sparse_model = SparseChatModel(
            str(path), media="lmms_eval", records=str(records), opened=True, **BOUNDS
        )
        order = [("built-in", builtin), ("ours", sparse_model), ("again", builtin)]
        random.shuffle(order)
        for name, lm in order:
            spent = run(lm)
            if repeat:
                times[name].append(spent)
    table = [
        Row(f"{shape} {name}", *interval(times[key]), "s")
        for key, name in (("built-in", "built-in"), ("ours", "ours"))
    ]
    for key, name, target in (
        ("ours", "overhead of ours", TARGET),
        ("again", "built-in against itself", None),
    ):
        shares = [a / b - 1 for a, b in zip(times[key], times["built-in"], strict=True)]
        table.append(Row(f"{shape} {name}", *interval(shares), "of built-in", target, "lower"))
    return table


def main() -> None:
    """Measure, print a table, and write it as JSON if requested."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    random.seed(0)
    how = f"cpu, {arguments.threads} threads, {arguments.clock} clock"
    report = Report(f"{how}, {arguments.repeats} repeats", arguments.json)
    with tempfile.TemporaryDirectory() as folder:
        work, home = Path(folder), Path(folder) / "home"
        chosen = [benchmark_named(name) for name in BENCHMARKS]
        write_benchmarks(home, arguments.samples, 3, benchmarks=chosen)
        for shape in arguments.shapes:
            report.begin(shape)
            report.add(measure(shape, home, work, arguments))
    report.end()


if __name__ == "__main__":
    main()

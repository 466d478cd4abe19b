"""Sparsity Forcing on a GPU: steps of a random Qwen2.5-VL of more than 1 B parameters.

The whole trainer as the stage `train` assembles it: rollouts at the published thresholds, the dense
reference, images through the real-sized vision tower, AdamW on float32 weights, bfloat16
computation. It prints seconds a step and tokens a second (without the first steps, which fill
caches), memory, and max |logp(train) - logp(rollout)|, which says whether the replay holds in
bfloat16. Layers are as wide as Qwen2.5-VL-3B's; 14 of its 36 make 1.4 B, and the tower 0.7 B.

    python benchmarks/training_gpu.py [--steps 30] [--checkpointing] [--lora-rank 64] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import sf  # noqa: F401  (before transformers)

# isort: split
import torch
from table import Report, Row, arguments_parser, interval
from training import CELL, base_model, questions, settings, small_shape
from transformers import TrainerCallback

from sf.profiling.hardware import after, describe, require_device
from sf.progress import progress
from sf.training.run import assemble

WARM = 3
"""Steps that are not counted."""


def wide_shape(layers: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Language model and tower of Qwen2.5-VL-3B's width and vocabulary; its tower's depth."""
    text = {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 11008,
        "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 2,
    }  # fmt: skip
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16,
        "out_hidden_size": 2048, "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    return text, vision


class History:
    """A tracker that keeps what a run logs."""

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self.values.append(values)


class Times(TrainerCallback):
    """Seconds of each step, the device waited for."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._since = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._since = self._now()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(self._now() - self._since)

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def run(arguments: argparse.Namespace, folder: Path) -> list[Row]:
    """Train and say what it took."""
    rows = questions(folder / "media", 8, CELL * arguments.cells)
    shape = {"wide": wide_shape, "small": small_shape}[arguments.shape](arguments.layers)
    base = base_model(folder / "base", rows, *shape, device=arguments.device)
    p = settings(arguments, arguments.steps).model_copy(
        update={
            "device": arguments.device, "dtype": arguments.dtype, "lora_rank": arguments.lora_rank,
            "gradient_checkpointing": arguments.checkpointing,
            "rollouts_per_forward": arguments.rollouts_per_forward, "collapse_patience": 0,
        }
    )  # fmt: skip
    history, times = History(), Times()
    with progress("train", arguments.steps) as counter:
        trainer = assemble(p, base, rows, folder / "state", history, counter).trainer
        trainer.add_callback(times)
        trainer.train()
    seconds, values = times.seconds[WARM:], history.values[WARM:]
    lengths = [len(trainer.encoder(row).input_ids) for row in range(len(rows))]
    rollouts = p.questions_per_step * p.group_size
    prompts = rollouts * sum(lengths) / len(lengths)
    answered = [rollouts * found["completion_tokens"] for found in values]
    speeds = [(prompts + made) / took for made, took in zip(answered, seconds, strict=True)]
    gaps = [found["logp_gap"] for found in values]
    ratios = [found["token_ratio"] for found in values]
    billions = trainer.accelerator.unwrap_model(trainer.model).num_parameters() / 1e9
    table = [
        Row("parameters", billions, billions, billions, "10^9"),
        Row("steps", len(history.values), len(history.values), len(history.values), ""),
        Row("step", *interval(seconds), "s"),
        Row("throughput", *interval(speeds), "prompt and answer tokens / s"),
        Row("token ratio of the rollouts", *interval(ratios), ""),
        Row("largest logp gap, training to rollout", max(gaps), min(gaps), max(gaps), ""),
    ]
    if arguments.device == "cuda":
        taken = {"allocated": torch.cuda.max_memory_allocated(),
                 "reserved": torch.cuda.max_memory_reserved()}  # fmt: skip
        table += [
            Row(f"peak memory {name}", *[size / 2**30] * 3, "GiB") for name, size in taken.items()
        ]
    return table


def main() -> None:
    """Measure, print a table, write it as JSON where asked."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--questions", type=int, default=1, help="of a step, 8 rollouts each")
    parser.add_argument("--completion", type=int, default=128, help="answer tokens at most")
    parser.add_argument("--cells", type=int, default=22, help="side of an image in visual tokens")
    parser.add_argument("--rollouts-per-forward", type=int, default=8)
    parser.add_argument("--checkpointing", action="store_true", help="of gradients")
    parser.add_argument("--lora-rank", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a dry run")
    parser.add_argument("--shape", choices=["wide", "small"], default="wide", help="small: dry run")
    arguments = parser.parse_args()
    if arguments.steps < WARM + 6:
        parser.error(f"--steps {arguments.steps}: at least {WARM + 6}, of which {WARM} warm up")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("training_gpu.py: no CUDA device is visible to PyTorch; run it on a GPU machine")
    device = require_device(arguments.device)
    facts = describe(device)
    name = facts["gpu"]["name"] if "gpu" in facts else facts["host"]["cpu"]
    report = Report(
        f"{name}, {arguments.dtype}, {arguments.questions} x 8 rollouts of {arguments.cells**2} "
        f"visual and at most {arguments.completion} answer tokens, "
        f"{arguments.rollouts_per_forward} in a forward",
        arguments.json,
    )
    for note in facts["notes"]:
        report.begin(f"note: {note}")
    report.begin(f"{arguments.steps} steps")
    with tempfile.TemporaryDirectory() as folder:
        report.add(run(arguments, Path(folder)))
    for note in after(device):
        report.begin(f"note: {note}")
    report.end()


if __name__ == "__main__":
    main()

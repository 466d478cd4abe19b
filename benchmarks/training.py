"""A training step of Sparsity Forcing against one of stock TRL's GRPOTrainer.

Both train the same model on the same images, group size and number of answer tokens, with a frozen
vision tower and a KL term. Each runs TRL's own `train()` in a process of its own; the two alternate
step by step under the same load, and a ratio is the median over pairs of neighbouring steps with a
95 % bootstrap interval. CPU time is that of all threads of a process, which other programs disturb
less. Memory is a process's peak above its memory after the imports.

The model is random: four layers of a quarter of Qwen2.5-VL-3B's width (heads of 128). In the 3B
model a visual token costs 0.92 times as much in the tower as in the language model (four patches
through 630 M parameters, one through a merger of 37 M, against 2.77 G); here it is 0.89. 144 of
some 200 tokens are visual, as 512 of some 750 are with the pixel bounds of the scale `paper`. Stock
TRL uses full attention; ours runs each rollout at its published threshold, from 0.94 to 0.975. The
attention of a random model is nearly even, so most tokens are kept: the time saved here is that of
repeated work, not of attention.

    python benchmarks/training.py [--repeats 6] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from table import Report, Row, arguments_parser, exact, interval

GROUP, TARGET_TIME, TARGET_MEMORY = 8, 0.6, 1.0
CELL = 28
"""Pixels of a side of what becomes one visual token."""
GRID = [0.94, 0.945, 0.95, 0.955, 0.96, 0.965, 0.97, 0.975]


# -- one trainer in a process of its own -----------------------------------------------------


def held() -> float:
    """MiB that this process holds now."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", text).group(1)) / 1024  # type: ignore[union-attr]


def peak() -> float:
    """MiB that this process held at its peak."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", text).group(1)) / 1024  # type: ignore[union-attr]


def questions(folder: Path, count: int, side: int) -> list[Any]:
    """Rows with random images of shapes."""
    import numpy as np

    from sf.data.manifest import Row as Question
    from sf.mini.scenes import ask, render, sample_scene

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for at in range(count):
        scene = sample_scene(rng, rows=4, cols=4, objects=(2, 2))
        asked = ask(scene, "colour", rng)
        render(scene).resize((side, side)).save(folder / f"{at}.png")
        rows.append(
            Question(
                id=str(at), problem=asked.text, problem_type="OCR", data_type="image", options=(),
                solution=f"<answer>{asked.answer}</answer>", answer=asked.answer, media=f"{at}.png",
                data_source="benchmark", data_root=str(folder),
            )
        )  # fmt: skip
    return rows


def small_shape(layers: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Language model and tower of a quarter of Qwen2.5-VL-3B's width."""
    depth = layers + layers // 4
    text = {
        "vocab_size": 2048, "hidden_size": 512, "intermediate_size": 2752,
        "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 1,
    }  # fmt: skip
    vision = {
        "depth": depth, "hidden_size": 256, "intermediate_size": 684, "num_heads": 4,
        "out_hidden_size": 512, "fullatt_block_indexes": [depth - 1],
    }  # fmt: skip
    return text, vision


def base_config(processor: Any, text: dict[str, Any], vision: dict[str, Any]) -> Any:
    """The configuration of a Qwen2.5-VL with these parts and the processor's tokens."""
    from transformers import Qwen2_5_VLConfig

    ids = processor.tokenizer.convert_tokens_to_ids
    common = {
        "max_position_embeddings": 32768, "bos_token_id": None, "tie_word_embeddings": True,
        "eos_token_id": ids("<|im_end|>"), "pad_token_id": ids("<|endoftext|>"),
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]
        },
    }  # fmt: skip
    tokens = {
        "image_token_id": ids("<|image_pad|>"), "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config={**text, **common}, vision_config=vision, **tokens)
    config.tie_word_embeddings = True
    return config


def base_model(
    folder: Path, rows: list[Any], text: dict[str, Any], vision: dict[str, Any], device: str = "cpu"
) -> Path:
    """A saved random model and its processor."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    from sf.data.prompts import question_text
    from sf.models.tiny import build_processor

    processor = build_processor("qwen2_5_vl", [question_text(row, "answer") for row in rows])
    config = base_config(processor, text, vision)
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2_5_VLForConditionalGeneration(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def settings(arguments: argparse.Namespace, steps: int) -> Any:
    """The paper's settings at this size."""
    from sf.config import Runtime, Vision
    from sf.scales import load_scale
    from sf.training.parameters import RunParameters

    params = load_scale("paper", Path(__file__).parent.parent / "params")
    row, pixels = params.trained["sparsity_forcing"], (CELL * arguments.cells) ** 2
    common = {
        "steps": steps, "questions_per_step": arguments.questions, "rollouts_per_forward": GROUP,
        "gradient_checkpointing": False, "sharding": "none", "save_every": 10**6, "log_every": 1,
    }  # fmt: skip
    return RunParameters(
        model="random", row="sparsity_forcing", seed=0,
        objective=row.objective.model_copy(update={"group_size": GROUP, "retention_p": GRID}),
        train=row.train.model_copy(update=common),
        answering=params.answering.model_copy(
            update={"max_completion_tokens": arguments.completion}
        ),
        vision=Vision(
            image_min_pixels=pixels, image_max_pixels=pixels, video_min_pixels=784,
            video_max_pixels=784, video_max_frames=4, video_fps=1.0,
        ),
        runtime=Runtime(device="cpu", dtype="float32"),
    )  # fmt: skip


class Turns:
    """A transformers callback that waits for its turn before a step and then reports its time."""

    def __init__(self) -> None:
        from transformers import TrainerCallback

        self.callback = type(
            "TakesTurns",
            (TrainerCallback,),
            {"on_step_begin": self._begin, "on_step_end": self._end},
        )()
        self._since = self._cpu = 0.0

    def _begin(self, *_: Any, **__: Any) -> None:
        if sys.stdin.readline().strip() != "go":
            sys.exit(0)
        self._since, self._cpu = time.perf_counter(), time.process_time()

    def _end(self, *_: Any, **__: Any) -> None:
        spent = {
            "wall": time.perf_counter() - self._since,
            "CPU": time.process_time() - self._cpu,
            "peak": peak(),
        }
        print(json.dumps(spent), file=sys.__stdout__, flush=True)


def stock_trainer(base: Path, rows: list[Any], p: Any, folder: Path) -> Any:
    """TRL's own trainer with images, set up as in its documentation."""
    from datasets import Dataset, Image
    from trl import GRPOTrainer

    from sf.data.prompts import messages
    from sf.models import load_model, load_processor
    from sf.training.settings import grpo_config

    args = grpo_config(p, folder)
    args.remove_unused_columns = False
    args.generation_kwargs = {"min_new_tokens": p.answering.max_completion_tokens}
    model = load_model(base)
    model.model.visual.requires_grad_(False)
    count = p.train.steps * p.train.questions_per_step
    shown = [rows[at % len(rows)] for at in range(count)]
    text = [messages(row, p.answering.prompt_template)[0]["content"][-1]["text"] for row in shown]
    table = {
        "prompt": [[{"role": "user", "content": line}] for line in text],
        "image": [str(row.media_path) for row in shown],
    }
    dataset = Dataset.from_dict(table).cast_column("image", Image())

    def reward(completions: list[Any], **_: Any) -> list[float]:
        return [float(len(c[0]["content"]) % 7) for c in completions]

    processor = load_processor(base)
    size = p.vision.image_max_pixels
    processor.image_processor.size = {"shortest_edge": size, "longest_edge": size}
    return GRPOTrainer(model, [reward], args, dataset, processing_class=processor)


def our_trainer(base: Path, rows: list[Any], p: Any, folder: Path) -> Any:
    """This project's trainer, as the stage `train` assembles it."""
    from dataclasses import replace

    from sf.progress import Progress
    from sf.training.run import assemble

    class Silent:
        def log(self, step: int, values: dict[str, float]) -> None:
            pass

    counter = Progress("", p.train.steps)
    trainer = assemble(p, base, rows, folder, Silent(), counter).trainer
    sampler = trainer.sampler  # answers of one length, as the other trainer's
    endless = [*sampler.forbidden, *sampler.eos_token_ids]
    trainer.sampler = replace(sampler, forbidden=endless)
    return trainer


def child(arguments: argparse.Namespace) -> None:
    """Train at the parent's command."""
    import sf  # noqa: F401  (before transformers: it lets torchvision import beside a CPU-only torch)

    # isort: split
    import torch
    from transformers import PrinterCallback
    from trl import GRPOTrainer  # noqa: F401

    torch.set_num_threads(arguments.threads)
    rows = questions(arguments.folder / "media", 8, CELL * arguments.cells)
    p = settings(arguments, arguments.repeats + 1)
    before = held()
    build: Callable[..., Any] = {"stock": stock_trainer, "ours": our_trainer}[arguments.child]
    trainer = build(arguments.folder / "base", rows, p, arguments.folder / arguments.child)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Turns().callback)
    print(json.dumps({"before": before}), file=sys.__stdout__, flush=True)
    sys.stdout = sys.stderr
    trainer.train()


# -- the comparison ---------------------------------------------------------------------------


def compare(arguments: argparse.Namespace, report: Report) -> list[Row]:
    """Start both, let them alternate, and compare their steps."""
    names = ("stock", "ours")
    running = {}
    for name in names:
        command = [sys.executable, __file__, "--child", name, "--folder", str(arguments.folder)]
        for option in ("questions", "completion", "cells", "layers", "repeats", "threads"):
            command += [f"--{option}", str(getattr(arguments, option))]
        running[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=None if arguments.verbose else subprocess.DEVNULL,
        )  # fmt: skip

    def answer(name: str) -> dict[str, float]:
        line = running[name].stdout.readline()
        if not line:
            sys.exit(f"error: the {name} trainer ended with {running[name].wait()}; --verbose")
        return dict(json.loads(line))

    before = {name: answer(name)["before"] for name in names}
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for repeat in range(arguments.repeats + 1):
        report.begin(f"pair of steps {repeat} of {arguments.repeats}" if repeat else "first steps")
        for name in random.sample(names, 2):
            print("go", file=running[name].stdin, flush=True)
            steps[name].append(answer(name))
    for process in running.values():
        process.stdin.close()
        process.wait()
    table = []
    for clock, target in (("wall", TARGET_TIME), ("CPU", None)):
        # The first step also fills caches.
        times = {name: [step[clock] for step in steps[name][1:]] for name in names}
        pairs = zip(times["ours"], times["stock"], strict=True)
        ratio = interval([ours / stock for ours, stock in pairs])
        table += [Row(f"{name} step, {clock} time", *interval(times[name]), "s") for name in names]
        table.append(Row(f"ours / stock, {clock} time", *ratio, "x", target, "lower"))
    most = {name: steps[name][-1]["peak"] - before[name] for name in names}
    memory = most["ours"] / most["stock"]
    return [
        *table,
        *(exact(f"{name} peak memory", most[name], "MiB") for name in names),
        Row("ours / stock, peak memory", memory, memory, memory, "x", TARGET_MEMORY, "lower"),
    ]


def main() -> None:
    """Measure, print a table, and write it as JSON if requested."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--questions", type=int, default=1, help="of a step")
    parser.add_argument("--completion", type=int, default=16, help="answer tokens")
    parser.add_argument("--cells", type=int, default=12, help="side of an image in visual tokens")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--verbose", action="store_true", help="show what the trainers print")
    parser.add_argument("--child", choices=["stock", "ours"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    random.seed(0)
    report = Report(
        f"cpu, {arguments.threads} threads, {arguments.questions} x {GROUP} rollouts of "
        f"{arguments.cells**2} visual and {arguments.completion} answer tokens, "
        f"{arguments.repeats} repeats",
        arguments.json,
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = Path(folder)
        import sf  # noqa: F401

        base_model(
            arguments.folder / "base",
            questions(arguments.folder / "media", 8, CELL * arguments.cells),
            *small_shape(arguments.layers),
        )
        report.add(compare(arguments, report))
    report.end()


if __name__ == "__main__":
    main()

"""Sparsity Forcing's training step on a random Qwen2.5-VL of the 3B model's width.

The complete trainer as the stage `train` assembles it: rollouts at the published thresholds, the
dense reference, images through a vision tower of the real size, AdamW on float32 weights, bfloat16
computation. Layers and tower are as wide as Qwen2.5-VL-3B's; 14 of its 36 layers have 1.4 B
weights, the tower 0.7 B. Requires TRL, datasets, pydantic, ruamel.yaml and jiwer.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from table import Row, exact, interval
from transformers import TrainerCallback

from gpu_sections.measure import Skipped
from gpu_sections.scale import Scale
from sf.profiling.timing import free

__all__ = ["predicted_steps", "steps"]

NEEDED = ("trl", "datasets", "pydantic", "ruamel.yaml", "jiwer")
WARM = 2
"""Steps that are not counted."""


def steps(scale: Scale) -> dict[str, Callable[[], list[Row]]]:
    """A single step of the session: several training steps."""
    return {"training step": lambda: train(scale)}


def predicted_steps(scale: Scale) -> dict[str, Callable[[], list[Row]]]:
    """What `sf rehearse --peak` says of the same training step."""
    return {"predicted peak": lambda: predict(scale)}


def absent() -> list[str]:
    """The packages that training needs and that are not installed."""
    missing = []
    for name in NEEDED:
        try:
            missing += [] if find_spec(name) is not None else [name]
        except (ModuleNotFoundError, ValueError):
            missing.append(name)
    return missing


def wide_shape(layers: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Language model and tower of Qwen2.5-VL-3B's width and vocabulary, and its tower's depth."""
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
    """A tracker that collects what a run logs."""

    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self.values.append(values)


class Times(TrainerCallback):
    """Seconds of each step, after synchronising the device."""

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


def require() -> None:
    """Refuse to start.

    Raises:
        Skipped: TRL or another package is not installed.
    """
    missing = absent()
    if missing:
        raise Skipped(f"training needs {', '.join(missing)}, not installed on this machine")


def sizes(scale: Scale) -> tuple[int, int, Any]:
    """Cells of an image's side, steps, and the settings of the run."""
    from training import settings

    from sf.sections import Runtime

    cells, completion = (2, 2) if scale.rehearsal else (22, 128)
    count = WARM + scale.train_steps
    p = settings(argparse.Namespace(questions=1, completion=completion, cells=cells), count)
    dtype = str(scale.dtype).removeprefix("torch.")
    update = {
        "runtime": Runtime(device=scale.device, dtype=dtype),
        "train": p.train.model_copy(update={"collapse": None}),
    }
    return cells, count, p.model_copy(update=update)


def shape_of(scale: Scale) -> tuple[dict[str, Any], dict[str, Any]]:
    """Language model and tower."""
    from training import small_shape

    return small_shape(1) if scale.rehearsal else wide_shape(14)


def predict(scale: Scale) -> list[Row]:
    """Peak memory of the same step by `sf.rehearsal`, on shapes, at a token ratio of 1.

    Raises:
        Skipped: see `require`.
    """
    require()
    from training import base_config

    from sf.models.load import FAMILIES
    from sf.models.tiny import build_processor
    from sf.rehearsal.shapes import ModelShape
    from sf.rehearsal.training_peak import training_peaks

    _, _, p = sizes(scale)
    p = p.model_copy(update={"runtime": p.runtime.model_copy(update={"device": "cpu"})})
    config = base_config(build_processor("qwen2_5_vl", ["a b"] * 2), *shape_of(scale))
    shape = ModelShape(FAMILIES[config.model_type], config, "the session's")
    with torch.inference_mode(False), torch.enable_grad():
        peaks = training_peaks(shape, p)
    stage, held = max(peaks.items(), key=lambda item: sum(item[1].values()))
    return [
        exact("training, predicted peak memory", sum(held.values()) / 2**30, "GiB"),
        *(
            exact(f"training, predicted {category} at the peak ({stage})", size / 2**30, "GiB")
            for category, size in held.most_common()
        ),
    ]


def train(scale: Scale) -> list[Row]:
    """Seconds per step, tokens per second, memory, and the error of the replay in half precision.

    Raises:
        Skipped: see `require`.
    """
    require()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False), torch.enable_grad():
        return _train(scale, Path(folder))


def _train(scale: Scale, folder: Path) -> list[Row]:
    from training import CELL, base_model, questions

    from sf.progress import progress
    from sf.training.run import assemble

    cells, count, p = sizes(scale)
    rows = questions(folder / "media", 8, CELL * cells)
    base = base_model(folder / "base", rows, *shape_of(scale), device=scale.device)
    free(scale.at)
    if scale.at.type == "cuda":
        torch.cuda.reset_peak_memory_stats(scale.at)
    history, times = History(), Times()
    with progress("train", count) as counter:
        trainer = assemble(p, base, rows, folder / "state", history, counter).trainer
        trainer.add_callback(times)
        trainer.train()
    seconds, values = times.seconds[WARM:], history.values[WARM:]
    lengths = [len(trainer.encoder(row).input_ids) for row in range(len(rows))]
    rollouts = p.train.questions_per_step * p.objective.group_size
    prompts = rollouts * sum(lengths) / len(lengths)
    answered = [rollouts * value["completion_tokens"] for value in values]
    speeds = [(prompts + made) / took for made, took in zip(answered, seconds, strict=True)]
    billions = trainer.accelerator.unwrap_model(trainer.model).num_parameters() / 1e9
    table = [
        exact("training, parameters", billions, "10^9"),
        Row("training step", *interval(seconds), "s"),
        Row("training throughput", *interval(speeds), "prompt and answer tokens / s"),
        Row("training, token ratio", *interval([value["token_ratio"] for value in values]), ""),
        exact("training, largest logp gap", max(value["logp_gap"] for value in values), "nats"),
    ]
    if scale.at.type == "cuda":
        peak = torch.cuda.max_memory_allocated(scale.at) / 2**30
        table.append(exact("training, peak memory", peak, "GiB"))
    return table

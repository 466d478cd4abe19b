"""A few questions about images and clips, and tiny untrained models, for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sf.config import Vision
from sf.data.manifest import Row
from sf.data.prompts import question_text
from sf.mini.scenes import ask, render, sample_clip, sample_scene, write_video
from sf.models import build_tiny
from sf.training.parameters import RunParameters

VISION = Vision(
    image_min_pixels=784,
    image_max_pixels=12 * 784,
    video_min_pixels=784,
    video_max_pixels=6 * 784,
    video_max_frames=4,
    video_fps=1.0,
)

PARAMETERS: dict[str, Any] = {
    "model": "tiny",
    "objective": "sparsity_forcing",
    "seed": 3,
    "device": "cpu",
    "dtype": "float32",
    "prompt_template": "answer",
    "max_completion_tokens": 4,
    "correctness_cutoff": 0.99,
    "group_size": 4,
    "rollout_selector": "top_p",
    "rollout_draw": "grid",
    "rollout_p": [0.5, 0.7, 0.9, 1.0],
    "rollout_range": [0.0, 1.0],
    "short_share": 0.0,
    "train_steps": 4,
    "questions_per_step": 2,
    "learning_rate": 1e-3,
    "lr_schedule": "cosine",
    "weight_decay": 0.01,
    "beta": 0.1,
    "clip_epsilon": 0.2,
    "max_grad_norm": 5.0,
    "temperature": 1.0,
    "reward_gate": False,
    "reward_correctness": "binary",
    "reward_latency_weight": 0.0,
    "pathwise_weight": 1.0,
    "pathwise_gate": True,
    "pathwise_layers": "even",
    "pathwise_schedule": "constant",
    "pathwise_target": 0.0,
    "pathwise_dual_rate": 20.0,
    "sharpness_kind": "entropy",
    "sharpness_weight": 0.1,
    "sharding": "none",
    "lora_rank": 0,
    "lora_alpha": 8,
    "moba_top_k": 2,
    "moba_block": 4,
    "nsa_top_n": 3,
    "nsa_compress_block": 4,
    "nsa_compress_stride": 2,
    "nsa_select_block": 4,
    "nsa_window": 6,
    "collapse_patience": 0,
    "collapse_accuracy": 0.5,
    "collapse_token_ratio": 0.1,
    "collapse_entropy": 0.02,
    "train_vision": False,
    "rollouts_per_forward": 8,
    "gradient_checkpointing": False,
    "save_every": 2,
    "log_every": 1,
}
"""An untrained model is never right: without the gate the efficiency reward still differs."""


def parameters(**changes: Any) -> RunParameters:
    """`PARAMETERS` with some changed."""
    return RunParameters(**{**VISION.model_dump(), **PARAMETERS, **changes})


def write_rows(folder: Path, images: int = 3, videos: int = 3) -> list[Row]:
    """Questions with media, images and videos in turn, of different sizes."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(5)
    rows = []
    for at in range(images + videos):
        side = 2 + at % 2
        if at % 2 == 0:
            scene = sample_scene(rng, rows=side, cols=3, objects=(1, 2))
            question = ask(scene, "colour", rng)
            kind, name = "image", f"{at}.png"
            render(scene).save(folder / name)
        else:
            clip = sample_clip(rng, rows=side, cols=2, frames=4, objects=(1, 1), event="recolour")
            question = ask(clip, "after", rng)
            kind, name = "video", f"{at}.mp4"
            write_video(clip, folder / name)
        rows.append(
            Row(
                id=str(at),
                problem=question.text,
                problem_type="OCR",
                data_type=kind,
                options=(),
                solution=f"<answer>{question.answer}</answer>",
                answer=question.answer,
                media=name,
                data_source="test",
                data_root=str(folder),
            )
        )
    return rows


def build(family: str, rows: list[Row]) -> tuple[Any, Any]:
    """An untrained tiny model and its processor."""
    corpus = [f"{question_text(row, 'answer')} {row.solution}" for row in rows]
    return build_tiny(family, corpus, seed=1)


class Log:
    """Collects what a run logs."""

    def __init__(self) -> None:
        self.history: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self.history.append((step, values))

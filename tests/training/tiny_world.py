"""A few questions about images and clips, and tiny untrained models, for the tests of training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sf.attention.video_form import CONFIG_KEY, VideoForm
from sf.config import Answering, Runtime, Vision
from sf.data.manifest import Row
from sf.data.prompts import question_text
from sf.mini.scenes import ask, render, sample_clip, sample_scene, write_video
from sf.models import build_tiny
from sf.models.llava_video import apply_video_form
from sf.training.config import Train
from sf.training.parameters import RunParameters
from sf.validation import merged

VISION = Vision(
    image_min_pixels=784,
    image_max_pixels=12 * 784,
    video_min_pixels=784,
    video_max_pixels=6 * 784,
    video_max_frames=4,
    video_fps=1.0,
)

TRAIN: dict[str, Any] = {
    "short_share": 0.0,
    "steps": 4,
    "questions_per_step": 2,
    "learning_rate": 1e-3,
    "lr_schedule": "cosine",
    "weight_decay": 0.01,
    "max_grad_norm": 5.0,
    "train_vision": False,
    "sharding": "none",
    "rollouts_per_forward": 8,
    "gradient_checkpointing": False,
    "save_every": 2,
    "log_every": 1,
}
ROLLOUTS = {"group_size": 4, "rollout_selector": "top_p", "retention_p": [0.5, 0.7, 0.9, 1.0]}
GRPO = {
    **ROLLOUTS,
    "beta": 0.1,
    "clip_epsilon": 0.2,
    "temperature": 1.0,
    "sampling_top_p": 1.0,
    "reward_gate": False,
    "reward_correctness": "binary",
    "reward_latency_weight": 0.0,
}
"""An untrained model is never right: without the gate the efficiency reward still differs."""
TERM = {"weight": 1.0, "gate": True, "layers": "even", "schedule": "constant"}
COLLAPSE = {"accuracy": 0.5, "token_ratio": 0.1, "entropy": 0.02}
SETTINGS: dict[str, dict[str, Any]] = {
    "sparsity_forcing": GRPO,
    "pathwise": {**GRPO, "pathwise": TERM},
    "distil": {
        **ROLLOUTS,
        "target_token_ratio": 0.25,
        "hidden_weight": 0.3,
        "sparsity_weight": 2.0,
        "sparsity_measure": "effective",
        "dual_rate": 2.0,
    },
    "zipvl_sft": ROLLOUTS,
    "sharpness": {"kind": "entropy", "weight": 0.1},
    "moba": {"top_k": 2, "block": 4},
    "nsa": {"top_n": 3, "compress_block": 4, "compress_stride": 2, "select_block": 4, "window": 6},
    "videonsa": {"top_n": 1, "block": 2, "window": 1},
}


def parameters(
    objective: str = "sparsity_forcing",
    seed: int = 3,
    dtype: str = "float32",
    max_completion_tokens: int = 4,
    **changes: Any,
) -> RunParameters:
    """Of a tiny run; a change is a common setting or one of the objective.

    Args:
        objective: what is trained.
        seed: of the run.
        dtype: that the computation runs in.
        max_completion_tokens: of a rollout.
        changes: by name; `pathwise` and `collapse` are mappings that are merged.
    """
    common = {name: changes.pop(name) for name in (*TRAIN, "lora") if name in changes}
    if "collapse" in changes:
        common["collapse"] = {**COLLAPSE, **changes.pop("collapse")}
    own = merged(SETTINGS[objective], changes)
    return RunParameters(
        model="tiny",
        row=objective,
        seed=seed,
        objective={"objective": objective, **own},  # type: ignore[arg-type]
        train=Train(**{**TRAIN, **common}),
        answering=Answering(
            prompt_template="answer",
            max_completion_tokens=max_completion_tokens,
            correctness_cutoff=0.99,
        ),
        vision=VISION,
        runtime=Runtime(device="cpu", dtype=dtype),
    )


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


LLAVA = ("llava_video", "llava_next_video")
FAMILIES = ("qwen2_5_vl", "qwen2_vl", *LLAVA)
"""`llava_video` is of the classes of LLaVA-OneVision, with LLaVA-Video's form of videos."""
_TIMES = "The video lasts for 0.25 seconds, and 4 frames are uniformly sampled from it."


def build(family: str, rows: list[Row]) -> tuple[Any, Any]:
    """An untrained tiny model and its processor."""
    corpus = [f"{question_text(row, 'answer')} {row.solution}" for row in rows]
    if family not in LLAVA:
        return build_tiny(family, corpus, seed=1)
    from tiny_llava import build_llava  # some tests run this module without tests/ on their path

    own = family == "llava_video"
    model, processor = build_llava("llava_onevision" if own else family, [*corpus, _TIMES])
    if own:
        form = VideoForm(line_ends="grid", time_text=True)
        setattr(model.config, CONFIG_KEY, form.as_config())
        for part in (model, processor):
            apply_video_form(part, model.config)
    return model, processor


def first_batch(trainer: Any) -> dict[str, Any]:
    """The inputs of a trainer's first forward, before its first step."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs: dict[str, Any] = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    return inputs


class Log:
    """Collects what a run logs."""

    def __init__(self) -> None:
        self.history: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self.history.append((step, values))

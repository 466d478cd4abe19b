"""The options of the commands for a user's model; each field is one option."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from sf.errors import ConfigError, DataError
from sf.options import DEVICE, DTYPE, FPS, MAX_FRAMES, MAX_PIXELS, MODEL, REVISION

__all__ = ["Comparison", "Inputs", "Recipe"]

MAX_NEW_TOKENS = Annotated[int, typer.Option(help="length limit of a reply")]
CUTOFF = Annotated[
    float,
    typer.Option(help="score from which OCR, free-form and regression answers count as correct"),
]
SEED = Annotated[int, typer.Option(help="random seed")]
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Inputs:
    """A model and questions."""

    model: MODEL
    questions: Annotated[
        Path,
        typer.Option(help="JSONL, JSON, CSV or parquet: question, answer, image or video, options"),
    ]
    media: Annotated[
        Path | None,
        typer.Option(help="folder of the images and videos; by default that of the questions"),
    ] = None
    revision: REVISION = None
    device: DEVICE = None
    dtype: DTYPE = None
    max_pixels: MAX_PIXELS = None
    max_frames: MAX_FRAMES = 32
    fps: FPS = 2.0
    max_reject_share: Annotated[
        float, typer.Option(help="share of the questions that may be unusable, 0 to 1")
    ] = 0.0

    @property
    def name(self) -> str:
        """The model's name as a folder name."""
        return re.sub(r"[^A-Za-z0-9.-]+", "-", Path(self.model).resolve().name).strip("-.")

    @property
    def media_folder(self) -> Path:
        folder = self.questions.parent if self.media is None else self.media
        return folder.absolute()  # decoders run in separate processes

    def check(self) -> None:
        """Refuse missing files and models before any work.

        Raises:
            DataError: no such file, folder or model.
            ConfigError: the model's name is neither a folder nor a hub id.
        """
        from sf.data.own_rows import TABLES

        if not self.questions.is_file():
            remedy = f"give a file in JSON or JSONL, or one that ends in {', '.join(TABLES)}"
            raise DataError("questions", str(self.questions), "there is no such file", remedy)
        if not self.media_folder.is_dir():
            raise DataError("media", str(self.media_folder), "there is no such folder")
        if Path(self.model).is_dir():
            return
        parent = Path(self.model).parent
        if not _HUB.fullmatch(self.model) or parent.is_dir() or self.model.startswith("."):
            rule = "is neither a folder nor OWNER/NAME on the hub"
            raise ConfigError("model", self.model, rule, "give a folder with model and processor")


@dataclass(frozen=True)
class Comparison:
    """The methods that answer, and how replies are judged (`sf.stages.questions`)."""

    retention_p: Annotated[
        list[float] | None, typer.Option("--p", help="retention thresholds in (0, 1]")
    ] = None
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help="methods to compare with full attention, NAME or NAME=VALUE; by default as trained"
        ),
    ] = None
    batch: Annotated[int, typer.Option(help="questions answered at once")] = 8
    max_new_tokens: MAX_NEW_TOKENS = 64
    prompt: Annotated[
        str, typer.Option(help="short: a bare answer; answer: in tags; think_answer: reasoning too")
    ] = "short"
    cutoff: CUTOFF = 0.5
    pictures: Annotated[
        int, typer.Option(help="number of questions whose kept tokens are drawn")
    ] = 6
    seed: SEED = 0


@dataclass(frozen=True)
class Recipe:
    """The training settings; the learning rate was not tuned on large models."""

    target_token_ratio: Annotated[
        float, typer.Option(help="target share of the prompt's tokens at p = 0.975")
    ]
    steps: Annotated[int, typer.Option(help="optimiser steps")] = 200
    questions_per_step: Annotated[int, typer.Option(help="questions per step")] = 16
    learning_rate: Annotated[float, typer.Option(help="peak learning rate of AdamW")] = 1e-5
    lora_rank: Annotated[
        int, typer.Option(help="rank of LoRA adapters; 0: train all decoder weights")
    ] = 0
    max_new_tokens: MAX_NEW_TOKENS = 64
    cutoff: CUTOFF = 0.5
    rollouts_per_forward: Annotated[int, typer.Option(help="micro-batch, in answers")] = 8
    save_every: Annotated[int, typer.Option(help="steps between two checkpoints")] = 25
    seed: SEED = 0

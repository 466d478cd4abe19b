"""An own model on own questions: what `sf evaluate` and `sf train` do.

Both call the stages of a study with values made here: `base` takes the checkpoint over, `prepare`
reads the questions. The same command again adopts what is finished and goes on with the rest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sf.data.own_rows import TABLES
from sf.errors import ConfigError, DataError
from sf.jobs import run_stage
from sf.result_key.contents import digest_of

__all__ = [
    "FOLDER",
    "STUDY",
    "Asked",
    "base_of",
    "check_values",
    "evaluate",
    "runtime_of",
    "vision_of",
]

STUDY = "own"
FOLDER = Path("results/own")
_ANSWERING = {
    "prompt_template": "answer",
    "max_completion_tokens": 64,
    "correctness_cutoff": 0.5,
}
_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Asked:
    """A model and questions.

    Attributes:
        model: a checkpoint's folder, or OWNER/NAME on the hub.
        questions: JSONL, JSON, CSV or parquet (`sf.data.own_rows`).
        media: folder that media paths are relative to; None: that of the questions.
        revision: of a hub id.
        device, dtype: None: the best that is there.
        max_pixels: of an image, or of each frame. max_frames, fps: of a video.
        max_reject_share: share of unusable questions above which nothing is done.
    """

    model: str
    questions: Path
    media: Path | None = None
    revision: str | None = None
    device: str | None = None
    dtype: str | None = None
    max_pixels: int | None = None
    max_frames: int = 32
    fps: float = 2.0
    max_reject_share: float = 0.0

    @property
    def name(self) -> str:
        """Of the model, as a folder's."""
        return re.sub(r"[^A-Za-z0-9.-]+", "-", Path(self.model).resolve().name).strip("-.")

    @property
    def media_folder(self) -> Path:
        folder = self.questions.parent if self.media is None else self.media
        return folder.absolute()  # decoders work in processes of their own

    def check(self) -> None:
        """Refuse before any work what names nothing.

        Raises:
            DataError: no such file, folder or model.
            ConfigError: the model's name is neither a folder nor a hub id.
        """
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


def vision_of(asked: Asked) -> dict[str, Any]:
    """Pixel and frame bounds: those of `sf ask`.

    Raises:
        ConfigError: a value is out of range.
    """
    from sf.ask.media import bounds

    kinds = {
        kind: bounds(kind, asked.max_pixels, asked.max_frames, asked.fps).model_dump()
        for kind in ("image", "video")
    }
    return {name: kinds[name.partition("_")[0]][name] for name in kinds["image"]}


def base_of(asked: Asked, command: str) -> Path:
    """The checkpoint as a result of the stage `base`; files are linked, not copied.

    Raises:
        DataError, UnsupportedModelError, EnvironmentFault: see `sf.models.load.load_config` and
            `sf.models.fetch.fetch_checkpoint`.
    """
    from sf.models.load import load_config

    local = Path(asked.model).is_dir()
    family = load_config(Path(asked.model) if local else asked.model, asked.revision).model_type
    source = asked.model if local else f"hub:{asked.model}@{asked.revision or 'main'}"
    where = os.path.realpath(asked.model) if local else source
    output = FOLDER / "base" / f"{asked.name}__{digest_of([where])}"
    values = {
        "seed": 0,
        "model": asked.name,
        "base": {"family": family, "source": source},
        "answering": _ANSWERING,
        "vision": vision_of(asked),
        "runtime": runtime_of(asked),
        "data": FOLDER,
        "output": output,
    }
    run_stage("base", values, STUDY, command, tracked=False)
    return output


def runtime_of(asked: Asked) -> dict[str, Any]:
    """Device and dtype.

    Raises:
        ConfigError, EnvironmentFault: see `sf.ask.pick_runtime`.
    """
    from sf.ask import pick_runtime

    return pick_runtime(asked.device, asked.dtype).model_dump()


def evaluate(
    asked: Asked,
    *,
    methods: Sequence[str] = (),
    retention_p: Sequence[float] = (),
    batch: int = 8,
    max_new_tokens: int = 64,
    prompt_template: str = "short",
    correctness_cutoff: float = 0.5,
    pictures: int = 6,
    seed: int = 0,
    output: Path | None = None,
    command: str = "",
) -> Path:
    """Answer the questions under full attention and other methods.

    Args:
        asked: model and questions.
        methods: names or NAME=VALUE; none: what the checkpoint was trained with, else ZipVL.
        retention_p: thresholds of the methods that have one.
        batch: questions answered at once.
        max_new_tokens: length limit of a reply.
        prompt_template, correctness_cutoff, pictures, seed: see `sf.stages.questions`.
        output: of the result; by default a folder of its own below `results/own/evaluate`.
        command: as it was typed, for the record.

    Returns:
        The folder with `index.html` and `tables/`.

    Raises:
        SparsityForcingError: before any work wherever that is possible.
    """
    from sf.evaluation.own_questions import settings_of
    from sf.models.load import load_config

    asked.check()
    local = Path(asked.model).is_dir()
    config = load_config(Path(asked.model) if local else asked.model, asked.revision)
    settings = settings_of(config, methods, retention_p)
    values = {
        "model": asked.name,
        "settings": [setting.model_dump() for setting in settings],
        "seed": seed,
        "batch": batch,
        "max_new_tokens": max_new_tokens,
        "prompt_template": prompt_template,
        "correctness_cutoff": correctness_cutoff,
        "max_reject_share": asked.max_reject_share,
        "pictures": pictures,
        "vision": vision_of(asked),
        "runtime": runtime_of(asked),
        "questions": asked.questions,
        "media": asked.media_folder,
    }
    digest = digest_of([values, os.path.realpath(asked.model), asked.questions.absolute()])[:8]
    folder = output or FOLDER / "evaluate" / f"{asked.name}__{digest}"
    check_values("questions", {**values, "checkpoint": asked.model, "output": folder})
    checkpoint = base_of(asked, command)
    values |= {"checkpoint": checkpoint, "output": folder}
    run_stage("questions", values, STUDY, command, tracked=False)
    return folder


def check_values(stage: str, values: dict[str, Any]) -> None:
    """Refuse values of a stage before any stage runs.

    Raises:
        ConfigError: a value is out of its range.
    """
    from sf.config import validated
    from sf.jobs import stage_module

    validated(stage_module(stage).Parameters, values)

"""Stage values shared by evaluation and training of a user's model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.config import validated
from sf.jobs import run_stage, stage_module
from sf.result_key.contents import digest_of

if TYPE_CHECKING:
    from sf.own.asked import Asked

__all__ = ["FOLDER", "STUDY", "base_of", "check_values", "config_of", "runtime_of", "vision_of"]

STUDY = "own"
FOLDER = Path("results/own")
_ANSWERING = {
    "prompt_template": "answer",
    "max_completion_tokens": 64,
    "correctness_cutoff": 0.5,
}


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


def runtime_of(asked: Asked) -> dict[str, Any]:
    """Device and dtype.

    Raises:
        ConfigError, EnvironmentFault: see `sf.ask.pick_runtime`.
    """
    from sf.ask import pick_runtime

    return pick_runtime(asked.device, asked.dtype).model_dump()


def config_of(asked: Asked) -> Any:
    """The checkpoint's configuration.

    Raises:
        DataError, UnsupportedModelError, EnvironmentFault: see `sf.models.load.load_config`.
    """
    from sf.models.load import load_config

    local = Path(asked.model).is_dir()
    return load_config(Path(asked.model) if local else asked.model, asked.revision)


def base_of(asked: Asked, command: str) -> Path:
    """The checkpoint as a result of the stage `base`; files are linked, not copied.

    Raises:
        DataError, UnsupportedModelError, EnvironmentFault: see `config_of` and
            `sf.models.fetch.fetch_checkpoint`.
    """
    local = Path(asked.model).is_dir()
    source = asked.model if local else f"hub:{asked.model}@{asked.revision or 'main'}"
    where = os.path.realpath(asked.model) if local else source
    output = FOLDER / "base" / f"{asked.name}__{digest_of([where])}"
    values = {
        "seed": 0,
        "model": asked.name,
        "base": {"family": config_of(asked).model_type, "source": source},
        "answering": _ANSWERING,
        "vision": vision_of(asked),
        "runtime": runtime_of(asked),
        "data": FOLDER,
        "output": output,
    }
    run_stage("base", values, STUDY, command, tracked=False)
    return output


def check_values(stage: str, values: dict[str, Any]) -> None:
    """Refuse values of a stage before any stage runs.

    Raises:
        ConfigError: a value is out of its range.
    """
    validated(stage_module(stage).Parameters, values)

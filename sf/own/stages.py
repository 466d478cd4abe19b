"""Stage values shared by evaluation and training of a user's model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.jobs import run_stage, stage_module
from sf.result_key.contents import digest_of
from sf.validation import validated

if TYPE_CHECKING:
    from sf.own.options import Inputs

__all__ = ["FOLDER", "STUDY", "base_of", "check_values", "config_of", "runtime_of", "vision_of"]

STUDY = "own"
FOLDER = Path("results/own")
_ANSWERING = {
    "prompt_template": "answer",
    "max_completion_tokens": 64,
    "correctness_cutoff": 0.5,
}


def vision_of(inputs: Inputs) -> dict[str, Any]:
    """Pixel and frame bounds: those of `sf ask`.

    Raises:
        ConfigError: a value is out of range.
    """
    from sf.ask.media import bounds

    kinds = {
        kind: bounds(kind, inputs.max_pixels, inputs.max_frames, inputs.fps).model_dump()
        for kind in ("image", "video")
    }
    return {name: kinds[name.partition("_")[0]][name] for name in kinds["image"]}


def runtime_of(inputs: Inputs) -> dict[str, Any]:
    """Device and dtype.

    Raises:
        ConfigError, EnvironmentFault: see `sf.ask.pick_runtime`.
    """
    from sf.ask import pick_runtime

    return pick_runtime(inputs.device, inputs.dtype).model_dump()


def config_of(inputs: Inputs) -> Any:
    """The checkpoint's configuration.

    Raises:
        DataError, UnsupportedModelError, EnvironmentFault: see `sf.models.load.load_config`.
    """
    from sf.models.load import load_config

    local = Path(inputs.model).is_dir()
    return load_config(Path(inputs.model) if local else inputs.model, inputs.revision)


def base_of(inputs: Inputs, command: str) -> Path:
    """The checkpoint as a result of the stage `base`; files are linked, not copied.

    Raises:
        DataError, UnsupportedModelError, EnvironmentFault: see `config_of` and
            `sf.models.fetch.fetch_checkpoint`.
    """
    local = Path(inputs.model).is_dir()
    source = inputs.model if local else f"hub:{inputs.model}@{inputs.revision or 'main'}"
    where = os.path.realpath(inputs.model) if local else source
    output = FOLDER / "base" / f"{inputs.name}__{digest_of([where])}"
    values = {
        "seed": 0,
        "model": inputs.name,
        "base": {"family": config_of(inputs).model_type, "source": source},
        "answering": _ANSWERING,
        "vision": vision_of(inputs),
        "runtime": runtime_of(inputs),
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

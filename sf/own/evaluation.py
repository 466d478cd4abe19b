"""`sf evaluate`: a user's questions under full attention and other methods."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.jobs import run_stage
from sf.own.stages import (
    FOLDER,
    STUDY,
    base_of,
    check_values,
    config_of,
    runtime_of,
    vision_of,
)
from sf.result_key.contents import digest_of

if TYPE_CHECKING:
    from sf.own.options import Comparison, Inputs

__all__ = ["evaluate", "question_values"]


def evaluate(
    inputs: Inputs, comparison: Comparison, *, output: Path | None = None, command: str = ""
) -> Path:
    """Answer the questions under full attention and other methods.

    Args:
        inputs: model and questions.
        comparison: methods; by default the one that the checkpoint was trained with, else ZipVL.
        output: result folder; by default a new folder in `results/own/evaluate`.
        command: the command line, for the record.

    Returns:
        The folder with `index.html` and `tables/`.

    Raises:
        SparsityForcingError: raised before any work if possible.
    """
    inputs.check()
    values = question_values(inputs, comparison, config_of(inputs))
    digest = digest_of([values, os.path.realpath(inputs.model), inputs.questions.absolute()])[:8]
    folder = output or FOLDER / "evaluate" / f"{inputs.name}__{digest}"
    check_values("questions", {**values, "checkpoint": inputs.model, "output": folder})
    values |= {"checkpoint": base_of(inputs, command), "output": folder}
    run_stage("questions", values, STUDY, command, tracked=False)
    return folder


def question_values(inputs: Inputs, comparison: Comparison, source: Any) -> dict[str, Any]:
    """The values of the stage `questions`, except `checkpoint` and `output`.

    Args:
        inputs: model and questions.
        comparison: methods.
        source: the checkpoint's folder, or its configuration.

    Raises:
        ConfigError, UnsupportedModelError: see `sf.evaluation.own_questions.settings_of`.
    """
    from sf.evaluation.own_questions import settings_of

    settings = settings_of(source, comparison.methods or (), comparison.retention_p or ())
    return {
        "model": inputs.name,
        "settings": [setting.model_dump() for setting in settings],
        "seed": comparison.seed,
        "batch": comparison.batch,
        "max_new_tokens": comparison.max_new_tokens,
        "prompt_template": comparison.prompt,
        "correctness_cutoff": comparison.cutoff,
        "max_reject_share": inputs.max_reject_share,
        "pictures": comparison.pictures,
        "vision": vision_of(inputs),
        "runtime": runtime_of(inputs),
        "questions": inputs.questions,
        "media": inputs.media_folder,
    }

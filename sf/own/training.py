"""`sf train`: train a checkpoint on a user's questions towards a target token ratio.

The stages are those of a study: `base`, `prepare` and `train` with the objective that has a target
ratio, then `questions` on held-out rows for the model before and after training.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sf.errors import ConfigError, DataError
from sf.jobs import run_stage
from sf.own.evaluation import question_values
from sf.own.options import Comparison, Inputs, Recipe
from sf.own.stages import FOLDER, STUDY, base_of, check_values, runtime_of, vision_of
from sf.published import INFERENCE_RETENTION_P
from sf.result_key.contents import digest_of

__all__ = ["Trained", "train"]

MEASURED_RETENTION_P = (0.8, 0.9, 0.95, 0.975)
HELDOUT_SHARE, CALIBRATION_SHARE = 0.2, 0.05
MOST_HELDOUT, MOST_CALIBRATION = 400, 200


@dataclass(frozen=True)
class Trained:
    """The result folders.

    Attributes:
        checkpoint: a plain transformers checkpoint with `sparsity.json` and a model card.
        before, after: `sf evaluate`'s results on held-out questions.
    """

    checkpoint: Path
    before: Path
    after: Path


def objective_with(token_ratio: float) -> dict[str, Any]:
    """The settings of the objective that has a target ratio.

    Raises:
        ConfigError: the ratio is not inside (0, 1).
    """
    if not 0.0 < token_ratio < 1.0:
        rule, remedy = "must be a share of the tokens in (0, 1)", "use 0.25"
        raise ConfigError("target-token-ratio", token_ratio, rule, remedy)
    return {
        "objective": "distil",
        "group_size": 1,
        "rollout_selector": "top_p",
        "retention_p": [INFERENCE_RETENTION_P],
        "target_token_ratio": token_ratio,
        "hidden_weight": 0.3,
        "sparsity_weight": 1.0,
        "sparsity_measure": "tail",
        "dual_rate": 0.0,
    }


def train(
    inputs: Inputs, recipe: Recipe, *, output: Path | None = None, command: str = ""
) -> Trained:
    """Train a checkpoint on questions and measure it on held-out ones.

    A fifth of the images and videos is held out, by a hash of their bytes. The same call
    continues from the last complete training checkpoint.

    Args:
        inputs: model and questions.
        recipe: training settings.
        output: folder of all results; by default a new folder in `results/own/train`.
        command: the command line, for the record.

    Raises:
        SparsityForcingError: raised before any work if possible; TrainingCollapse.
    """
    inputs.check()
    objective = objective_with(recipe.target_token_ratio)
    runtime = runtime_of(inputs)
    training = {
        "model": inputs.name,
        "row": objective["objective"],
        "seed": recipe.seed,
        "objective": objective,
        "train": _settings(recipe, on_gpu=runtime["device"] == "cuda"),
        "answering": {
            "prompt_template": "answer",
            "max_completion_tokens": recipe.max_new_tokens,
            "correctness_cutoff": recipe.cutoff,
        },
        "vision": vision_of(inputs),
        "runtime": runtime,
    }
    rows = {
        "seed": recipe.seed,
        "prepare": _prepare(inputs),
        "vision": training["vision"],
        "evaluation_vision": training["vision"],
    }
    where = [os.path.realpath(inputs.model), str(inputs.questions.absolute())]
    folder = output or FOLDER / "train" / f"{inputs.name}__{digest_of([training, rows, where])[:8]}"
    data, checkpoint = folder / "data", folder / "model"
    check_values("train", {**training, "base": folder, "data": data, "output": checkpoint})
    check_values("prepare", {**rows, "output": data})
    base = base_of(inputs, command)
    run_stage("prepare", {**rows, "output": data}, STUDY, command, tracked=False)
    _check_sides(data)
    values = {**training, "base": base, "data": data, "output": checkpoint}
    run_stage("train", values, STUDY, command, tracked=False)
    before, after = (
        _measure(inputs, recipe, model, data, folder / name, command)
        for name, model in (("before", base), ("after", checkpoint))
    )
    return Trained(checkpoint, before, after)


def _settings(recipe: Recipe, on_gpu: bool) -> dict[str, Any]:
    """The section `train`; all prompts request a bare answer, as in `sf evaluate`."""
    patience = max(10, recipe.steps // 5)
    collapse = {"patience": patience, "accuracy": 0.5, "token_ratio": 0.0, "entropy": 0.02}
    return {
        "short_share": 1.0,
        "steps": recipe.steps,
        "questions_per_step": recipe.questions_per_step,
        "learning_rate": recipe.learning_rate,
        "lr_schedule": "cosine",
        "weight_decay": 0.01,
        "max_grad_norm": 5.0,
        "train_vision": False,
        "sharding": "none",
        "lora": {"rank": recipe.lora_rank, "alpha": 2 * recipe.lora_rank}
        if recipe.lora_rank
        else None,
        "collapse": collapse if recipe.steps >= 2 * patience else None,
        "rollouts_per_forward": recipe.rollouts_per_forward,
        "gradient_checkpointing": on_gpu,
        "save_every": recipe.save_every,
        "log_every": 1,
    }


def _prepare(inputs: Inputs) -> dict[str, Any]:
    return {
        "source": str(inputs.questions),
        "media": str(inputs.media_folder),
        "calibration_share": CALIBRATION_SHARE,
        "heldout_share": HELDOUT_SHARE,
        "calibration_rows": MOST_CALIBRATION,
        "heldout_rows": MOST_HELDOUT,
        "max_reject_share": inputs.max_reject_share,
    }


def _check_sides(data: Path) -> None:
    """Check that both sides of the split have questions.

    Raises:
        DataError: nothing to train on, or nothing to measure on.
    """
    from sf.data.manifest import read_manifest

    counts = {side: len(read_manifest(data / f"{side}.parquet")) for side in ("train", "heldout")}
    for side, count in counts.items():
        if not count:
            rule = f"no question is on the side {side!r}: questions on the same media stay together"
            remedy = "give questions about more images or videos: a fifth of these is held out"
            raise DataError("questions", count, rule, remedy)


def _measure(
    inputs: Inputs, recipe: Recipe, checkpoint: Path, data: Path, output: Path, command: str
) -> Path:
    """The held-out questions under full attention and at several thresholds."""
    heldout = replace(
        inputs,
        questions=data / "heldout.parquet",
        media=inputs.media_folder,
        max_reject_share=0.0,
    )
    comparison = Comparison(
        retention_p=list(MEASURED_RETENTION_P),
        methods=["zipvl"],
        batch=recipe.rollouts_per_forward,
        max_new_tokens=recipe.max_new_tokens,
        cutoff=recipe.cutoff,
        pictures=0,
        seed=recipe.seed,
    )
    values = question_values(heldout, comparison, checkpoint)
    values |= {"checkpoint": checkpoint, "output": output}
    run_stage("questions", values, STUDY, command, tracked=False)
    return output

"""The paper's settings in TRL's terms.

TRL's defaults differ from the paper (arXiv 2504.18579) in `beta` (0), `loss_type` ("dapo") and
`use_bias_correction_kl` (True). Values that neither version of the paper states are marked
"assumed" in the parameter files.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from sf import ranks
from sf.errors import ConfigError
from sf.extras import extra
from sf.training.collapse import kept_checkpoints
from sf.training.parameters import RunParameters
from sf.training.trainer_config import Grpo

with extra("train"):
    from trl import GRPOConfig

__all__ = ["common_arguments", "grpo_config", "micro_batch", "sft_arguments"]


def micro_batch(p: RunParameters, world_size: int) -> tuple[int, int]:
    """(rollouts in one forward on one rank, forwards in one optimiser step).

    Args:
        p: the parameters.
        world_size: ranks.

    Raises:
        ConfigError: the step's rollouts do not divide over the ranks.
    """
    group_size = p.objective.group_size
    rollouts = p.train.questions_per_step * group_size
    if rollouts % world_size:
        raise ConfigError(
            "train.questions_per_step",
            p.train.questions_per_step,
            f"times {group_size} rollouts must divide over {world_size} ranks",
            "change questions_per_step or the number of ranks",
        )
    local = rollouts // world_size
    forwards = math.ceil(local / min(p.train.rollouts_per_forward, local))
    while local % forwards:
        forwards += 1
    return local // forwards, forwards


def grpo_config(p: RunParameters, folder: Path, world_size: int | None = None) -> GRPOConfig:
    """TRL's configuration.

    Args:
        p: the stage's parameters.
        folder: where checkpoints go.
        world_size: ranks; by default what the launcher says.

    Raises:
        ConfigError: see `micro_batch`.
    """
    grpo = p.objective
    assert isinstance(grpo, Grpo)
    paper: dict[str, Any] = {
        "loss_type": "grpo",
        "use_bias_correction_kl": False,
        "scale_rewards": "group",
        "num_iterations": 1,
        "importance_sampling_level": "token",
        "num_generations": grpo.group_size,
        "beta": grpo.beta,
        "epsilon": grpo.clip_epsilon,
    }
    common = common_arguments(p, folder, world_size)
    return GRPOConfig(
        **common,
        **paper,
        steps_per_generation=common["gradient_accumulation_steps"],
        temperature=grpo.temperature,
        top_p=grpo.sampling_top_p,
        max_completion_length=p.answering.max_completion_tokens,
        shuffle_dataset=False,  # the data set is laid out in its order of use
    )


def sft_arguments(
    p: RunParameters, folder: Path, world_size: int | None = None
) -> TrainingArguments:
    """transformers' configuration for the supervised objectives.

    Args:
        p, folder, world_size: as in `grpo_config`.

    Raises:
        ConfigError: see `micro_batch`.
    """
    return TrainingArguments(
        **common_arguments(p, folder, world_size),
        train_sampling_strategy="sequential",  # the data set is laid out in its order of use
    )


def common_arguments(p: RunParameters, folder: Path, world_size: int | None) -> dict[str, Any]:
    """Settings shared by all objectives: steps, batch, optimiser, precision, checkpoints, logging.

    Raises:
        ConfigError: see `micro_batch`.
    """
    size, forwards = micro_batch(p, ranks.world_size() if world_size is None else world_size)
    t, device = p.train, p.runtime.device
    return {
        "output_dir": str(folder),
        "max_steps": t.steps,
        "per_device_train_batch_size": size,
        "gradient_accumulation_steps": forwards,
        "learning_rate": t.learning_rate,
        "lr_scheduler_type": t.lr_schedule,
        "weight_decay": t.weight_decay,
        "max_grad_norm": t.max_grad_norm,
        "gradient_checkpointing": t.gradient_checkpointing,
        "bf16": p.runtime.dtype == "bfloat16",
        "fp16": False,
        "use_cpu": device == "cpu",
        "seed": p.seed,
        "save_strategy": "steps",
        "save_steps": t.save_every,
        "save_total_limit": kept_checkpoints(p),
        "logging_steps": t.log_every,
        "logging_nan_inf_filter": False,
        "report_to": [],
        "disable_tqdm": True,
        # A sharded gradient is divided after each micro-batch: whole, it may not fit.
        "accelerator_config": {
            "gradient_accumulation_kwargs": {"sync_each_batch": t.sharding == "fsdp"}
        },
        "dataloader_pin_memory": device != "cpu",
        "remove_unused_columns": False,
    }

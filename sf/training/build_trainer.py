"""The trainer of a run: the model as it is trained, and the class and settings of its objective."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback

from sf.attention.blocks import Replacement
from sf.attention.trained import TrainedAttention, note_trained, trained_attention
from sf.errors import ConfigError
from sf.extras import extra
from sf.ranks import world_size
from sf.training.answers import answer_set
from sf.training.backbone import vision_parts
from sf.training.dataset import training_set
from sf.training.distil import DistilTrainer
from sf.training.encoding import Encoder
from sf.training.objectives import Distil, Pathwise, Sharpness, block_attention
from sf.training.parameters import RunParameters
from sf.training.resumable_trainer import ResumableTrainer
from sf.training.retention_schedule import RetentionSchedule
from sf.training.rewards import GroupReward
from sf.training.settings import grpo_config, sft_arguments
from sf.training.sft import SparseSFTTrainer
from sf.training.sharpness import KINDS
from sf.training.sparsity_weight import LaggedWeight, PathwiseWeight
from sf.training.teacher import Teacher
from sf.training.trainer import SparsityForcingTrainer
from sf.training.trainer_config import Grpo

if TYPE_CHECKING:
    pass

__all__ = [
    *("check_sharding", "check_trained_tower", "has_reference", "prepare_model"),
    *("trained_attention_of", "trainer_of", "weight_of"),
]


def weight_of(p: RunParameters) -> LaggedWeight | PathwiseWeight | None:
    """The weight of the objective's sparsity term."""
    if isinstance(p.objective, Pathwise):
        return PathwiseWeight.of(p)
    return LaggedWeight.of(p) if isinstance(p.objective, Distil) else None


def trainer_of(
    p: RunParameters,
    base: Path,
    model: Any,
    replacement: Replacement | None,
    processor: Any,
    encoder: Encoder,
    checkpoints: Path,
    weight: LaggedWeight | PathwiseWeight | None,
    **common: Any,
) -> ResumableTrainer:
    """The objective's trainer.

    Args:
        p: parameters.
        base: the initial model, which is also the reference.
        model: from `prepare_model`, divided over the ranks if it is to be.
        replacement: from `prepare_model`.
        processor: of the model.
        encoder: of the training rows.
        checkpoints: folder for checkpoints.
        weight: from `weight_of`.
        common: arguments of all trainers.
    """
    trainer: ResumableTrainer
    if isinstance(p.objective, Grpo):
        trainer = _grpo(p, model, processor, encoder, checkpoints, pathwise=weight, **common)
    else:
        if isinstance(weight, LaggedWeight):
            common |= {"teacher": Teacher.of(p, base, model), "weight": weight}
        else:
            common["replacement"] = replacement
        trainer = _sft(p, model, processor, encoder, checkpoints, **common)
    trainer.remove_callback(PrinterCallback)
    return trainer


def prepare_model(p: RunParameters, model: Any) -> tuple[Any, Replacement | None]:
    """Prepare a base model for training: the objective's attention, a frozen tower, adapters.

    Returns:
        the model, with adapters if configured, and the open attention that replaces its own.

    Raises:
        ConfigError: the base checkpoint was trained with another attention, or adapters do not fit.
    """
    replacement = _replaced(p, model)
    for part in vision_parts(model).values():
        part.requires_grad_(p.train.train_vision)
    return _with_adapters(p, model), replacement


def _grpo(
    p: RunParameters, model: Any, processor: Any, encoder: Encoder, folder: Path, **common: Any
) -> SparsityForcingTrainer:
    """The trainer of objectives that sample and reward answers."""
    grpo = p.objective
    assert isinstance(grpo, Grpo)
    count = p.train.steps * p.train.questions_per_step
    return SparsityForcingTrainer(
        model,
        processor,
        grpo_config(p, folder),
        training_set(encoder.rows, count, p.seed, encoder.templates),
        encoder,
        RetentionSchedule.of(p),
        GroupReward(
            grpo.group_size,
            p.answering.correctness_cutoff,
            grpo.reward_gate,
            grpo.reward_correctness == "fractional",
            grpo.reward_latency_weight,
        ),
        **common,
    )


def _sft(
    p: RunParameters, model: Any, processor: Any, encoder: Encoder, folder: Path, **common: Any
) -> SparseSFTTrainer:
    """The trainer of objectives that learn the dataset's answers, or a teacher's distributions."""
    kind: type[SparseSFTTrainer] = SparseSFTTrainer
    if isinstance(p.objective, Distil):
        kind, common["settings"] = DistilTrainer, p.objective
    if isinstance(p.objective, Sharpness):
        common["sharpness_weight"] = p.objective.weight
        common["measure"] = KINDS[p.objective.kind]
    count = p.train.steps * p.train.questions_per_step
    return kind(
        model,
        processor,
        sft_arguments(p, folder),
        answer_set(encoder.rows, count, p.seed, p.objective.group_size),
        encoder,
        RetentionSchedule.of(p),
        **common,
    )


def _with_adapters(p: RunParameters, model: Any) -> Any:
    """Low-rank adapters on the decoder's linear layers, if configured.

    Raises:
        ConfigError: with an objective that trains weights of its own, or with the vision tower.
    """
    lora = p.train.lora
    if lora is None:
        return model
    if block_attention(p.objective) is not None or p.train.train_vision:
        rule = "adapters are trained on the decoder of the model as it is"
        remedy = "leave it out, or choose another objective and train_vision: false"
        raise ConfigError("train.lora.rank", lora.rank, rule, remedy)
    with extra("train"):
        from peft import LoraConfig, get_peft_model

    torch.manual_seed(p.seed)
    return get_peft_model(
        model,
        LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=r".*language_model.*\.(q|k|v|o|gate|up|down)_proj",
            task_type="CAUSAL_LM",
        ),
    )


def has_reference(p: RunParameters) -> bool:
    """Whether training needs a second, frozen model."""
    grpo = p.objective
    compared = grpo.beta > 0 if isinstance(grpo, Grpo) else isinstance(grpo, Distil)
    return compared and not p.train.lora


def check_sharding(p: RunParameters, ranks: int) -> None:
    """
    Raises:
        ConfigError: weights cannot be sharded over this number of ranks.
    """
    if p.train.sharding == "none":
        return
    rule, remedy = "", "set it to none"
    if ranks == 1:
        rule = "divides weights over several processes, and there is one"
        remedy += ", or raise gpus of the resources of train"
    elif p.train.lora:
        rule, remedy = "has little to divide with adapters", remedy + " or leave out lora"
    elif p.train.train_vision:
        rule = "needs a frozen vision tower: ranks run it at different times"
        remedy += " or train_vision to false"
    if rule:
        raise ConfigError("train.sharding", p.train.sharding, rule, remedy)


def check_trained_tower(p: RunParameters, model: Any) -> None:
    """
    Raises:
        ConfigError: data parallelism would fail on parts of the tower that have no gradient.
    """
    unread = model.config.model_type.startswith("llava")  # what follows the layer that is read
    if unread and p.train.train_vision and p.train.gradient_checkpointing and world_size() > 1:
        rule = "with a trained LLaVA tower needs one process: parts of the tower have no gradient"
        remedy = "set it to false, or train_vision to false"
        raise ConfigError("train.gradient_checkpointing", True, rule, remedy)


def _replaced(p: RunParameters, model: Any) -> Replacement | None:
    """The objective's own attention, in the model for as long as it lives."""
    attention, before = block_attention(p.objective), trained_attention(model.config)
    if attention is None and before is not None:
        rule = f"the base checkpoint was trained with {type(before).__name__}"
        remedy = "train the objective of the base checkpoint, or start from one before it"
        raise ConfigError("objective", p.objective.objective, rule, remedy)
    if attention is None:
        return None
    torch.manual_seed(p.seed)
    note_trained(model, attention)
    replacement = Replacement(model, attention)
    replacement.open()
    return replacement


def trained_attention_of(p: RunParameters) -> TrainedAttention:
    """The attention of the trained model."""
    attention = block_attention(p.objective)
    if attention is not None:
        return TrainedAttention.of(attention)
    schedule = RetentionSchedule.of(p)
    return TrainedAttention(schedule.method, schedule.inference)

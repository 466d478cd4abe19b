"""A whole training run: assemble, resume, train, save."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback

from sf.attention.blocks import Replacement
from sf.attention.ratio_curve import drop_curve
from sf.attention.trained import TrainedAttention, note_trained, trained_attention, write_sparsity
from sf.errors import ConfigError
from sf.extras import extra
from sf.fields import flat
from sf.interruption import JobInterrupted
from sf.models import load_model, load_processor
from sf.progress import progress, without_tensor_bars
from sf.ranks import agreed, rank, world_size
from sf.training.answers import answer_set
from sf.training.backbone import vision_parts
from sf.training.card import usage_of, write_card
from sf.training.checkpoints import SealCheckpoints, check_disk, last_sealed
from sf.training.collapse import CollapseWatch, kept_checkpoints
from sf.training.cost import CostEstimate, RankMemory
from sf.training.dataset import rows_of_sources, templates_of, training_set
from sf.training.distil import DistilTrainer
from sf.training.encoding import Encoder
from sf.training.monitor import FiniteGradients, Monitor
from sf.training.objectives import Distil, Pathwise, Sharpness, block_attention
from sf.training.parameters import RunParameters
from sf.training.records import SampleTable
from sf.training.resource_errors import clear_faults
from sf.training.resumable_trainer import ResumableTrainer
from sf.training.retention_schedule import RetentionSchedule
from sf.training.rewards import GroupReward
from sf.training.settings import grpo_config, sft_arguments
from sf.training.sft import SparseSFTTrainer
from sf.training.sharding import shard
from sf.training.sharpness import KINDS
from sf.training.sparsity_weight import LaggedWeight, PathwiseWeight
from sf.training.teacher import Teacher
from sf.training.time_limit import TimeLimit
from sf.training.trainer import SparsityForcingTrainer
from sf.training.trainer_config import Grpo

if TYPE_CHECKING:
    from sf.data.manifest import Row

__all__ = [
    *("Training", "assemble", "check_sharding", "has_reference", "prepare_model", "train"),
    "trained_attention_of",
]


@dataclass
class Training:
    """The parts of a run.

    Attributes:
        trainer: ready to train.
        processor: of the model.
        monitor: holds the latest figures.
        sealing: saves and restores state that transformers does not save.
        time_limit: stops the loop before the job ends.
        checkpoints: folder of the checkpoints.
    """

    trainer: ResumableTrainer
    processor: Any
    monitor: Monitor
    sealing: SealCheckpoints
    time_limit: TimeLimit
    checkpoints: Path


def assemble(
    p: RunParameters,
    base: Path,
    rows: Sequence[Row],
    checkpoints: Path,
    tracker: Any,
    counter: Any,
    samples: SampleTable | None = None,
) -> Training:
    """Build the trainer.

    Args:
        p: parameters.
        base: the initial model, which is also the reference.
        rows: the train manifest, of which `train.data_sources` are used.
        checkpoints: folder for checkpoints, on a disk with enough space.
        tracker: `log(step, values)`.
        counter: progress counter.
        samples: takes sample answers.

    Raises:
        EnvironmentFault: not enough space for the checkpoints.
        ConfigError: the rollouts or the weights do not divide over the ranks, or there is no row of
            a data source.
    """
    check_sharding(p, world_size())
    rows = rows_of_sources(rows, p.train.data_sources)
    checkpoints.mkdir(parents=True, exist_ok=True)
    # The weights stay float32 for any dtype of the computation: steps of 1e-6 vanish in bfloat16.
    model = load_model(base, device=p.runtime.device)
    _check_trained_tower(p, model)
    processor = load_processor(base)
    model, replacement = prepare_model(p, model)
    trained = sum(w.numel() for w in model.parameters() if w.requires_grad)
    size = check_disk(checkpoints, model.num_parameters(), trained, kept_checkpoints(p))
    sampled = isinstance(p.objective, Grpo)
    memory = RankMemory.of(p, model, world_size(), has_reference(p))
    unit = "rollouts" if sampled else "thresholds"
    cost = CostEstimate(p, size, kept_checkpoints(p), unit, memory)
    if rank() == 0:
        print(cost.before(checkpoints), file=sys.stderr)
    if p.train.sharding == "fsdp":
        shard(model, p.runtime.device, p.runtime.dtype)
    encoder = Encoder(
        model,
        processor,
        rows,
        p.vision,
        templates=templates_of(len(rows), p.answering.prompt_template, p.train.short_share, p.seed),
        frozen_tower=not p.train.train_vision,
    )
    monitor, watch = Monitor(tracker, counter, cost), CollapseWatch(p)
    weight = weight_of(p)
    sealing = SealCheckpoints({"collapse": watch} | ({"pathwise": weight} if weight else {}))
    time_limit = TimeLimit()
    trainer = trainer_of(
        p, base, model, replacement, processor, encoder, checkpoints, weight,
        samples=samples.add if samples else None,
        callbacks=[cost, monitor, watch, sealing, FiniteGradients(), time_limit],
    )  # fmt: skip
    return Training(trainer, processor, monitor, sealing, time_limit, checkpoints)


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


def _check_trained_tower(p: RunParameters, model: Any) -> None:
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


@without_tensor_bars()
def train(
    p: RunParameters,
    base: Path,
    rows: Sequence[Row],
    checkpoints: Path,
    out: Path,
    tracker: Any,
    provenance: dict[str, Any],
) -> dict[str, float]:
    """Train, from the last complete checkpoint if there is one, and save a plain checkpoint.

    Args:
        p: parameters.
        base: the initial model.
        rows: the train manifest.
        checkpoints: folder for checkpoints, from which a killed run continues.
        out: folder of the trained model.
        tracker: `log(step, values)`.
        provenance: plain values for `sparsity.json` and the model card.

    Returns:
        the last metrics.

    Raises:
        TrainingCollapse: the loss or a gradient is not finite, or a metric collapsed
            (`sf.training.collapse`).
        EnvironmentFault: not enough disk space or memory.
        JobInterrupted: the job is about to end; a checkpoint of the last step is written.
    """
    checkpoints.mkdir(parents=True, exist_ok=True)
    # One rank checks, since it also removes damaged checkpoints.
    resumed = agreed(last_sealed(checkpoints) if rank() == 0 else None)
    done = int(resumed.name.rpartition("-")[2]) if resumed else 0
    with progress("train", p.train.steps, done) as counter:
        samples = SampleTable(out / "tables" / "completions.csv", done)
        training = assemble(p, base, rows, checkpoints, tracker, counter, samples)
        if resumed is not None:
            training.sealing.restore(resumed)
        with clear_faults(training.trainer, checkpoints):
            training.trainer.train(resume_from_checkpoint=str(resumed) if resumed else None)
    if training.time_limit.cause is not None:
        step = training.trainer.state.global_step
        raise JobInterrupted(training.time_limit.cause, f"after step {step} of {p.train.steps}")
    figures = _last_figures(training)
    weights = training.trainer.whole_weights()
    if training.trainer.is_world_process_zero():
        save(training, out, p, provenance, figures, weights)
    return figures


def save(
    training: Training,
    out: Path,
    p: RunParameters,
    provenance: dict[str, Any],
    figures: dict[str, float],
    weights: dict[str, Any] | None = None,
) -> None:
    """Write model, processor, `sparsity.json` and the model card to `out`.

    Args:
        training: the finished run.
        out: target folder.
        p: parameters.
        provenance: plain values.
        figures: for the card.
        weights: the gathered weights of a sharded model.
    """
    trainer = training.trainer
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    whole = model.merge_and_unload() if p.train.lora else model
    record = trained_attention_of(p)
    if record.block is None:
        note_trained(whole, record)
    drop_curve(whole)  # the base model's, if it had one
    whole.save_pretrained(out, state_dict=weights)
    training.processor.save_pretrained(out)
    write_sparsity(out, record, provenance)
    title = f"{p.model} after {p.row}"
    write_card(out, title, p.objective.about, flat(provenance), figures, usage_of(record))


def trained_attention_of(p: RunParameters) -> TrainedAttention:
    """The attention of the trained model."""
    attention = block_attention(p.objective)
    if attention is not None:
        return TrainedAttention.of(attention)
    schedule = RetentionSchedule.of(p)
    return TrainedAttention(schedule.method, schedule.inference)


def _last_figures(training: Training) -> dict[str, float]:
    """The latest figures; after a kill behind the last step, those of the checkpoint."""
    if training.monitor.latest:
        return training.monitor.latest
    history = [entry for entry in training.trainer.state.log_history if "loss" in entry]
    return Monitor.figures(history[-1]) if history else {}

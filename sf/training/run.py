"""A whole training run: assemble, resume, train, save."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.attention.ratio_curve import drop_curve
from sf.attention.trained import note_trained, write_sparsity
from sf.fields import flat
from sf.interruption import JobInterrupted
from sf.models import load_model, load_processor
from sf.progress import progress, without_tensor_bars
from sf.ranks import agreed, rank, world_size
from sf.training.build_trainer import (
    check_sharding,
    check_trained_tower,
    has_reference,
    prepare_model,
    trained_attention_of,
    trainer_of,
    weight_of,
)
from sf.training.card import usage_of, write_card
from sf.training.checkpoints import SealCheckpoints, check_disk, last_sealed
from sf.training.collapse import CollapseWatch, kept_checkpoints
from sf.training.cost import CostEstimate, RankMemory
from sf.training.dataset import rows_of_sources, templates_of
from sf.training.encoding import Encoder
from sf.training.monitor import FiniteGradients, Monitor
from sf.training.parameters import RunParameters
from sf.training.records import SampleTable
from sf.training.resource_errors import clear_faults
from sf.training.resumable_trainer import ResumableTrainer
from sf.training.sharding import shard
from sf.training.time_limit import TimeLimit
from sf.training.trainer_config import Grpo

if TYPE_CHECKING:
    from sf.data.manifest import Row

__all__ = ["Training", "assemble", "train"]


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
    check_trained_tower(p, model)
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


def _last_figures(training: Training) -> dict[str, float]:
    """The latest figures; after a kill behind the last step, those of the checkpoint."""
    if training.monitor.latest:
        return training.monitor.latest
    history = [entry for entry in training.trainer.state.log_history if "loss" in entry]
    return Monitor.figures(history[-1]) if history else {}

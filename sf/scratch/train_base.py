"""A tiny base model from scratch: tokenizer, vision tower, language model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sf.data.manifest import read_manifest
from sf.data.prompts import question_text
from sf.mini.grid_labels import WORDS
from sf.mini.question_templates import sample_questions, sample_subject
from sf.mini.rows import WorldSize
from sf.mini.training_examples import CURRICULUM, benchmark_examples, prompt_of, row_examples
from sf.models.tiny import build_tiny
from sf.progress import without_tensor_bars
from sf.scratch.curriculum import Curriculum, world_media
from sf.scratch.partial_state import read_state, write_state
from sf.scratch.tower_pretraining import pretrain_tower
from sf.scratch.training_loop import Tokens, TrainingSchedule, train_from_scratch

if TYPE_CHECKING:
    from sf.data.manifest import Row
    from sf.jobs import Job
    from sf.mini.benchmarks import Example
    from sf.scratch.config import BaseModelParameters
    from sf.sections import Scratch

__all__ = ["corpus", "train_base"]

_EXAMPLE_SEED = 10_007
"""Added to the study's seed, so that training scenes and examples differ from evaluated ones."""
_CORPUS_SUBJECTS = 400


def corpus(rows: Iterable[Row], examples: Iterable[Example], seed: int, template: Any) -> list[str]:
    """Texts for the tokenizer: prompts and replies of rows, benchmarks and scenes, and words."""
    rng = np.random.default_rng([seed, 4])
    texts = [f"{word} {word}\n{word}" for word in WORDS for _ in range(3)]
    for row in rows:
        texts += [question_text(row, template), row.solution]
    for example in examples:
        texts += [example.prompt, example.target]
    for index in range(_CORPUS_SUBJECTS):
        data_type = ("image", "video")[index % 2]
        subject = sample_subject(rng, data_type)
        for row_question in sample_questions(subject, rng, 6):
            texts += [prompt_of(row_question, data_type, template), row_question.solution]
    return texts + ["<|im_start|>user\nassistant\nsystem\nYou are a helpful assistant."] * 3


def _examples(number: int, seed: int, folder: Path) -> list[Example]:
    if number == 0:
        return []
    from sf.evaluation.benchmarks import BENCHMARKS
    from sf.mini.benchmarks import training_examples

    return training_examples(BENCHMARKS, number, seed, folder)


@without_tensor_bars()
def train_base(p: BaseModelParameters, training: Scratch, job: Job) -> None:
    """Train a tiny model of the family and save it with its processor into `job.out`.

    The tower is saved after its pretraining; the language model's training resumes from its last
    checkpoint. Everything else is a function of the parameters and is recomputed after a kill.

    Args:
        p: the stage's parameters.
        training: the section `scratch` of these parameters.
        job: folders and tracker.

    Raises:
        DataError: no manifests.
    """
    job.state.mkdir(parents=True, exist_ok=True)
    rows = read_manifest(p.data / "train.parquet")
    template, vision, fresh_seed = p.answering.prompt_template, p.vision, p.seed + _EXAMPLE_SEED
    examples = _examples(training.examples, fresh_seed, job.state / "examples")
    texts = corpus(rows, examples, p.seed, template)
    model, processor = build_tiny(p.base.family, texts, p.seed)
    size = WorldSize.within(vision)
    tower = job.state / "tower.pt"
    _load_or_pretrain_tower(model, processor, training, fresh_seed, size, tower)
    tokens = Tokens(processor.tokenizer)
    curriculum = Curriculum(
        tokens, p.seed, training.steps, training.batch, template, curriculum=CURRICULUM
    )
    world = world_media(fresh_seed, training.media, size)
    curriculum.add("world", world, model, processor, vision)
    curriculum.add("rows", row_examples(rows, vision, template), model, processor, vision)
    if examples:
        curriculum.add("benchmarks", benchmark_examples(examples, vision), model, processor, vision)
    schedule = TrainingSchedule(
        training.steps, training.learning_rate, curriculum.batch_at, job.tracker.log
    )
    train_from_scratch(model, tokens.pad, schedule, job.state / "checkpoint.pt")
    model.requires_grad_(True)
    model.save_pretrained(job.out)
    processor.save_pretrained(job.out)


def _load_or_pretrain_tower(
    model: Any, processor: Any, training: Scratch, seed: int, size: WorldSize, saved: Path
) -> None:
    """Pretrain the tower, or load it if an earlier call has saved it."""
    tower = model.model.visual
    state = read_state(saved)
    if state is not None:
        tower.load_state_dict(state)
        return
    pretrain_tower(
        model,
        processor,
        steps=training.align_steps,
        rate=training.learning_rate,
        seed=seed,
        side=size.side,
        frames=size.frames,
    )
    write_state(saved, tower.state_dict())

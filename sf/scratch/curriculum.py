"""The curriculum of a tiny base model: pools of media and the sampling of each step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sf.data.prompts import Template
from sf.mini.rows import WorldSize
from sf.mini.training_examples import (
    CURRICULUM,
    CurriculumPhase,
    TrainingExample,
    phase_at,
    world_example,
)
from sf.progress import progress
from sf.scratch.sequence_packing import Branch
from sf.scratch.training_loop import Batch, Tokens
from sf.scratch.vision_features import Prefix, make_prefix, media_features

if TYPE_CHECKING:
    from sf.sections import Vision

__all__ = ["Curriculum", "world_media"]

QUESTIONS_PER_MEDIA = 5
_CHUNK = 128
_MOST_DRAWS = 20


@dataclass(frozen=True)
class _PoolEntry:
    example: TrainingExample
    features: Tensor
    prefix_index: int  # its prefix


def world_media(seed: int, count: int, size: WorldSize) -> Iterator[TrainingExample]:
    """`count` new scenes and clips, alternating."""
    rng = np.random.default_rng([seed, 2])
    for index in range(count):
        yield world_example(rng, ("image", "video")[index % 2], size)


@dataclass
class Curriculum:
    """The training batches of all steps.

    Args:
        tokens: tokeniser of prompts and replies.
        seed: for sampling media and questions.
        steps: total number of steps; phases of the curriculum are shares of it.
        questions: questions per step.
        template: prompt template of rows and generated questions.
    """

    tokens: Tokens
    seed: int
    steps: int
    questions: int
    template: Template
    curriculum: Sequence[CurriculumPhase] = CURRICULUM
    _prefixes: list[Prefix] = field(default_factory=list)
    _prefix_index: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _pools: dict[tuple[str, str], list[_PoolEntry]] = field(default_factory=dict)

    def add(
        self,
        source: str,
        examples: Iterable[TrainingExample],
        model: Any,
        processor: Any,
        vision: Vision,
    ) -> None:
        """Add media to the pool of a source.

        Args:
            source: "world", "rows" or "benchmarks".
            examples: media with questions or a subject; read a few at a time, so their pixels need
                not fit in memory together.
            model, processor: for the visual tokens and the prompt prefix.
            vision: pixel and frame bounds.
        """
        stream = iter(examples)
        with progress(f"visual tokens: {source}", 0) as shown:
            while chunk := list(islice(stream, _CHUNK)):
                for example, features in zip(
                    chunk, media_features(model, processor, chunk), strict=True
                ):
                    prefix_index = self._index_of_prefix(example, model, processor, vision)
                    bare = TrainingExample(
                        example.data_type, np.empty(0), None, example.turns, example.subject
                    )
                    pool = self._pools.setdefault((source, example.data_type), [])
                    pool.append(_PoolEntry(bare, features, prefix_index))
                shown.total += len(chunk)
                shown.advance(len(chunk))

    def _index_of_prefix(
        self, example: TrainingExample, model: Any, processor: Any, vision: Vision
    ) -> int:
        """The index of the prefix for this example's kind, size and timing."""
        timing = example.metadata.sampled_fps if example.metadata is not None else None
        key = (example.data_type, example.frames.shape, timing)
        if key not in self._prefix_index:
            self._prefix_index[key] = len(self._prefixes)
            self._prefixes.append(make_prefix(model, processor, example, vision))
        return self._prefix_index[key]

    def _source(self, rng: np.random.Generator, phase: CurriculumPhase, data_type: str) -> str:
        drawn = rng.random()
        if drawn < phase.row_share and ("rows", data_type) in self._pools:
            return "rows"
        drawn -= phase.row_share
        if 0 <= drawn < phase.benchmark_share and ("benchmarks", data_type) in self._pools:
            return "benchmarks"
        return "world"

    def batch_at(self, step: int) -> Batch:
        """Branches, visual tokens and prefix of a step; depends only on the seed and the step."""
        rng = np.random.default_rng([self.seed, 3, step])
        phase = phase_at(step / self.steps, self.curriculum)
        data_type = "video" if rng.random() < phase.video_share else "image"
        pool = self._pools[self._source(rng, phase, data_type), data_type]
        prefix_index = pool[int(rng.integers(len(pool)))].prefix_index
        branches: list[list[Branch]] = []
        features: list[Tensor] = []
        left, draws = self.questions, 0
        while left > 0 and draws < _MOST_DRAWS * self.questions:
            draws += 1
            entry = pool[int(rng.integers(len(pool)))]
            if entry.prefix_index != prefix_index:
                continue
            count = min(left, QUESTIONS_PER_MEDIA)
            turns = entry.example.sample_turns(rng, phase, count, self.template)
            if turns:
                left -= len(turns)
                branches.append([self.tokens.branch(*turn) for turn in turns])
                features.append(entry.features)
        return branches, torch.stack(features), self._prefixes[prefix_index]

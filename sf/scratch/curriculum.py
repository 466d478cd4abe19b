"""The course of a tiny base model: a gallery of media, and which of them each step is about."""

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
from sf.mini.training_examples import CURRICULUM, Chapter, TrainingExample, chapter_at, world_lesson
from sf.progress import progress
from sf.scratch.sequence_packing import Branch
from sf.scratch.training_loop import Batch, Tokens
from sf.scratch.vision_features import Prefix, make_prefix, media_features

if TYPE_CHECKING:
    from sf.config import Vision

__all__ = ["Curriculum", "world_media"]

QUESTIONS_PER_MEDIA = 5
_CHUNK = 128
_MOST_DRAWS = 20


@dataclass(frozen=True)
class _Exhibit:
    lesson: TrainingExample
    features: Tensor
    room: int  # its prefix


def world_media(seed: int, count: int, size: WorldSize) -> Iterator[TrainingExample]:
    """`count` fresh scenes and clips in turn."""
    rng = np.random.default_rng([seed, 2])
    for index in range(count):
        yield world_lesson(rng, ("image", "video")[index % 2], size)


@dataclass
class Curriculum:
    """Lessons for every step.

    Args:
        tokens: tokeniser of prompts and replies.
        seed: of the choice of media and questions.
        steps: how many there are in all; the curriculum is in shares of it.
        questions: questions a step.
        template: prompt template of rows and fresh questions.
    """

    tokens: Tokens
    seed: int
    steps: int
    questions: int
    template: Template
    curriculum: Sequence[Chapter] = CURRICULUM
    _prefixes: list[Prefix] = field(default_factory=list)
    _rooms: dict[tuple[Any, ...], int] = field(default_factory=dict)
    _pools: dict[tuple[str, str], list[_Exhibit]] = field(default_factory=dict)

    def add(
        self,
        source: str,
        lessons: Iterable[TrainingExample],
        model: Any,
        processor: Any,
        vision: Vision,
    ) -> None:
        """Put media into the gallery.

        Args:
            source: "world", "rows" or "benchmarks".
            lessons: media with questions or with a subject; taken a few at a time, so that their
                pixels need not all be in memory.
            model, processor: they give the visual tokens and the prompt prefix.
            vision: pixel and frame bounds.
        """
        stream = iter(lessons)
        with progress(f"gallery: {source}", 0) as shown:
            while chunk := list(islice(stream, _CHUNK)):
                for lesson, features in zip(
                    chunk, media_features(model, processor, chunk), strict=True
                ):
                    room = self._room(lesson, model, processor, vision)
                    bare = TrainingExample(
                        lesson.data_type, np.empty(0), None, lesson.turns, lesson.subject
                    )
                    pool = self._pools.setdefault((source, lesson.data_type), [])
                    pool.append(_Exhibit(bare, features, room))
                shown.total += len(chunk)
                shown.advance(len(chunk))

    def _room(self, lesson: TrainingExample, model: Any, processor: Any, vision: Vision) -> int:
        """The number of the prefix of this lesson's kind, size and timing."""
        timing = lesson.metadata.sampled_fps if lesson.metadata is not None else None
        key = (lesson.data_type, lesson.frames.shape, timing)
        if key not in self._rooms:
            self._rooms[key] = len(self._prefixes)
            self._prefixes.append(make_prefix(model, processor, lesson, vision))
        return self._rooms[key]

    def _source(self, rng: np.random.Generator, chapter: Chapter, data_type: str) -> str:
        drawn = rng.random()
        if drawn < chapter.row_share and ("rows", data_type) in self._pools:
            return "rows"
        drawn -= chapter.row_share
        if 0 <= drawn < chapter.benchmark_share and ("benchmarks", data_type) in self._pools:
            return "benchmarks"
        return "world"

    def batch_at(self, step: int) -> Batch:
        """Branches, visual tokens and prefix of a step, from the seed and the step alone."""
        rng = np.random.default_rng([self.seed, 3, step])
        chapter = chapter_at(step / self.steps, self.curriculum)
        data_type = "video" if rng.random() < chapter.video_share else "image"
        pool = self._pools[self._source(rng, chapter, data_type), data_type]
        room = pool[int(rng.integers(len(pool)))].room
        branches: list[list[Branch]] = []
        features: list[Tensor] = []
        left, draws = self.questions, 0
        while left > 0 and draws < _MOST_DRAWS * self.questions:
            draws += 1
            exhibit = pool[int(rng.integers(len(pool)))]
            if exhibit.room != room:
                continue
            count = min(left, QUESTIONS_PER_MEDIA)
            turns = exhibit.lesson.asked(rng, chapter, count, self.template)
            if turns:
                left -= len(turns)
                branches.append([self.tokens.branch(*turn) for turn in turns])
                features.append(exhibit.features)
        return branches, torch.stack(features), self._prefixes[room]

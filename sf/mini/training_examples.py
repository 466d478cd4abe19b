"""Training examples of a tiny base model: media with questions and answers.

Examples come from three sources: new scenes of the mini world, rows of a manifest, and examples in
the benchmarks' formats. Training progress determines the sources and the kinds of question
(`CURRICULUM`): looking up a single item comes first, because everything else depends on it;
multiple choice follows once the model can answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from sf.data.images import load_image
from sf.data.manifest import Row
from sf.data.prompts import Template, question_text
from sf.data.video import load_video
from sf.mini.drawing import pixels
from sf.mini.question_templates import RowQuestion, sample_questions, sample_subject
from sf.mini.questions import CLIP_KINDS, SCENE_KINDS, Kind
from sf.mini.rows import WorldSize
from sf.mini.world import Clip, Scene

if TYPE_CHECKING:
    from sf.mini.benchmarks import Example
    from sf.sections import Vision

__all__ = [
    "CURRICULUM",
    "CurriculumPhase",
    "TrainingExample",
    "benchmark_examples",
    "phase_at",
    "row_examples",
    "world_example",
]


@dataclass(frozen=True)
class CurriculumPhase:
    """A part of the curriculum.

    Attributes:
        until: the share of all steps at which it ends.
        kinds: the kinds of question.
        choice_share: share of the questions that are multiple choice.
        video_share: share of the steps with clips.
        row_share, benchmark_share: shares of the steps with examples from the manifest and in the
            benchmarks' formats; the other steps use new scenes.
    """

    until: float
    kinds: tuple[Kind, ...]
    choice_share: float
    video_share: float
    row_share: float = 0.0
    benchmark_share: float = 0.0


@dataclass(frozen=True)
class TrainingExample:
    """One picture or clip and its questions.

    Attributes:
        data_type: "image" or "video".
        frames: uint8 [H, W, 3] or [T, H, W, 3], within the vision bounds.
        metadata: transformers' VideoMetadata of a clip, None for an image.
        turns: (prompt text, reply) pairs, each answered separately; () if there is a subject.
        subject: the scene or clip, if questions can be generated about it.
    """

    data_type: str
    frames: np.ndarray
    metadata: Any
    turns: tuple[tuple[str, str], ...] = ()
    subject: Scene | Clip | None = None

    def sample_turns(
        self, rng: np.random.Generator, phase: CurriculumPhase, count: int, template: Template
    ) -> tuple[tuple[str, str], ...]:
        """Up to `count` (prompt text, reply) pairs: new ones, or some of the fixed ones.

        Empty if the phase has no question about the subject.
        """
        if self.subject is None:
            chosen = rng.permutation(len(self.turns))[:count]
            return tuple(self.turns[int(index)] for index in chosen)
        questions = sample_questions(self.subject, rng, count, phase.kinds, phase.choice_share)
        return tuple((prompt_of(d, self.data_type, template), d.solution) for d in questions)


_ALL = (*SCENE_KINDS, *CLIP_KINDS)
CURRICULUM = (
    CurriculumPhase(0.30, _ALL, 0.5, 0.5),
    CurriculumPhase(1.00, _ALL, 0.5, 0.5, row_share=0.1, benchmark_share=0.3),
)


def phase_at(
    progress: float, curriculum: Sequence[CurriculumPhase] = CURRICULUM
) -> CurriculumPhase:
    """The phase after the share `progress`, in [0, 1), of the steps."""
    return next(phase for phase in curriculum if progress < phase.until)


def clip_metadata(size: WorldSize) -> Any:
    """The metadata that `sf.data.video.load_video` gives for a clip if every frame is used."""
    from transformers.video_utils import VideoMetadata

    return VideoMetadata(
        total_num_frames=size.frames,
        fps=float(size.fps),
        duration=size.frames / size.fps,
        frames_indices=list(range(size.frames)),
    )


def prompt_of(row_question: RowQuestion, data_type: str, template: Template) -> str:
    """The prompt text of a question that is not in a manifest."""
    row = Row(
        id="",
        problem=row_question.problem,
        problem_type=row_question.problem_type,
        data_type=data_type,
        options=row_question.options,
        solution=row_question.solution,
        answer=row_question.answer,
        media="",
        data_source="mini",
    )
    return question_text(row, template)


def world_example(rng: np.random.Generator, data_type: str, size: WorldSize) -> TrainingExample:
    """A new scene or clip with a subject to generate questions about."""
    subject = sample_subject(rng, data_type, rows=size.side, cols=size.side, frames=size.frames)
    if isinstance(subject, Scene):
        return TrainingExample("image", pixels(subject), None, (), subject)
    frames = np.stack([pixels(scene) for scene in subject.frames])
    return TrainingExample("video", frames, clip_metadata(size), (), subject)


def row_examples(rows: Sequence[Row], vision: Vision, template: Template) -> list[TrainingExample]:
    """Manifest rows as training examples, grouped by media."""
    converted = []
    for path, group in groupby(sorted(rows, key=lambda row: row.media), lambda r: r.media_path):
        asked = list(group)
        turns = tuple((question_text(row, template), row.solution) for row in asked)
        if asked[0].data_type == "image":
            converted.append(TrainingExample("image", np.array(load_image(path)), None, turns))
        else:
            frames, metadata = load_video(path, vision)
            converted.append(TrainingExample("video", frames, metadata, turns))
    return converted


def benchmark_examples(examples: Sequence[Example], vision: Vision) -> list[TrainingExample]:
    """Examples in the benchmarks' answer formats as training examples."""
    converted = []
    for example in examples:
        turns = ((example.prompt, example.target),)
        if example.data_type == "image":
            converted.append(TrainingExample("image", np.array(example.media), None, turns))
        else:
            frames, metadata = load_video(example.media, vision)  # type: ignore[arg-type]
            converted.append(TrainingExample("video", frames, metadata, turns))
    return converted

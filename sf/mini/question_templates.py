"""Questions in the five problem types of Video-R1-260k."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sf.mini.questions import CLIP_KINDS, SCENE_KINDS, GeneratedQuestion, Kind, ask, askable
from sf.mini.world import Clip, Event, Glyph, Scene, sample_clip, sample_scene

__all__ = ["CHOICE_SHARE", "RowQuestion", "sample_questions", "sample_subject"]

CHOICE_SHARE = 0.5
"""Of the questions that can be multiple choice; in Video-R1-260k, 64 % of all rows are."""

_OPEN_TYPE: dict[Kind, str] = {"count": "regression", "digit": "numerical", "letter": "OCR"}
_READ: tuple[Kind, ...] = ("digit", "letter")  # not multiple choice: options would reveal it
_EVENTS: tuple[Event, ...] = ("still", "recolour")
_GLYPHS: tuple[Glyph, ...] = ("digit", "letter")


@dataclass(frozen=True, slots=True)
class RowQuestion:
    """A question with the fields of Video-R1's schema, about a scene or a clip in memory."""

    problem: str
    problem_type: str
    options: tuple[str, ...]
    answer: str
    kind: Kind

    @property
    def solution(self) -> str:
        """The solution in the dataset's format."""
        return f"<answer>{self.answer}</answer>"


def sample_subject(
    rng: np.random.Generator,
    data_type: str,
    *,
    rows: int = 6,
    cols: int = 6,
    frames: int = 4,
    objects: tuple[int, int] = (1, 3),
) -> Scene | Clip:
    """A scene ("image") or a clip ("video") with a digit or a letter in it."""
    glyph = _GLYPHS[int(rng.integers(len(_GLYPHS)))]
    if data_type == "image":
        return sample_scene(rng, rows, cols, objects, glyph)
    event = _EVENTS[int(rng.integers(len(_EVENTS)))]
    return sample_clip(rng, rows, cols, frames, objects, glyph, event)


def sample_questions(
    subject: Scene | Clip,
    rng: np.random.Generator,
    count: int,
    kinds: tuple[Kind, ...] = (*SCENE_KINDS, *CLIP_KINDS),
    choice_share: float = CHOICE_SHARE,
) -> list[RowQuestion]:
    """Up to `count` distinct questions about one scene or clip.

    Kinds are drawn in random rounds, which balances them over many subjects. `choice_share` of the
    questions are multiple choice, the others have the problem type of their kind.
    """
    questions: dict[tuple[str, str], RowQuestion] = {}
    kinds = tuple(kind for kind in askable(subject) if kind in kinds)
    for _ in range(4):
        for index in rng.permutation(len(kinds)):
            question = ask(subject, kinds[int(index)], rng)
            if len(questions) < count:
                row_question = _row_question(question, rng, choice_share)
                questions.setdefault(
                    (row_question.problem, row_question.problem_type), row_question
                )
    return list(questions.values())


def _row_question(
    question: GeneratedQuestion, rng: np.random.Generator, choice_share: float
) -> RowQuestion:
    """The question as multiple choice or in the open problem type of its kind."""
    if question.kind not in _READ and rng.random() < choice_share:
        texts, letter = question.options(rng)
        options = tuple(f"{chr(ord('A') + i)}. {text}" for i, text in enumerate(texts))
        return RowQuestion(question.text, "multiple choice", options, letter, question.kind)
    problem_type = _OPEN_TYPE.get(question.kind, "free-form")
    return RowQuestion(question.text, problem_type, (), question.answer, question.kind)

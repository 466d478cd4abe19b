"""Questions about scenes and clips, with their answers and plausible wrong answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sf.mini.world import COLOURS, DIGITS, LETTERS, SHAPES, Clip, Item, Scene

__all__ = ["CLIP_KINDS", "SCENE_KINDS", "GeneratedQuestion", "Kind", "ask", "askable"]

Kind = Literal["colour", "shape", "count", "presence", "digit", "letter", "before", "after"]
SCENE_KINDS: tuple[Kind, ...] = ("colour", "shape", "count", "presence", "digit", "letter")
CLIP_KINDS: tuple[Kind, ...] = ("before", "after")

_EVENT_OF: dict[Kind, str] = {"before": "recolour", "after": "recolour"}


@dataclass(frozen=True)
class GeneratedQuestion:
    """A question with one correct answer (a word, a number or a character) and wrong ones."""

    text: str
    answer: str
    distractors: tuple[str, ...]
    kind: Kind

    def options(self, rng: np.random.Generator, count: int = 4) -> tuple[tuple[str, ...], str]:
        """Up to `count` sorted options including the correct one, and its letter.

        With sorted options that cover all answers of a kind, each answer has a fixed letter, which
        a tiny model can learn within minutes. Shuffled options take far longer.
        """
        wrong = rng.permutation(self.distractors)[: count - 1].tolist()
        texts = sorted([*wrong, self.answer])
        return tuple(texts), chr(ord("A") + texts.index(self.answer))


def _other(answer: str, values: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(value for value in values if value != answer)


def _pick(rng: np.random.Generator, items: tuple[Item, ...]) -> Item:
    return items[int(rng.integers(len(items)))]


def _half(
    rng: np.random.Generator, yes: Callable[[], str], no: Callable[[], str]
) -> tuple[str, str]:
    """(text, answer) of a yes/no question; both answers are equally likely."""
    return (yes(), "yes") if rng.random() < 0.5 else (no(), "no")


def _ask_scene(scene: Scene, kind: Kind, rng: np.random.Generator, where: str) -> GeneratedQuestion:
    item = _pick(rng, scene.shapes)
    present = {other.shape for other in scene.shapes}
    if kind == "colour":
        text = f"What color is the {item.shape}?"
        return GeneratedQuestion(text, item.colour, _other(item.colour, COLOURS), kind)
    if kind == "shape":
        text = f"What shape is {item.colour}?"
        return GeneratedQuestion(text, item.shape, _other(item.shape, SHAPES), kind)
    if kind == "count":
        numbers = tuple(str(n) for n in range(1, len(SHAPES) + 1))
        answer = str(len(scene.shapes))
        text = f"How many colored shapes are in the {where}?"
        return GeneratedQuestion(text, answer, _other(answer, numbers), kind)
    if kind == "presence":
        absent = tuple(shape for shape in SHAPES if shape not in present)
        text, answer = _half(
            rng,
            lambda: f"Is there a {item.shape} in the {where}?",
            lambda: f"Is there a {rng.choice(absent)} in the {where}?",
        )
        return GeneratedQuestion(text, answer, _other(answer, ("yes", "no")), kind)
    if kind == "digit":
        text = f"What number is written in the {where}?"
        return GeneratedQuestion(text, scene.glyph, _other(scene.glyph, DIGITS), kind)
    text = f"What letter is written in the {where}?"
    return GeneratedQuestion(text, scene.glyph, _other(scene.glyph, LETTERS), kind)


def _ask_clip(clip: Clip, kind: Kind) -> GeneratedQuestion:
    item = clip.subject
    origin = next(other for other in clip.first.shapes if other.shape == item.shape)
    if kind == "before":
        text = f"What color is the {item.shape} at the beginning?"
        return GeneratedQuestion(text, origin.colour, _other(origin.colour, COLOURS), kind)
    text = f"What color is the {item.shape} at the end?"
    return GeneratedQuestion(text, item.colour, _other(item.colour, COLOURS), kind)


def askable(subject: Scene | Clip) -> tuple[Kind, ...]:
    """The kinds of question that have a unique answer for this scene or clip.

    A still clip allows the questions of a scene; a clip with an event allows questions about the
    event and about the glyph, which no event changes.
    """
    scene = subject.last if isinstance(subject, Clip) else subject
    glyph: tuple[Kind, ...] = ()
    if scene.glyph:
        glyph = ("digit",) if scene.glyph in DIGITS else ("letter",)
    if isinstance(subject, Clip) and subject.event != "still":
        return tuple(k for k in CLIP_KINDS if _EVENT_OF[k] == subject.event) + glyph
    plain = tuple(k for k in SCENE_KINDS if k not in ("digit", "letter"))
    if len(scene.shapes) == len(SHAPES):  # every shape is present: no question has the answer no
        plain = tuple(k for k in plain if k != "presence")
    return plain + glyph


def ask(subject: Scene | Clip, kind: Kind, rng: np.random.Generator) -> GeneratedQuestion:
    """A question of the given kind about an item drawn from `rng`.

    Raises:
        ValueError: the kind is not `askable` about this scene or clip.
    """
    if kind not in askable(subject):
        raise ValueError(
            f"kind = {kind!r}: this {type(subject).__name__} allows {askable(subject)}"
        )
    if isinstance(subject, Scene):
        return _ask_scene(subject, kind, rng, "image")
    if kind in CLIP_KINDS:
        return _ask_clip(subject, kind)
    return _ask_scene(subject.last, kind, rng, "video")

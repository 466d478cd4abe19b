"""What a stand-in document of a benchmark is made of: columns, pictures or a clip, the right reply.

A document holds what one row of the benchmark holds (the columns that lmms-eval 0.7.3 touches and
the identifying ones), its media, and the reply that scores. Questions come from `sf.mini.questions`
so that a small model can learn them; the wording around them is the benchmark's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sf.mini.questions import CLIP_KINDS, Kind, Question, ask
from sf.mini.rows import WorldSize
from sf.mini.world import Clip, Event, Glyph, Scene, sample_clip, sample_scene

__all__ = [
    "SUBJECTS",
    "Document",
    "Fresh",
    "Maker",
    "Supply",
    "turn",
]


@dataclass(frozen=True)
class Document:
    """One row of a benchmark.

    Attributes:
        columns: the row's columns but the pictures.
        reply: a reply that lmms-eval's parser counts as right.
        images: picture columns by name.
        clip: the video, which lies at `file`, a path under HF_HOME.
        texts: further files by their path under HF_HOME (subtitles).
    """

    columns: dict[str, Any]
    reply: str
    images: dict[str, Scene] = field(default_factory=dict)
    clip: Clip | None = None
    file: str = ""
    texts: dict[str, str] = field(default_factory=dict)


class Supply(ABC):
    """Where documents take their scenes, clips and questions from.

    Attributes:
        size: of pictures and clips.
    """

    size: WorldSize

    @abstractmethod
    def scene(self, rng: np.random.Generator, kind: Kind) -> Scene:
        """A scene that allows this kind of question."""

    @abstractmethod
    def clip(self, rng: np.random.Generator, kind: Kind) -> Clip:
        """A clip that allows this kind of question."""

    def ask_scene(self, rng: np.random.Generator, kind: Kind) -> tuple[Scene, Question]:
        """A scene and a question of this kind about it."""
        scene = self.scene(rng, kind)
        return scene, ask(scene, kind, rng)

    def ask_clip(self, rng: np.random.Generator, kind: Kind) -> tuple[Clip, Question]:
        """A clip and a question of this kind about it."""
        clip = self.clip(rng, kind)
        return clip, ask(clip, kind, rng)


_GLYPHS: dict[Kind, Glyph] = {"digit": "digit", "letter": "letter"}


@dataclass(frozen=True)
class Fresh(Supply):
    """Scenes and clips never seen before, with a digit or a letter where one is asked for."""

    size: WorldSize

    def scene(self, rng: np.random.Generator, kind: Kind) -> Scene:
        side = self.size.side
        return sample_scene(rng, side, side, glyph=_GLYPHS.get(kind, "none"))

    def clip(self, rng: np.random.Generator, kind: Kind) -> Clip:
        side, glyph = self.size.side, _GLYPHS.get(kind, "none")
        event: Event = "recolour" if kind in CLIP_KINDS else "still"
        return sample_clip(rng, side, side, self.size.frames, glyph=glyph, event=event)


Maker = Callable[[np.random.Generator, int, Supply], list[Document]]
"""(randomness, running number, supply) -> one document, or several that are scored together."""


def turn(values: Sequence[Any], index: int) -> Any:
    """The values in turn, so that every `len(values)` documents hold each of them once."""
    return values[index % len(values)]


SUBJECTS = ("Art", "Biology", "Accounting", "History", "Agriculture", "Clinical_Medicine")
"""One of each of MMMU's six domains."""

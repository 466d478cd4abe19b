"""Documents of the synthetic benchmarks: columns, pictures or a clip, and the correct reply.

A document contains one row of the benchmark (the identifying columns and those that lmms-eval 0.7.3
reads), its media, and a correct reply. Questions come from `sf.mini.questions` so that a small
model can learn them; the text around them is the benchmark's own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sf.mini.questions import CLIP_KINDS, GeneratedQuestion, Kind, ask
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
        columns: the row's columns except the pictures.
        reply: a reply that lmms-eval's parser counts as correct.
        images: picture columns by name.
        clip: the video; its path under HF_HOME is `file`.
        texts: further files (subtitles) by their path under HF_HOME.
    """

    columns: dict[str, Any]
    reply: str
    images: dict[str, Scene] = field(default_factory=dict)
    clip: Clip | None = None
    file: str = ""
    texts: dict[str, str] = field(default_factory=dict)


class Supply(ABC):
    """The source of the documents' scenes, clips and questions.

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

    def ask_scene(self, rng: np.random.Generator, kind: Kind) -> tuple[Scene, GeneratedQuestion]:
        """A scene and a question of this kind about it."""
        scene = self.scene(rng, kind)
        return scene, ask(scene, kind, rng)

    def ask_clip(self, rng: np.random.Generator, kind: Kind) -> tuple[Clip, GeneratedQuestion]:
        """A clip and a question of this kind about it."""
        clip = self.clip(rng, kind)
        return clip, ask(clip, kind, rng)


_GLYPHS: dict[Kind, Glyph] = {"digit": "digit", "letter": "letter"}


@dataclass(frozen=True)
class Fresh(Supply):
    """New scenes and clips, with a digit or a letter if the question is about one."""

    size: WorldSize

    def scene(self, rng: np.random.Generator, kind: Kind) -> Scene:
        side = self.size.side
        return sample_scene(rng, side, side, glyph=_GLYPHS.get(kind, "none"))

    def clip(self, rng: np.random.Generator, kind: Kind) -> Clip:
        side, glyph = self.size.side, _GLYPHS.get(kind, "none")
        event: Event = "recolour" if kind in CLIP_KINDS else "still"
        return sample_clip(rng, side, side, self.size.frames, glyph=glyph, event=event)


Maker = Callable[[np.random.Generator, int, Supply], list[Document]]
"""(random generator, index, supply) -> one document, or several that are scored together."""


def turn(values: Sequence[Any], index: int) -> Any:
    """Cycle through the values, so that `len(values)` successive documents have each one once."""
    return values[index % len(values)]


SUBJECTS = ("Art", "Biology", "Accounting", "History", "Agriculture", "Clinical_Medicine")
"""One of each of MMMU's six domains."""

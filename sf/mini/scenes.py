"""The public names of the mini world: scenes and clips, their pixels, and questions about them."""

from __future__ import annotations

from sf.mini.drawing import pixels, render, write_video
from sf.mini.questions import CLIP_KINDS, SCENE_KINDS, GeneratedQuestion, Kind, ask, askable
from sf.mini.world import (
    CELL,
    COLOURS,
    DIGITS,
    LETTERS,
    SHAPES,
    Clip,
    Event,
    Glyph,
    Item,
    Scene,
    sample_clip,
    sample_scene,
)

__all__ = [
    "CELL",
    "CLIP_KINDS",
    "COLOURS",
    "DIGITS",
    "LETTERS",
    "SCENE_KINDS",
    "SHAPES",
    "Clip",
    "Event",
    "GeneratedQuestion",
    "Glyph",
    "Item",
    "Kind",
    "Scene",
    "ask",
    "askable",
    "pixels",
    "render",
    "sample_clip",
    "sample_scene",
    "write_video",
]

"""Scenes and clips of coloured shapes on a grid of 28-pixel cells, and questions about them.

One cell is exactly one visual token of a Qwen2-VL or Qwen2.5-VL tower (14-pixel patches, merged
2 x 2). Most cells contain only background or low-contrast clutter, so a question needs few of
the visual tokens: the redundancy that token sparsity exploits. The background's tint changes with
row and column, so a cell's content reveals its position.

All functions are pure; randomness comes only from the caller's `numpy.random.Generator`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

__all__ = [
    "CELL",
    "COLOURS",
    "DIGITS",
    "LETTERS",
    "SHAPES",
    "Clip",
    "Event",
    "Glyph",
    "Item",
    "Scene",
    "sample_clip",
    "sample_scene",
]

CELL = 28
"""Side of a cell in pixels: one merged visual token."""

SHAPES = ("circle", "cross", "square", "triangle")
COLOURS = ("blue", "green", "red", "yellow")
DIGITS = tuple("0123456789")
LETTERS = tuple("EFGHKLMN")  # without option letters

Event = Literal["still", "recolour"]
Glyph = Literal["none", "digit", "letter"]


@dataclass(frozen=True)
class Item:
    """The content of a cell: a coloured shape, or a white glyph (`shape` is the character)."""

    shape: str
    colour: str
    row: int
    col: int

    @property
    def is_glyph(self) -> bool:
        """Whether the item is a character rather than a shape."""
        return self.shape not in SHAPES

    @property
    def cell(self) -> tuple[int, int]:
        """(row, column), both counted from the top left, from 0."""
        return self.row, self.col


@dataclass(frozen=True)
class Scene:
    """A grid of cells with a few items; `clutter` seeds the irrelevant content."""

    rows: int
    cols: int
    items: tuple[Item, ...]
    clutter: int

    @property
    def shapes(self) -> tuple[Item, ...]:
        """The items that are shapes."""
        return tuple(item for item in self.items if not item.is_glyph)

    @property
    def glyph(self) -> str:
        """The character in the scene, or '' without one."""
        return next((item.shape for item in self.items if item.is_glyph), "")


@dataclass(frozen=True)
class Clip:
    """Frames with one background; `event` changes `subject`, given as in the last frame."""

    frames: tuple[Scene, ...]
    event: Event
    subject: Item

    @property
    def first(self) -> Scene:
        """The scene before the event."""
        return self.frames[0]

    @property
    def last(self) -> Scene:
        """The scene after the event."""
        return self.frames[-1]


def _cells(rng: np.random.Generator, rows: int, cols: int, count: int) -> list[tuple[int, int]]:
    """`count` different cells."""
    chosen = rng.choice(rows * cols, size=count, replace=False)
    return [(int(index) // cols, int(index) % cols) for index in chosen]


def sample_scene(
    rng: np.random.Generator,
    rows: int = 6,
    cols: int = 6,
    objects: tuple[int, int] = (1, 3),
    glyph: Glyph = "none",
) -> Scene:
    """A scene of `objects[0]..objects[1]` shapes with distinct forms and colours.

    Args:
        rng: the random generator.
        rows: number of cell rows.
        cols: number of cell columns.
        objects: smallest and largest number of shapes (at most 4).
        glyph: the character to add in another cell: none, a digit or a letter.

    Raises:
        ValueError: more shapes are requested than forms or cells exist.
    """
    low, high = objects
    if not 1 <= low <= high <= len(SHAPES) or high + 1 > rows * cols:
        raise ValueError(
            f"objects = {objects!r}: 1 <= least <= largest <= {len(SHAPES)}, with room for a glyph"
        )
    count = int(rng.integers(low, high + 1))
    shapes = rng.permutation(SHAPES)[:count]
    colours = rng.permutation(COLOURS)[:count]
    cells = _cells(rng, rows, cols, count + 1)
    items = [
        Item(str(shape), str(colour), *cell)
        for shape, colour, cell in zip(shapes, colours, cells[:count], strict=True)
    ]
    if glyph != "none":
        items.append(
            Item(str(rng.choice(DIGITS if glyph == "digit" else LETTERS)), "white", *cells[-1])
        )
    return Scene(rows, cols, tuple(items), int(rng.integers(2**31)))


def _swap(scene: Scene, index: int, item: Item) -> Scene:
    items = list(scene.items)
    items[index] = item
    return replace(scene, items=tuple(items))


def sample_clip(
    rng: np.random.Generator,
    rows: int = 6,
    cols: int = 6,
    frames: int = 4,
    objects: tuple[int, int] = (1, 3),
    glyph: Glyph = "none",
    event: Event = "still",
) -> Clip:
    """A clip of `frames` frames in which `event` happens to one shape half way.

    "recolour" gives it a colour that no other shape has; "still" changes nothing.

    Raises:
        ValueError: fewer than two frames, or as in `sample_scene`.
    """
    if frames < 2:
        raise ValueError(f"frames = {frames}: a clip must have at least two")
    after = sample_scene(rng, rows, cols, objects, glyph)
    index = int(rng.integers(len(after.shapes)))
    item = after.shapes[index]
    before = after
    if event == "recolour":
        free = sorted(set(COLOURS) - {other.colour for other in after.shapes})
        before = _swap(after, index, replace(item, colour=str(rng.choice(free))))
    half = frames // 2
    return Clip((before,) * half + (after,) * (frames - half), event, item)

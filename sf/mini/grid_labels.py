"""Crowded scenes with the label of every cell, to pretrain the vision tower."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sf.mini.world import COLOURS, DIGITS, LETTERS, SHAPES, Item, Scene

__all__ = ["WORDS", "cell_facts", "cell_words", "sample_crowded_scene"]

_FORMS = (*SHAPES, *DIGITS, *LETTERS)
_TINTS = (*COLOURS, "white")
WORDS = (*_FORMS, *_TINTS)
"""Every one-word label of a cell."""

_SHAPE_SHARE, _GLYPH_SHARE = 0.35, 0.25


def sample_crowded_scene(rng: np.random.Generator, side: int) -> Scene:
    """A scene with items in more than half of its cells; items may recur."""
    items = []
    for row in range(side):
        for col in range(side):
            drawn = rng.random()
            if drawn < _SHAPE_SHARE:
                items.append(Item(str(rng.choice(SHAPES)), str(rng.choice(COLOURS)), row, col))
            elif drawn < _SHAPE_SHARE + _GLYPH_SHARE:
                items.append(Item(str(rng.choice(_FORMS[len(SHAPES) :])), "white", row, col))
    return Scene(side, side, tuple(items), int(rng.integers(2**31)))


def cell_facts(scene: Scene) -> NDArray[np.int64]:
    """(cells, 4): row, column, form and tint of each cell in reading order.

    Form and tint count from 1 in the order of `WORDS`; 0 is an empty cell.
    """
    facts = np.zeros((scene.rows, scene.cols, 4), np.int64)
    facts[..., 0] = np.arange(scene.rows)[:, None]
    facts[..., 1] = np.arange(scene.cols)
    for item in scene.items:
        facts[item.row, item.col, 2:] = _FORMS.index(item.shape) + 1, _TINTS.index(item.colour) + 1
    return facts.reshape(-1, 4)


def cell_words(facts: NDArray[np.int64]) -> NDArray[np.float32]:
    """(cells, len(WORDS)): 1 if a word describes the cell."""
    labels = np.zeros((len(facts), len(WORDS)), np.float32)
    for column, offset in ((2, 0), (3, len(_FORMS))):
        filled = np.flatnonzero(facts[:, column])
        labels[filled, facts[filled, column] - 1 + offset] = 1.0
    return labels

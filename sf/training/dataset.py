"""The training data in training order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from sf.data.prompts import Template, messages
from sf.errors import ConfigError, DataError
from sf.extras import extra

with extra("train"):
    from datasets import Dataset

if TYPE_CHECKING:
    from sf.data.manifest import Row

__all__ = ["question_order", "rows_of_sources", "templates_of", "training_set"]

_NAMED = 8
"""Data sources that an error lists."""
_STREAM = 0x73686F7274
"""Tells the choice of templates from the order of the questions, which has the same seed."""


def rows_of_sources(rows: Sequence[Row], sources: Sequence[str]) -> list[Row]:
    """The rows of the given `data_source` values or top media folders, in order.

    Args:
        rows: the train manifest.
        sources: their names; empty for all rows.

    Raises:
        ConfigError: one of them has no row.
    """
    known = Counter(name for row in rows for name in row.data_sources)
    for name in sources:
        if not known[name]:
            common = ", ".join(other for other, _ in known.most_common(_NAMED)) or "no rows"
            rule = f"has no row in the train manifest, which holds {common}"
            raise ConfigError("train.data_sources", name, rule, "correct it, or prepare such rows")
    return [row for row in rows if not sources or row.data_sources & set(sources)]


def question_order(num_rows: int, count: int, seed: int) -> list[int]:
    """Indices of `count` questions: concatenated seeded permutations of all rows.

    Args:
        num_rows: rows to draw from.
        count: questions of the whole run.
        seed: the same seed gives the same order; a longer run begins with a shorter one.
    """
    rng = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < count:
        order.extend(rng.permutation(num_rows).tolist())
    return order[:count]


def templates_of(rows: int, template: Template, short_share: float, seed: int) -> list[Template]:
    """The prompt template of each training row.

    Args:
        rows: how many.
        template: of all rows except those asked for a bare answer.
        short_share: of the rows that are, in [0, 1]; a row is asked alike whenever it comes.
        seed: of the choice.
    """
    drawn = np.random.default_rng([_STREAM, seed]).random(rows)
    return ["short" if share < short_share else template for share in drawn]


def training_set(
    rows: Sequence[Row], count: int, seed: int, templates: Sequence[Template]
) -> Dataset:
    """One entry per question of the run, so that a run of any length is one epoch.

    Resuming in a later epoch would otherwise shuffle again from the first epoch's state.

    Args:
        rows: the train manifest.
        count: questions of the whole run.
        seed: of the order.
        templates: of each row.

    Returns:
        columns prompt (messages, media as paths), row, template, problem_type, solution.

    Raises:
        DataError: no rows.
    """
    if not rows:
        raise DataError("train manifest", None, "holds no rows", "prepare more data")
    table = Dataset.from_dict(
        {
            "prompt": [messages(row, how) for row, how in zip(rows, templates, strict=True)],
            "row": list(range(len(rows))),
            "template": list(templates),
            "problem_type": [row.problem_type for row in rows],
            "solution": [row.solution for row in rows],
        }
    )
    return table.select(question_order(len(rows), count, seed))

"""The training data in the order in which it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from sf.data.prompts import messages
from sf.errors import DataError

if TYPE_CHECKING:
    from sf.data.manifest import Row

__all__ = ["question_order", "training_set"]


def question_order(num_rows: int, count: int, seed: int) -> list[int]:
    """Indices of `count` questions: seeded permutations of all rows, one after the other.

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


def training_set(rows: Sequence[Row], count: int, seed: int, template: Any) -> Dataset:
    """One entry per question of the run, so that a run is one epoch whatever its length.

    Resuming in a later epoch would otherwise shuffle again from the first epoch's state.

    Args:
        rows: the train manifest.
        count: questions of the whole run.
        seed: of the order.
        template: prompt template of `sf.data.prompts`.

    Returns:
        columns prompt (messages, media as paths), row, problem_type, solution.

    Raises:
        DataError: no rows.
    """
    if not rows:
        raise DataError("train manifest", None, "holds no rows", "prepare more data")
    table = Dataset.from_dict(
        {
            "prompt": [messages(row, template) for row in rows],
            "row": list(range(len(rows))),
            "problem_type": [row.problem_type for row in rows],
            "solution": [row.solution for row in rows],
        }
    )
    return table.select(question_order(len(rows), count, seed))

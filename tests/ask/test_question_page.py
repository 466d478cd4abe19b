"""The pictures of `sf evaluate` follow the rule that the page states."""

from __future__ import annotations

import pandas as pd
import pytest

from sf.ask.question_page import examples

FULL = [1, 1, 0, 1, 1, 0]
SPARSE = [1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("full", "sparse", "count", "expected"),
    [
        (FULL, SPARSE, 0, ""),
        (FULL, SPARSE, 1, "1 failure"),
        (FULL, SPARSE, 2, "1 failure, 0 success"),
        (FULL, SPARSE, 3, "1 failure, 3 failure, 0 success"),
        (FULL, SPARSE, 6, "1 failure, 3 failure, 0 success, 4 success, 2 neither, 5 neither"),
        ([1] * 3, [0, 0, 0], 2, "0 failure, 1 failure"),
        ([1] * 3, [1, 1, 1], 2, "0 success, 1 success"),
        ([1] * 3, [0, 0, 1], 3, "0 failure, 1 failure, 2 success"),
        ([0] * 3, [1, 0, 0], 2, "0 neither, 1 neither"),
    ],
)
def test_pictures_are_of_failures_and_successes(
    full: list[int], sparse: list[int], count: int, expected: str
) -> None:
    answers = pd.DataFrame(
        {"setting": name, "id": str(number), "correct": float(right)}
        for name, row in (("full", full), ("zipvl 0.9", sparse), ("other", [0] * len(full)))
        for number, right in enumerate(row)
    )
    chosen = examples(answers, "zipvl 0.9", count)
    assert ", ".join(" ".join(each) for each in chosen) == expected

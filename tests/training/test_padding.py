"""Rows of similar length in one group."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sf.training.padding import length_buckets


@given(st.lists(st.integers(1, 200), min_size=1, max_size=40), st.floats(1.0, 3.0))
def test_buckets_hold_every_row_once_within_the_slack(lengths: list[int], slack: float) -> None:
    buckets = length_buckets(lengths, slack)
    assert sorted(at for bucket in buckets for at in bucket) == list(range(len(lengths)))
    for bucket in buckets:
        own = [lengths[at] for at in bucket]
        assert max(own) <= slack * min(own)


@pytest.mark.parametrize(
    ("lengths", "expected"), [([5, 9, 5, 9], [[0, 2], [1, 3]]), ([7, 7, 7], [[0, 1, 2]])]
)
def test_equal_lengths_stay_together_in_order(
    lengths: list[int], expected: list[list[int]]
) -> None:
    assert length_buckets(lengths, 1.15) == expected

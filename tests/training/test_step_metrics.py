"""Which tokens and rollouts the figures of a step describe."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sf.training.step_metrics import StepFigures, shown_rollouts


def whole(values: torch.Tensor) -> torch.Tensor:
    return values


def two_ranks(values: torch.Tensor) -> torch.Tensor:
    """A second rank with ten times the values."""
    return torch.cat([values, 10 * values])


@pytest.mark.parametrize(("gather", "expected"), [(whole, 0.75), (two_ranks, 7.5)])
def test_the_gap_is_the_largest_of_all_answer_tokens(gather: Any, expected: float) -> None:
    """-0.75 has the largest absolute value; 9.0 is after the end of an answer."""
    figures = StepFigures(gather)
    train = torch.tensor([[-1.0, -2.0], [-3.0, -4.0]])
    sampled = train + torch.tensor([[0.25, 0.5], [-0.75, 9.0]])
    figures.add_gap(train, sampled, torch.tensor([[1, 1], [1, 0]]))
    assert figures.drain() == {"logp_gap": expected}


def test_a_shown_rollout_has_its_own_figures() -> None:
    """The first group's two of three rollouts."""
    rollout: Any = SimpleNamespace(facts=lambda at: {"retention_p": (0.5, 0.9, 1.0)[at]})
    rows = [SimpleNamespace(id=name, solution=f"s{name}") for name in "aab"]
    shown = shown_rollouts(
        rollout, 2, rows, [1.0, 0.0, 1.0], torch.tensor([0.25, -0.25, 3.0]), ["x", "y", "z"]
    )
    assert shown == [
        {"id": "a", "retention_p": 0.5, "correct": 1.0, "advantage": 0.25, "solution": "sa",
         "completion": "x"},
        {"id": "a", "retention_p": 0.9, "correct": 0.0, "advantage": -0.25, "solution": "sa",
         "completion": "y"},
    ]  # fmt: skip


def test_rollouts_count_over_all_ranks_and_steps_since_the_last_call() -> None:
    figures = StepFigures(two_ranks)
    every = figures.add_rollouts({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([0.0, 2.0])})
    assert {name: values.tolist() for name, values in every.items()} == {
        "a": [1.0, 3.0, 10.0, 30.0],
        "b": [0.0, 2.0, 0.0, 20.0],
    }
    figures.add_rollouts({"a": torch.tensor([0.0, 0.0])})
    assert figures.drain() == {"a": 5.5, "b": 5.5}
    assert figures.drain() == {}

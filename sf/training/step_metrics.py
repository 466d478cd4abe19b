"""The metrics of a step, gathered over ranks, and its sample rollouts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from sf.training.rollout import Rollout

__all__ = ["StepFigures", "shown_rollouts"]


class StepFigures:
    """Collects figures between two log lines.

    Args:
        gather: concatenates a tensor over ranks, first rank first.
    """

    def __init__(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.gather = gather
        self._values: dict[str, list[float]] = defaultdict(list)

    def add(self, name: str, value: float) -> None:
        """One value of this rank, or one that is the same on all."""
        self._values[name].append(value)

    def add_rollouts(self, columns: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Means over all ranks' rollouts.

        Args:
            columns: name -> (R,) local values.

        Returns:
            name -> values of all ranks' rollouts, float32.
        """
        every = self.gather(torch.stack([column.float() for column in columns.values()], dim=1))
        for name, values in zip(columns, every.T, strict=True):
            self.add(name, float(values.mean()))
        return dict(zip(columns, every.T, strict=True))

    def add_gap(self, train: torch.Tensor, sampled: torch.Tensor, mask: torch.Tensor) -> None:
        """max |logp(train) - logp(rollout)|: the canary of the replay.

        Args:
            train: (R, C) log-probabilities of the training forward.
            sampled: (R, C) of the rollout.
            mask: (R, C), 1 at answer tokens.
        """
        largest = ((train - sampled).abs() * mask).max().reshape(1)
        self.add("logp_gap", float(self.gather(largest).max()))

    def drain(self) -> dict[str, float]:
        """Means since the last call."""
        means = {name: sum(values) / len(values) for name, values in self._values.items()}
        self._values.clear()
        return means


def shown_rollouts(
    rollout: Rollout,
    count: int,
    rows: list[Any],
    correct: list[float],
    advantages: torch.Tensor,
    texts: list[str],
) -> list[dict[str, Any]]:
    """The first `count` rollouts as rows of the table of sample answers.

    Args:
        rollout: of the step.
        count: rollouts of a group.
        rows: the manifest row of each rollout.
        correct: 1.0 or 0.0 per rollout.
        advantages: (R,).
        texts: the answers.
    """
    return [
        {
            "id": rows[at].id,
            **rollout.facts(at),
            "correct": correct[at],
            "advantage": round(float(advantages[at]), 6),
            "solution": rows[at].solution,
            "completion": texts[at],
        }
        for at in range(min(count, len(rows)))
    ]

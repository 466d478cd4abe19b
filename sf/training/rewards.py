"""The paper's reward: r = correct + C * (1 - token_ratio).

arXiv 2504.18579, section 3; C = 1 if any rollout of the group is right (final version; v1 has no C:
`gate=False`). Correctness is 0 or 1; fractional scores of Video-R1's OCR, free-form and regression
questions are cut (`cutoff`), which the paper does not describe.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sf.data.rewards import correctness

__all__ = ["GroupReward"]


@dataclass(frozen=True)
class GroupReward:
    """The two parts of the reward as TRL reward functions.

    A group may straddle ranks: `gather` brings all ranks' rollouts together in global order, in
    which each group's rollouts are neighbours (TRL's `RepeatSampler`).

    Attributes:
        num_generations: rollouts in a group.
        cutoff: fractional score from which an answer counts as right, in [0, 1].
        gate: apply C.
        gather: concatenates a tensor over ranks, first rank first.
        rank: of this process.
    """

    num_generations: int
    cutoff: float
    gate: bool
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda values: values
    rank: int = 0

    def accuracy(
        self,
        completions: Sequence[Any],
        problem_type: Sequence[str],
        solution: Sequence[str],
        **_: Any,
    ) -> list[float]:
        """1.0 or 0.0 per rollout."""
        texts = [completion[-1]["content"] for completion in completions]
        return [
            float(correctness(kind, text, target, cutoff=self.cutoff))
            for kind, text, target in zip(problem_type, texts, solution, strict=True)
        ]

    def efficiency(
        self,
        completions: Sequence[Any],
        problem_type: Sequence[str],
        solution: Sequence[str],
        token_ratio: Sequence[float],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float]:
        """C * (1 - token_ratio) per rollout, in [0, 1)."""
        gates = self.gates(self.accuracy(completions, problem_type, solution))
        log_metric("gate", sum(gates) / len(gates))
        return [gate * (1.0 - ratio) for gate, ratio in zip(gates, token_ratio, strict=True)]

    def gates(self, correct: Sequence[float]) -> list[float]:
        """C of each local rollout's group; 1.0 everywhere without the gate.

        Args:
            correct: 1.0 or 0.0 per local rollout.
        """
        if not self.gate:
            return [1.0] * len(correct)
        every = self.gather(torch.tensor(correct, dtype=torch.float32)).cpu()
        right = every.view(-1, self.num_generations).amax(dim=1)
        spread = right.repeat_interleave(self.num_generations)
        start = self.rank * len(correct)
        return spread[start : start + len(correct)].tolist()

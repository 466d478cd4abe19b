"""The paper's reward: r = correct + C * (1 - token_ratio).

arXiv 2504.18579, section 3; C = 1 if any rollout of the group is correct (final version; v1 has no
C: `gate=False`). Correctness is 0 or 1; fractional scores of Video-R1's OCR, free-form and
regression questions are thresholded (`cutoff`), which the paper does not describe, or used
unchanged (`fractional`). Table 6's token + latency reward is r = correct + C * (1 - token_ratio +
w * (1 - latency_ratio)); its form and w are ours (`sf.training.latency`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sf.data.prompts import Template, in_tags
from sf.data.rewards import correctness, score

__all__ = ["GroupReward", "ScoredRollouts"]


@dataclass(frozen=True)
class GroupReward:
    """The two parts of the reward as TRL reward functions.

    A group may straddle ranks: `gather` brings all ranks' rollouts together in global order, in
    which each group's rollouts are neighbours (TRL's `RepeatSampler`).

    Attributes:
        num_generations: rollouts in a group.
        cutoff: fractional score from which an answer counts as correct, in (0, 1].
        gate: apply C.
        fractional: use fractional scores unchanged; C and accuracy still use the cutoff.
        latency_weight: w, of the modelled latency; 0 is the paper's token reward.
        gather: concatenates a tensor over ranks, first rank first.
        rank: of this process.
    """

    num_generations: int
    cutoff: float
    gate: bool
    fractional: bool = False
    latency_weight: float = 0.0
    gather: Callable[[torch.Tensor], torch.Tensor] = lambda values: values
    rank: int = 0

    def accuracy(
        self,
        completions: Sequence[Any],
        problem_type: Sequence[str],
        solution: Sequence[str],
        template: Sequence[Template],
        **_: Any,
    ) -> list[float]:
        """1.0 or 0.0 per rollout; arguments as in `correctness`."""
        texts = _answers(completions, template)
        return [
            float(correctness(kind, text, target, cutoff=self.cutoff))
            for kind, text, target in zip(problem_type, texts, solution, strict=True)
        ]

    def correctness(
        self,
        completions: Sequence[Any],
        problem_type: Sequence[str],
        solution: Sequence[str],
        template: Sequence[Template],
        correct: Sequence[float],
        **_: Any,
    ) -> list[float]:
        """The first part of the reward: `correct`, or the score in [0, 1] where it is fractional.

        An answer equal to the solution's text is worth 1 whatever its score, because ROUGE-2 is 0
        for a single word.

        Args:
            completions: TRL's.
            problem_type: of each rollout's question.
            solution: of each rollout's question.
            template: that each rollout's question was asked with.
            correct: what `accuracy` gave.
        """
        if not self.fractional:
            return list(correct)
        texts = _answers(completions, template)
        return [
            max(score(kind, text, target), float(correctness(kind, text, target, cutoff=1.0)))
            for kind, text, target in zip(problem_type, texts, solution, strict=True)
        ]

    def efficiency(
        self,
        gates: Sequence[float],
        token_ratio: Sequence[float],
        latency_ratio: Sequence[float],
    ) -> list[float]:
        """The second part: C * (1 - token_ratio + w * (1 - latency_ratio)) per rollout.

        Args:
            gates: C of each local rollout's group.
            token_ratio: in (0, 1].
            latency_ratio: modelled time over that of full attention.
        """
        return [
            gate * (1.0 - tokens + self.latency_weight * (1.0 - latency))
            for gate, tokens, latency in zip(gates, token_ratio, latency_ratio, strict=True)
        ]

    def gates(self, correct: Sequence[float], group_size: int | None = None) -> list[float]:
        """C of each local rollout's group; 1.0 everywhere without the gate.

        Args:
            correct: 1.0 or 0.0 per local rollout.
            group_size: rollouts in a group, where it is not `num_generations`.
        """
        if not self.gate:
            return [1.0] * len(correct)
        every = self.gather(torch.tensor(correct, dtype=torch.float32)).cpu()
        size = group_size or self.num_generations
        spread = every.view(-1, size).amax(dim=1).repeat_interleave(size)
        start = self.rank * len(correct)
        return spread[start : start + len(correct)].tolist()


def _answers(completions: Sequence[Any], template: Sequence[Template]) -> list[str]:
    """TRL's completions as correctness reads them."""
    pairs = zip(completions, template, strict=True)
    return [in_tags(completion[-1]["content"], how) for completion, how in pairs]


class ScoredRollouts:
    """The reward as TRL's two reward functions; keeps what the last call found.

    Attributes:
        reward: the arithmetic.
        group_size: of the rollouts to be scored; an evaluation may have another than training.
        correct: 1.0 or 0.0 per local rollout.
        texts: the answers.
    """

    def __init__(self, reward: GroupReward) -> None:
        self.reward = reward
        self.group_size = reward.num_generations
        self.correct: list[float] = []
        self.texts: list[str] = []

    def correctness(self, **columns: Any) -> list[float]:
        """The correctness of each local rollout, in [0, 1]."""
        self.texts = [completion[-1]["content"] for completion in columns["completions"]]
        self.correct = self.reward.accuracy(**columns)
        columns["log_metric"]("accuracy", sum(self.correct) / len(self.correct))
        return self.reward.correctness(**columns, correct=self.correct)

    def efficiency(self, **columns: Any) -> list[float]:
        """What each local rollout saved, where it counts."""
        gates = self.reward.gates(self.correct, self.group_size)
        columns["log_metric"]("gate", sum(gates) / len(gates))
        ratios = columns["token_ratio"], columns["latency_ratio"]
        return self.reward.efficiency(gates, *ratios)

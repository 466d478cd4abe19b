"""The sparsity of each rollout of a group: its `retention_p` and the group's selector.

arXiv 2504.18579: the setup of both versions uses eight values from 0.94 to 0.975, one per rollout
(`grid`); the text of v1 draws p ~ U(0, 1) (`uniform`). Table 4 replaces top-p with other selectors
but does not state their training values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sf.published import INFERENCE_RETENTION_P
from sf.selection import Policy, Threshold, TopK, TopP
from sf.training.parameters import RunParameters
from sf.training.trainer_config import Uniform

__all__ = ["RetentionSchedule"]

_STREAM = 0x6C6576656C73
"""Separates these draws from those of sampling, which have the same seed, step and place."""


@dataclass(frozen=True)
class RetentionSchedule:
    """`retention_p` of a run's rollouts.

    Attributes:
        selector: what `retention_p` is: "top_p" (share of the probes' mass), "top_k" (share of the
            tokens) or "threshold" (least mean attention weight).
        grid: the values that the rollouts of a group take in turn; empty with `span`.
        span: lowest and highest value of a uniform draw; None with `grid`.
        group_size: rollouts per question.
        seed: of the draws.
    """

    selector: str
    grid: tuple[float, ...]
    span: tuple[float, float] | None
    group_size: int
    seed: int

    @classmethod
    def of(cls, p: RunParameters) -> RetentionSchedule:
        """From the parameters."""
        given, group_size = p.objective.retention_p, p.objective.group_size
        grid, span = ((), (given.low, given.high)) if isinstance(given, Uniform) else (given, None)
        return cls(p.objective.rollout_selector, tuple(grid), span, group_size, p.seed)

    def __call__(self, step: int, places: Sequence[int]) -> list[float]:
        """`retention_p` of one step's rollouts.

        A draw depends only on seed, step and place, so it is the same for any number of ranks and
        after a resume. The range excludes its lower and includes its upper end: p is never 0.

        Args:
            step: steps finished before.
            places: of the rollouts in the global batch, in which groups are neighbours.
        """
        if self.span is None:
            return [self.grid[place % len(self.grid)] for place in places]
        low, high = self.span
        draws = [np.random.default_rng([_STREAM, self.seed, step, place]) for place in places]
        return [float(high - (high - low) * rng.random()) for rng in draws]

    def policy(self, retention_p: Sequence[float]) -> Policy:
        """The selector with one `retention_p` per rollout."""
        selectors: dict[str, Any] = {"top_p": TopP, "top_k": TopK, "threshold": Threshold}
        return selectors[self.selector](list(retention_p))

    @property
    def method(self) -> str:
        """The selector as a key of `sf.baselines.METHODS`."""
        return "zipvl" if self.selector == "top_p" else self.selector

    @property
    def densest(self) -> float:
        """The `retention_p` that keeps most tokens."""
        values = self.span or self.grid
        return min(values) if self.selector == "threshold" else max(values)

    @property
    def inference(self) -> float:
        """The `retention_p` for the trained model: the densest one of training.

        Full attention is excluded: if training includes it, the value is at most the paper's 0.975.
        """
        if self.span is not None:
            low, high = self.span
            if self.selector == "threshold":
                return low
            return min(high, INFERENCE_RETENTION_P) if self.selector == "top_p" else high
        sparse = [value for value in self.grid if not self.policy([value]).dense]
        if not sparse:
            return INFERENCE_RETENTION_P if self.selector == "top_p" else self.densest
        return min(sparse) if self.selector == "threshold" else max(sparse)

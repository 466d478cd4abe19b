"""How strongly the pathwise sparsity term counts: schedule, layers, or a ratio to be reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sf.training.objectives import Pathwise
from sf.training.parameters import RunParameters

__all__ = ["PathwiseWeight"]

BAND = 0.4
"""Above the target and relative to it, where the weight begins to fade; at the target it is 0."""

SPAN = 32.0
"""How many times larger or smaller than it began the dual variable becomes at most."""


@dataclass
class PathwiseWeight:
    """The weight of the term, step by step.

    With a target the weight follows a dual variable, that of "minimise the loss subject to token
    ratio <= target": it starts at `weight` and is multiplied by (ratio / target) ** (`dual_rate` /
    `total_steps`) a step, so that it grows above the target and shrinks below it, by as much over
    a run whatever its length, and finds a weight of another order of magnitude in time. It stays
    within `SPAN` of where it started: a run too short for its target does not end in the term
    alone. The ratio answers late, goes on falling for a while and hardly rises again by itself, so
    the dual variable alone would fall through the target: it is in full force while the ratio is
    `BAND` above the target, fades from there and is in none at it.

    Attributes:
        weight: in force without a target; else where the dual variable starts.
        gate: count right rollouts only.
        layers: "even", "deeper" (proportional to the layer's number) or "fuller" (to the share of
            tokens that the layer keeps in this step's rollouts).
        schedule: "constant", "rising" (linear, full at the last step) or "falling" (from full at
            the first step).
        total_steps: of the run.
        target: token ratio of the rollouts at the densest `retention_p` (of all, where each draws
            its own); 0: none.
        dual_rate: see above.
        dual: the dual variable; saved with each checkpoint.
    """

    weight: float
    gate: bool
    layers: str
    schedule: str
    total_steps: int
    target: float = 0.0
    dual_rate: float = 20.0
    dual: float = field(init=False)

    def __post_init__(self) -> None:
        self.dual = self.weight

    @classmethod
    def of(cls, p: RunParameters) -> PathwiseWeight:
        """From the parameters."""
        assert isinstance(p.objective, Pathwise)
        term, steps = p.objective.pathwise, p.train.steps
        weight = cls(term.weight, term.gate, term.layers, term.schedule, steps)
        if term.target is not None:
            weight.target, weight.dual_rate = term.target.token_ratio, term.target.dual_rate
        return weight

    def of_step(
        self, step: int, rollouts: Mapping[str, Tensor], densest: float | None
    ) -> tuple[float, float, Tensor]:
        """The weight of a step; called once a step.

        Args:
            step: steps finished before.
            rollouts: values of all ranks' rollouts by the names of `Rollout.figures`.
            densest: the `retention_p` whose rollouts count; None: all of them do.

        Returns:
            weight, token ratio at that `retention_p`, and (J,) the layers' shares.
        """
        ratios = rollouts["token_ratio"]
        if densest is not None:
            values = rollouts["retention_p"]
            ratios = ratios[(values - densest).abs() == (values - densest).abs().min()]
        ratio = float(ratios.mean())
        layers = [v.mean() for name, v in rollouts.items() if name.startswith("token_ratio_layer/")]
        return self.advance(step, ratio), ratio, self.shares(torch.stack(layers))

    def advance(self, step: int, ratio: float) -> float:
        """The weight, with the dual variable moved on.

        Args:
            step: steps finished before.
            ratio: this step's token ratio at the densest `retention_p`.
        """
        if self.target:
            moved = self.dual * (ratio / self.target) ** (self.dual_rate / self.total_steps)
            self.dual = min(max(moved, self.weight / SPAN), self.weight * SPAN)
            excess = ratio / self.target - 1.0
            return self.dual * min(1.0, max(0.0, excess / BAND))
        rising = (step + 1) / self.total_steps
        share = {"constant": 1.0, "rising": rising, "falling": 1.0 - step / self.total_steps}
        return self.weight * share[self.schedule]

    def counted(self, correct: Tensor) -> Tensor:
        """(R,), how much each rollout counts: 1 or 0.

        Args:
            correct: (R,) 1.0 or 0.0.
        """
        return correct if self.gate else torch.ones_like(correct)

    def shares(self, layer_ratios: Tensor) -> Tensor:
        """(J,), the layers' parts of the weight; sums to 1.

        Args:
            layer_ratios: (J,) mean token ratio of each layer in this step.
        """
        if self.layers == "even":
            parts = torch.ones_like(layer_ratios)
        elif self.layers == "deeper":
            parts = torch.arange(1.0, len(layer_ratios) + 1, device=layer_ratios.device)
        else:
            parts = layer_ratios
        return parts / parts.sum()

    def state_dict(self) -> dict[str, float]:
        """What a resumed run needs."""
        return {"dual": self.dual}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state_dict`."""
        self.dual = float(state["dual"])

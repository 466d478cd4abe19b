"""The weight of the pathwise sparsity term: schedule, layers, target ratio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sf.training.objectives import Distil, Pathwise
from sf.training.parameters import RunParameters

__all__ = ["LaggedWeight", "PathwiseWeight"]

BAND = 0.4
"""The weight fades from this far above the target, relative to it, to 0 at the target."""

SPAN = 32.0
"""Largest factor between the dual variable and its initial value, either way."""


@dataclass
class PathwiseWeight:
    """The weight of the term, step by step.

    With a target, the weight follows the dual variable of "minimise the loss subject to token
    ratio <= target". It starts at `weight` and each step multiplies it by (ratio / target) **
    (`dual_rate` / `total_steps`): the same growth over a run of any length. It stays within `SPAN`
    of its start, so that the term cannot dominate a run too short for its target. The ratio
    responds slowly, overshoots and hardly recovers; the weight therefore decreases to 0 over the
    last `BAND` above the target.

    Attributes:
        weight: without a target, the weight; else the dual variable's initial value.
        gate: apply the term to right rollouts only.
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
        """The weight of a step; called once per step.

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
        """(R,), 1 for the rollouts that the term applies to, else 0.

        Args:
            correct: (R,) 1.0 or 0.0.
        """
        return correct if self.gate else torch.ones_like(correct)

    def shares(self, layer_ratios: Tensor) -> Tensor:
        """(J,), each layer's share of the weight; they sum to 1.

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
        """The state for a resumed run."""
        return {"dual": self.dual}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state_dict`."""
        self.dual = float(state["dual"])


@dataclass
class LaggedWeight:
    """A weight that follows the previous step's token ratio, as a step's own is known too late.

    The first step has no previous one and uses the initial weight.

    Attributes:
        weight: with a target; updated once per step.
        current: the weight of the latest step.
        total, rows: sum of the ratios observed since then, and their number; saved with each
            checkpoint, as `current` is.
    """

    weight: PathwiseWeight
    current: float = field(init=False)
    total: float = 0.0
    rows: int = 0
    _step: int = -1

    def __post_init__(self) -> None:
        self.current = self.weight.weight

    @classmethod
    def of(cls, p: RunParameters) -> LaggedWeight:
        """From the parameters."""
        assert isinstance(p.objective, Distil)
        own = p.objective
        weight = PathwiseWeight(
            own.sparsity_weight, gate=False, layers="even", schedule="constant",
            total_steps=p.train.steps, target=own.target_token_ratio, dual_rate=own.dual_rate,
        )  # fmt: skip
        return cls(weight)

    def of_step(self, step: int) -> float:
        """The weight of a step, which is the same for all its micro-batches.

        Args:
            step: steps finished before.
        """
        if step != self._step and self.rows:
            self.current = self.weight.advance(step, self.total / self.rows)
            self.total, self.rows = 0.0, 0
        self._step = step
        return self.current

    def observe(self, figures: Mapping[str, Tensor], retention_p: float) -> Tensor:
        """Note the token ratios of a micro-batch at a `retention_p`.

        Args:
            figures: `token_ratio` and `retention_p` of all ranks' rows, (R,) each.
            retention_p: where the target is to be reached.

        Returns:
            the ratios of the rows at `retention_p`, perhaps none.
        """
        ratios = figures["token_ratio"][(figures["retention_p"] - retention_p).abs() < 1e-6]
        self.total += float(ratios.double().sum())
        self.rows += len(ratios)
        return ratios

    def state_dict(self) -> dict[str, Any]:
        """The state for a resumed run."""
        kept = {"current": self.current, "total": self.total, "rows": self.rows}
        return {**self.weight.state_dict(), **kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.weight.load_state_dict({"dual": state["dual"]})
        self.current, self.total = float(state["current"]), float(state["total"])
        self.rows = int(state["rows"])

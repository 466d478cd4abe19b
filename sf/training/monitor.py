"""Callbacks of a training run: logged figures, progress with ETA, warnings, finite gradients."""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
from transformers import TrainerCallback

from sf.errors import TrainingCollapse
from sf.training.cost import CostEstimate
from sf.training.sharding import local

__all__ = ["FIGURES", "FiniteGradients", "Monitor"]

FIGURES = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "reward": "reward",
    "reward_std": "reward_std",
    "accuracy": "accuracy",
    "rewards/correctness/mean": "correctness",
    "rewards/efficiency/mean": "efficiency",
    "gate": "gate",
    "kl": "kl",
    "entropy": "entropy",
    "frac_reward_zero_std": "zero_advantage_share",
    "clip_ratio/region_mean": "clipped_share",
    "completions/mean_length": "completion_tokens",
    "completions/clipped_ratio": "truncated_share",
    "step_time": "step_s",
    "token_ratio": "token_ratio",
    "retention_p": "retention_p",
    "effective_ratio": "effective_ratio",
    "latency_ratio": "latency_ratio",
    "pathwise_weight": "pathwise_weight",
    "pathwise_ratio": "pathwise_ratio",
    "sharpness": "sharpness",
    "sparsity_term": "sparsity_term",
    "logp_gap": "logp_gap",
}
"""TRL's or the trainer's name -> the name in history and MLflow."""


class Monitor(TrainerCallback):
    """Figures, progress and warnings of a run.

    Args:
        tracker: `log(step, values)`.
        counter: `sf.progress.Progress`, advanced once per step.
        cost: its figures are logged too.
        patience: steps for which a metric must be bad before a warning.
        max_logp_gap: bound on |logp(train) - logp(rollout)|.
    """

    def __init__(
        self,
        tracker: Any,
        counter: Any,
        cost: CostEstimate | None = None,
        patience: int = 50,
        max_logp_gap: float = 0.5,
    ) -> None:
        self.tracker, self.counter, self.cost = tracker, counter, cost
        self.patience, self.max_logp_gap = patience, max_logp_gap
        self.latest: dict[str, float] = {}
        self._bad_since: dict[str, int] = {}
        self._tokens: tuple[float, float] | None = None

    @staticmethod
    def figures(logs: dict[str, Any]) -> dict[str, float]:
        """TRL's logs under this project's names, without missing ones."""
        known = {new: logs[old] for old, new in FIGURES.items() if logs.get(old) is not None}
        known |= {key: v for key, v in logs.items() if key.startswith("token_ratio_layer/")}
        return {name: float(value) for name, value in known.items()}

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Log the figures and warn of trouble."""
        logs = logs or {}
        if not state.is_world_process_zero or "loss" not in logs:
            return
        values = self.figures(logs)
        now, seen = time.monotonic(), float(state.num_input_tokens_seen)
        if self._tokens is not None:
            values["tokens_per_s"] = (seen - self._tokens[1]) / (now - self._tokens[0])
        self._tokens = (now, seen)
        if torch.cuda.is_available():
            values["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.latest = values
        self.tracker.log(state.global_step, values | (self.cost.figures if self.cost else {}))
        self._warn(state.global_step, values)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One step of progress."""
        if state.is_world_process_zero:
            shown = [f"{n} {self.latest[n]:.3f}" for n in ("accuracy", "token_ratio", "kl")
                     if n in self.latest]  # fmt: skip
            self.counter.advance(note=", ".join(shown))

    def _warn(self, step: int, values: dict[str, float]) -> None:
        troubles = {
            "no answer was right": values.get("accuracy") == 0.0,
            "all rewards of each group are equal: no gradient": values.get("zero_advantage_share")
            == 1.0,
            "almost no prompt tokens are kept": values.get("token_ratio", 1.0) < 0.02,
            "answers are truncated; raise max_completion_tokens": values.get("truncated_share", 0.0)
            > 0.9,
            "log-probabilities of rollout and training differ": values.get("logp_gap", 0.0)
            > self.max_logp_gap,
        }
        for cause, lasts in troubles.items():
            if not lasts:
                self._bad_since.pop(cause, None)
            elif step - self._bad_since.setdefault(cause, step) >= self.patience:
                warnings.warn(f"step {step}, for {self.patience} steps: {cause}", stacklevel=2)
                self._bad_since[cause] = step


class FiniteGradients(TrainerCallback):
    """Refuses an optimiser step whose gradient is not finite."""

    def on_pre_optimizer_step(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """Called after clipping, before the weights change.

        Raises:
            TrainingCollapse: some gradient is not finite.
        """
        gradients = [local(p.grad) for p in model.parameters() if p.grad is not None]
        if not gradients:
            return
        norms = torch.stack(torch._foreach_norm(gradients))
        if not bool(norms.isfinite().all()):
            raise TrainingCollapse(
                "gradient",
                None,
                f"is not finite at step {state.global_step + 1}",
                "the last checkpoint is intact; lower learning_rate or max_grad_norm",
            )

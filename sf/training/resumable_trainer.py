"""Additions of all trainers to transformers': complete resumption, own metrics, finite loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import Trainer
from transformers.trainer import SCHEDULER_NAME

from sf.errors import TrainingCollapse
from sf.models import load_model
from sf.training.sharding import (
    is_sharded,
    load_optimizer,
    load_weights,
    save_optimizer,
    whole_weights,
)
from sf.training.step_metrics import StepFigures

__all__ = ["ResumableTrainer"]


class ResumableTrainer(Trainer):
    """A base class placed before a trainer of transformers or TRL.

    transformers 5.23 saves Qwen's weights under their published names but loads them by the
    module's names: none match, and it continues from the base model with only a warning. Hence the
    override of the private `_load_from_checkpoint`, whose signature is tested.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._collected = {mode: StepFigures(self._gather) for mode in ("train", "eval")}
        super().__init__(*args, **kwargs)
        self.sharded = is_sharded(self.model)
        # Then it is neither wrapped for data parallelism nor sharded again.
        self.is_distributed_loading_by_transformers |= self.sharded

    @property
    def mode(self) -> str:
        """ "train" or "eval", as TRL tells them apart."""
        return "train" if cast(Any, self.model).training else "eval"

    @property
    def _figures(self) -> StepFigures:
        """The figures of the current mode: an evaluation's are not the training's."""
        return self._collected[self.mode]

    def _gather(self, values: torch.Tensor) -> torch.Tensor:
        """All ranks' values, first rank first."""
        gathered: torch.Tensor = self.accelerator.gather(values.to(self.accelerator.device))
        return gathered

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The checkpoint's weights into the policy, every one of them."""
        if hasattr(self.model, "peft_config"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        folder, policy = Path(resume_from_checkpoint), cast(Any, self.model)
        if self.sharded:
            load_weights(policy, load_model(folder).state_dict() if self.args.should_save else {})
        else:
            policy.load_state_dict(load_model(folder).state_dict())

    def whole_weights(self) -> dict[str, Any] | None:
        """The whole weights of a sharded model, on the first rank; else None. Collective."""
        return whole_weights(cast(Any, self.model)) if self.sharded else None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The parent's; of a sharded model the whole weights, written by the first rank."""
        if not self.sharded:
            super().save_model(output_dir, _internal_call)
            return
        weights = self.whole_weights()
        if self.args.should_save:
            self._save(output_dir, state_dict=weights)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """The parent's; each rank its own part of a sharded optimiser."""
        if not self.sharded:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_optimizer(cast(Any, self.model), self._bare_optimizer(), Path(output_dir))
        if self.args.should_save:
            schedule = cast(Any, self.lr_scheduler).state_dict()
            torch.save(schedule, Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Load the files of `_save_optimizer_and_scheduler`."""
        if checkpoint is None or not self.sharded:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_optimizer(cast(Any, self.model), self._bare_optimizer(), Path(checkpoint))
        saved = torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True)
        cast(Any, self.lr_scheduler).load_state_dict(saved)

    def _bare_optimizer(self) -> torch.optim.Optimizer:
        return cast(Any, self.optimizer).optimizer  # without accelerate's wrapper

    def _require_finite(self, loss: torch.Tensor) -> None:
        """
        Raises:
            TrainingCollapse: the loss is not finite on some rank.
        """
        if not bool(self._gather(loss.detach().float().isfinite().reshape(1)).all()):
            raise TrainingCollapse(
                "loss",
                float(loss.detach()),
                f"is not finite at step {self.state.global_step + 1}",
                "the last checkpoint is intact; lower learning_rate or raise beta",
            )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The parent's, with this trainer's own figures added as means since the last call.

        An evaluation's are named `eval_...`.
        """
        prefix = "" if self.mode == "train" else "eval_"
        logs.update({prefix + name: mean for name, mean in self._figures.drain().items()})
        super().log(logs, start_time)

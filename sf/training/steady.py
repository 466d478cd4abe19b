"""What every trainer here adds to transformers': whole resumption, own figures, a finite loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from transformers import Trainer

from sf.errors import TrainingCollapse
from sf.models import load_model
from sf.training.figures import StepFigures

__all__ = ["SteadyTrainer"]


class SteadyTrainer(Trainer):
    """A base class to stand before a trainer of transformers or TRL.

    transformers 5.23 saves Qwen's weights under their published names and resumes by the module's
    own: nothing fits, and it goes on from the base model with only a warning. Hence the private
    name `_load_from_checkpoint`, whose signature is tested.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._figures = StepFigures(self._gather)
        super().__init__(*args, **kwargs)

    def _gather(self, values: torch.Tensor) -> torch.Tensor:
        """All ranks' values, first rank first."""
        gathered: torch.Tensor = self.accelerator.gather(values.to(self.accelerator.device))
        return gathered

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The checkpoint's weights into the policy, every one of them."""
        sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if sharded or hasattr(self.model, "peft_config"):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = load_model(Path(resume_from_checkpoint))
        cast(Any, self.model).load_state_dict(saved.state_dict())

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
        """The parent's, with this trainer's own figures added as means since the last call."""
        logs.update(self._figures.drain())
        super().log(logs, start_time)

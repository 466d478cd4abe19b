"""Early stopping: a run whose metrics fall far below those of its first steps ends with an error.

Three metrics can fall while the reward rises: accuracy (efficiency outweighs correctness), the
token ratio (almost nothing is attended) and the answers' entropy (all rollouts of a group are
alike). The model of the first steps is close to the base model, which is thus the reference.
"""

from __future__ import annotations

import math
import shutil
import statistics
import warnings
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from sf.errors import TrainingCollapse
from sf.training.checkpoints import last_sealed
from sf.training.parameters import RunParameters

__all__ = ["CollapseWatch", "kept_checkpoints"]

ADVICE = {
    "accuracy": "lower learning_rate, raise beta, or raise the lowest retention_p",
    "token_ratio": "lower pathwise.weight or raise pathwise.target.token_ratio, lower "
    "learning_rate, or raise the lowest retention_p",
    "entropy": "raise beta or temperature, or lower learning_rate",
}


def kept_checkpoints(p: RunParameters) -> int:
    """How many checkpoints to keep, so that one precedes a collapse that takes `patience` steps."""
    patience = p.train.collapse.patience if p.train.collapse else 0
    return max(2, math.ceil(patience / p.train.save_every) + 1)


class CollapseWatch(TrainerCallback):
    """Ends a run that has collapsed.

    A metric has collapsed when its mean over the last `patience` steps is below the configured
    share of its mean over the first `patience` steps; a warning appears half-way. Both means cover
    at least one log entry. Checkpoints of the last `patience` steps are then removed, so that a
    repeated call continues from one written before the collapse. The state of this class is
    saved with each checkpoint.

    Args:
        p: the parameters; without `train.collapse` no metric is watched, and a share of 0 disables
            its metric.
    """

    def __init__(self, p: RunParameters) -> None:
        watched = p.train.collapse
        self.patience = watched.patience if watched else 0
        self.entries = max(1, math.ceil(self.patience / p.train.log_every))
        self.shares: dict[str, float] = watched.model_dump(exclude={"patience"}) if watched else {}
        self.first: dict[str, list[float]] = {name: [] for name in self.shares}
        self.recent = {name: deque[float](maxlen=self.entries) for name in self.shares}
        self._warned: set[str] = set()

    def state_dict(self) -> dict[str, Any]:
        """The state for a resumed run."""
        return {
            "first": self.first,
            "recent": {name: list(values) for name, values in self.recent.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.first = {name: list(state["first"][name]) for name in self.shares}
        self.recent = {
            name: deque(state["recent"][name], maxlen=self.entries) for name in self.shares
        }

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Called on every rank with the same figures.

        Raises:
            TrainingCollapse: a metric has collapsed.
        """
        for name, share in self.shares.items():
            value = (logs or {}).get(name)
            if not self.patience or not share or value is None:
                continue
            if len(self.first[name]) < self.entries:
                self.first[name].append(float(value))
                continue
            self.recent[name].append(float(value))
            if len(self.recent[name]) == self.entries:
                self._judge(name, share, args, state)

    def _judge(self, name: str, share: float, args: Any, state: Any) -> None:
        now, then = statistics.fmean(self.recent[name]), statistics.fmean(self.first[name])
        if now >= (1 + share) / 2 * then:
            self._warned.discard(name)
            return
        fell = f"mean over {self.patience} steps was {then:.4g} at first"
        if now >= share * then:
            if name not in self._warned and state.is_world_process_zero:
                self._warned.add(name)
                warnings.warn(
                    f"step {state.global_step}: {name} is {now:.4g}, its {fell}; below "
                    f"{share * then:.4g} the run ends ({ADVICE[name]})",
                    stacklevel=2,
                )
            return
        left = self._last_good(Path(args.output_dir), state)
        raise TrainingCollapse(
            name,
            round(now, 6),
            f"its {fell}, and below {share:g} of that (collapse.{name}) the run counts as "
            f"collapsed, at step {state.global_step}",
            f"{ADVICE[name]}; or watch less strictly. {left}",
        )

    def _last_good(self, folder: Path, state: Any) -> str:
        """Remove the checkpoints of the collapse and describe the remaining one."""
        begun = state.global_step - self.patience
        for path in folder.glob("checkpoint-*"):
            if state.is_world_process_zero and int(path.name.rpartition("-")[2]) > begun:
                shutil.rmtree(path)
        good = last_sealed(folder) if state.is_world_process_zero else None
        if good is None:
            return "No checkpoint precedes the collapse"
        return (
            f"The last checkpoint from before, a whole model, is {good}: copy it before you "
            "change a parameter, which restarts the run"
        )

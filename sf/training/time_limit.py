"""Training stops at the end of a step, with a checkpoint, when its job is about to end."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback

from sf.interruption import LIMIT, remaining_seconds, requested
from sf.ranks import gathered

__all__ = ["TimeLimit"]

MARGIN_SECONDS = 15.0


class TimeLimit(TrainerCallback):
    """Asks for a checkpoint and the end of the loop; belongs behind what writes checkpoints.

    Training stops on a signal, or when the remaining time is less than twice the sum of the
    longest step and the longest checkpoint so far. All ranks stop at the same step.
    The weights equal those of an uninterrupted run; if `log_every` is above 1, the next logged mean
    covers only the steps after the checkpoint.

    Attributes:
        cause: the signal that stopped the loop; None while it runs and when it ends by itself.
    """

    def __init__(self) -> None:
        self.cause: str | None = None
        self._begun = self._ended = 0.0
        self._longest_step = self._longest_save = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._begun = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop if any rank has to; the last step ends the loop anyway."""
        self._ended = time.monotonic()
        self._longest_step = max(self._longest_step, self._ended - self._begun)
        cause = next(filter(None, gathered(requested() or self._limit())), None)
        if cause is None or state.global_step >= state.max_steps:
            return
        self.cause = cause
        control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """A checkpoint is written and sealed."""
        self._longest_save = max(self._longest_save, time.monotonic() - self._ended)

    def _limit(self) -> str | None:
        remaining = remaining_seconds()
        if remaining is None:
            return None
        needed = 2 * (self._longest_step + self._longest_save) + MARGIN_SECONDS
        return LIMIT if remaining < needed else None

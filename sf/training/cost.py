"""What a run will take: said before it starts, and again when its first steps were timed."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from sf.training.parameters import RunParameters

__all__ = ["CostEstimate", "duration"]

TIMED_STEPS = 4
"""Steps until the estimate; the first one, which fills caches and compiles, is left out."""


def duration(seconds: float) -> str:
    """A time in its largest two units."""
    minutes, hours = seconds / 60, seconds / 3600
    if hours >= 48:
        return f"{hours // 24:.0f} d {hours % 24:.0f} h"
    if minutes >= 90:
        return f"{minutes // 60:.0f} h {minutes % 60:.0f} min"
    return f"{minutes:.0f} min" if seconds >= 100 else f"{seconds:.0f} s"


class CostEstimate(TrainerCallback):
    """Prints the cost of a run.

    Args:
        p: the parameters.
        checkpoint_gib: size of one checkpoint.
        copies: checkpoints kept.
        unit: what a question is answered by, in the plural.
        clock: seconds.

    Attributes:
        figures: estimated_hours, estimated_tokens (prompt and answer, all rollouts) and
            estimated_disk_gib of the whole run, once known; logged with every entry.
    """

    def __init__(
        self, p: RunParameters, checkpoint_gib: float, copies: int, unit: str, clock: Any = None
    ) -> None:
        self.p, self.gib, self.copies, self.unit = p, checkpoint_gib, copies, unit
        self.clock = clock or time.monotonic
        self.figures: dict[str, float] = {}
        self._begun, self._spent = 0.0, list[float]()
        self._tokens: float | None = None

    def before(self, folder: Path) -> str:
        """One line, before anything has run.

        Args:
            folder: of the checkpoints.
        """
        p, free = self.p, shutil.disk_usage(folder).free / 2**30
        rollouts = p.train_steps * p.questions_per_step * p.group_size
        return (
            f"{p.train_steps} steps of {p.questions_per_step} questions x {p.group_size} "
            f"{self.unit}, {rollouts:,} in all, at most {rollouts * p.max_completion_tokens:,} "
            f"answer tokens; a checkpoint of {self.gib:.2f} GiB every {p.save_every} steps, "
            f"{self.copies} kept, {free:.0f} GiB free; the time after {TIMED_STEPS} steps"
        )

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock."""
        self._begun = self.clock()
        if len(self._spent) == 1:
            self._tokens = float(state.num_input_tokens_seen)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop it; after a few steps say what the run takes."""
        if len(self._spent) >= TIMED_STEPS:
            return
        self._spent.append(self.clock() - self._begun)
        if len(self._spent) < TIMED_STEPS:
            return
        each = statistics.median(self._spent[1:])
        left = (state.max_steps - state.global_step) * each
        self.figures = {
            "estimated_hours": state.max_steps * each / 3600,
            "estimated_disk_gib": self.gib * (self.copies + 1),
        }
        tokens = float(state.num_input_tokens_seen) - (self._tokens or 0.0)
        per_step = tokens / (TIMED_STEPS - 1)
        if per_step:
            self.figures["estimated_tokens"] = state.max_steps * per_step
        if state.is_world_process_zero:
            print(self._line(each, left, per_step), file=sys.stderr, flush=True)

    def _line(self, each: float, left: float, per_step: float) -> str:
        text = f"about {each:.3g} s a step: {duration(self.figures['estimated_hours'] * 3600)} "
        text += f"in all, {duration(left)} left"
        if per_step:
            text += f"; {self.figures['estimated_tokens']:,.0f} tokens"
        if torch.cuda.is_available():
            text += f"; {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB of GPU memory"
        return text + f"; up to {self.figures['estimated_disk_gib']:.2f} GiB of checkpoints"

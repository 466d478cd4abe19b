"""The cost of a run: estimated before it starts, and again after its first steps."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from sf.training.parameters import RunParameters
from sf.training.sharding import kept_whole

__all__ = ["CostEstimate", "RankMemory", "duration"]

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


@dataclass(frozen=True)
class RankMemory:
    """Bytes that each rank needs besides activations.

    Attributes:
        held: all the time: float32 weights, gradients and Adam's two moments, the reference.
        gathered: in addition, during sampling and the reference's forward passes.
    """

    held: int
    gathered: int

    @classmethod
    def of(cls, p: RunParameters, model: nn.Module, ranks: int, reference: bool) -> RankMemory:
        """Compute the estimate, before the weights are sharded.

        Args:
            p: the parameters.
            model: the policy, whole.
            ranks: processes of the job.
            reference: whether a second model is held.
        """
        every = sum(w.numel() for w in model.parameters())
        trained = sum(w.numel() for w in model.parameters() if w.requires_grad)
        if p.train.sharding == "none":
            return cls(4 * every * (1 + reference) + 12 * trained, 0)
        whole = sum(w.numel() for w in kept_whole(model))
        divided = every - whole
        copies = 1 + reference
        held = 4 * whole + (4 * divided * copies + 12 * trained) // ranks
        return cls(held, (2 if p.runtime.dtype == "bfloat16" else 4) * divided)

    def __str__(self) -> str:
        more = f" (and {self.gathered / 2**30:.2f} while answers are sampled)"
        return (
            f"{self.held / 2**30:.2f} GiB on each rank for weights, gradients, optimiser and "
            f"reference{more if self.gathered else ''}, activations not counted"
        )


class CostEstimate(TrainerCallback):
    """Prints the cost of a run.

    Args:
        p: the parameters.
        checkpoint_gib: size of one checkpoint.
        copies: checkpoints kept.
        unit: name of the answers, in the plural.
        memory: of a rank.
        clock: seconds.

    Attributes:
        figures: estimated_hours, estimated_tokens (prompt and answer, all rollouts) and
            estimated_disk_gib of the whole run, once known; logged with every entry.
    """

    def __init__(
        self,
        p: RunParameters,
        checkpoint_gib: float,
        copies: int,
        unit: str,
        memory: RankMemory,
        clock: Any = None,
    ) -> None:
        self.p, self.gib, self.copies, self.unit = p, checkpoint_gib, copies, unit
        self.memory = memory
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
        train, group_size = p.train, p.objective.group_size
        longest = p.answering.max_completion_tokens
        rollouts = train.steps * train.questions_per_step * group_size
        return (
            f"{train.steps} steps of {train.questions_per_step} questions x {group_size} "
            f"{self.unit}, {rollouts:,} in all, at most {rollouts * longest:,} "
            f"answer tokens; a checkpoint of {self.gib:.2f} GiB every {train.save_every} steps, "
            f"{self.copies} kept, {free:.0f} GiB free; {self.memory}; "
            f"the time after {TIMED_STEPS} steps"
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

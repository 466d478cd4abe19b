"""Training a tiny base model from scratch on packed sequences, resumable to the same weights.

The media and questions of a step depend only on the seed and the step's number. A killed run
therefore continues from its last checkpoint to the same weights as an uninterrupted run, bit for
bit on the same machine with the same thread count.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sf.progress import progress
from sf.scratch.optimizers import hybrid_optimizers, scale_rates, step_all
from sf.scratch.partial_state import read_state, write_state
from sf.scratch.sequence_packing import Branch, pack, packed_loss
from sf.scratch.vision_features import Prefix

__all__ = ["Tokens", "TrainingSchedule", "train_from_scratch"]

SAVE_SECONDS = 20.0
_WARMUP_STEPS, _DECAY_SHARE = 30, 0.4

Batch = tuple[Sequence[Sequence[Branch]], Tensor, Prefix]
"""Questions about each of B media, their visual tokens [B, V, D], and the prefix they share."""


@dataclass(frozen=True)
class TrainingSchedule:
    """Number of steps, learning rate, batches and logging.

    Attributes:
        steps: optimizer steps.
        rate: AdamW's peak learning rate.
        batch_at: step -> its batch.
        log: called every `log_every` steps with the step and its metrics.
    """

    steps: int
    rate: float
    batch_at: Callable[[int], Batch]
    log: Callable[[int, dict[str, float]], None]
    log_every: int = 20


class Tokens:
    """Prompts and replies as token ids, each text tokenised once.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, tuple[int, ...]] = {}
        self._end = "<|im_end|>\n<|im_start|>assistant\n"
        self.pad = int(tokenizer.pad_token_id)

    def _ids(self, text: str) -> tuple[int, ...]:
        if text not in self._known:
            self._known[text] = tuple(self._tokenizer(text)["input_ids"])
        return self._known[text]

    def branch(self, prompt: str, reply: str) -> Branch:
        """The tokens after the vision part: question, generation prompt, reply."""
        return Branch(self._ids(prompt + self._end), self._ids(reply + "<|im_end|>"))


def _rate_share(step: int, steps: int) -> float:
    """Linear warm-up, plateau, and linear decay to 1/50."""
    warm = min(1.0, (step + 1) / min(_WARMUP_STEPS, steps))
    return warm * min(1.0, (1.0 - step / steps) / _DECAY_SHARE + 0.02)


def _resume(path: Path, model: Any, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Load a complete checkpoint if one exists; return the number of completed steps."""
    state = read_state(path)
    if state is None:
        return 0
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])


def train_from_scratch(model: Any, pad: int, schedule: TrainingSchedule, checkpoint: Path) -> None:
    """Train the language model, in place; the vision tower stays as it is.

    Args:
        model: of a supported family; on return in evaluation mode.
        pad: id of the padding token.
        schedule: steps, rate and batches.
        checkpoint: file for model, optimizers and step, written every 20 s.
    """
    model.model.visual.requires_grad_(False)
    model.train()
    optimizers = hybrid_optimizers(model.named_parameters(), schedule.rate)
    done = _resume(checkpoint, model, optimizers)
    saved = time.monotonic()
    with progress("base", schedule.steps, done) as shown:
        for step in range(done, schedule.steps):
            branches, features, prefix = schedule.batch_at(step)
            packed = pack(prefix, branches, pad)
            loss = packed_loss(model, packed, features, prefix.visual)
            scale_rates(optimizers, _rate_share(step, schedule.steps))
            step_all(optimizers, loss)
            if (step + 1) % schedule.log_every == 0:
                schedule.log(step + 1, {"loss": loss.item()})
            if time.monotonic() - saved > SAVE_SECONDS:
                states = [optimizer.state_dict() for optimizer in optimizers]
                state = {"model": model.state_dict(), "optimizers": states, "step": step + 1}
                write_state(checkpoint, state)
                saved = time.monotonic()
            shown.advance(note=f"loss {loss.item():.3f}")
    model.eval()

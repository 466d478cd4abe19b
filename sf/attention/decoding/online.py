"""The decode loop for rows that arrive at any time, read token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sf.attention.decoding.loop import Answers, DecodeLoop, Prompts

__all__ = ["OnlineLoop", "Progress"]

# Replays of a recorded step between reads: a read synchronises, but clients wait for it.
_LOOK_EVERY = 8


@dataclass(frozen=True)
class Progress:
    """The progress of a row since the last read.

    Attributes:
        tokens: new tokens, including an end token.
        ended: whether the row has left the loop.
    """

    tokens: list[int]
    ended: bool


class OnlineLoop(DecodeLoop):
    """Rows enter one by one, each with a number given by the caller."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._seen: dict[int, int] = {}

    @property
    def free(self) -> int:
        """Number of free slots."""
        return self._rows.count(None)

    @property
    def busy(self) -> bool:
        return any(self._rows)

    def enter(self, prompts: Prompts, number: int) -> None:
        """Add the single row of `prompts`; a slot must be free."""
        slot = self._rows.index(None)
        self._put(prompts, [slot], [0])
        self._rows[slot] = number, 0
        self._seen[number] = 0

    @torch.inference_mode()
    def drop(self, number: int) -> None:
        """End a row early."""
        for slot, row in enumerate(self._rows):
            if row is not None and row[0] == number:
                self.step.finished[slot] = True

    def turn(self) -> dict[int, Progress]:
        """Generate a token for every row, or several if the step is recorded.

        Returns:
            The progress of each row since the last call, by number; rows that ended have left.
        """
        fresh = self._look()
        if self.busy:
            self._prepare()
            self._make(1 if self._replay is self.step else _LOOK_EVERY)
            for number, progress in self._look().items():
                before = fresh[number].tokens if number in fresh else []
                fresh[number] = Progress([*before, *progress.tokens], progress.ended)
        return fresh

    @torch.inference_mode()
    def _look(self) -> dict[int, Progress]:
        """Read new tokens and remove rows that have ended; on a CPU, compact the others."""
        if not self.busy:
            return {}
        made, ended = self.step.made.tolist(), self.step.finished[:, 0].tolist()
        fresh, whole = dict[int, Progress](), dict[int, Answers]()
        for slot, row in enumerate(self._rows):
            if row is None:
                continue
            number = row[0]
            tokens = self.step.written[slot, self._seen[number] : made[slot]].tolist()
            self._seen[number] = made[slot]
            fresh[number] = Progress(tokens, ended[slot])
            whole[number] = Answers([[]], [[]])
        self._leave(whole)
        for number, progress in fresh.items():
            if progress.ended:
                del self._seen[number]
        return fresh

"""The decode loop for rows that come at any time, watched token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from sf.attention.decoding.loop import Answers, DecodeLoop, Prompts

__all__ = ["OnlineLoop", "Progress"]

# Replays of a recorded step between two looks: a look waits for the device, a client for a look.
_LOOK_EVERY = 8


@dataclass(frozen=True)
class Progress:
    """What a row made since the last look.

    Attributes:
        tokens: new ones, an end token included.
        ended: the row has left the loop.
    """

    tokens: list[int]
    ended: bool


class OnlineLoop(DecodeLoop):
    """Rows enter one by one; each has a number that the caller gives."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._seen: dict[int, int] = {}

    @property
    def free(self) -> int:
        """Slots without a row."""
        return self._rows.count(None)

    @property
    def busy(self) -> bool:
        return any(self._rows)

    def enter(self, prompts: Prompts, number: int) -> None:
        """Take in the one row of `prompts`; there is a free slot."""
        slot = self._rows.index(None)
        self._put(prompts, [slot], [0])
        self._rows[slot] = number, 0
        self._seen[number] = 0

    @torch.inference_mode()
    def drop(self, number: int) -> None:
        """End a row before its time."""
        for slot, row in enumerate(self._rows):
            if row is not None and row[0] == number:
                self.step.finished[slot] = True

    def turn(self) -> dict[int, Progress]:
        """Make a token for every row, or several where the step is recorded.

        Returns:
            What each row made since the last call, by its number; rows that ended have left.
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
        """What is new; rows that have ended leave, and on a CPU the others move together."""
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

"""Continuous batching of answers: rows that end leave, waiting ones enter.

On CUDA a recorded graph is replayed, without Python between its kernels. It refers to the addresses
of the cache and of the step's tensors, within which rows enter and leave; a longer prompt that
needs wider buffers requires a new recording. On a CPU the same step is called for the remaining
rows and their entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sf.attention.decoding.buffers import DecodeCache
from sf.attention.decoding.choice import Choice, Rules
from sf.attention.decoding.step import Step
from sf.errors import ConfigError, EnvironmentFault

__all__ = ["Answers", "DecodeLoop", "Prompts", "Waiting"]

_WARM_UP = 3
# Replays between checks for ended rows; each check synchronises with the device.
_LOOK_EVERY = 32
# Steps before the step is recorded; most benchmark replies are shorter.
_FIRST_STEPS = 8


@dataclass
class Prompts:
    """Prompts that were prefilled together.

    Attributes:
        cache: of transformers, after the prefill.
        valid: bool (B, L), False on padding; None for no padding.
        token: int64 (B,), the first new token. logp: float32 (B,), its log-probability, if any.
        position: int64 (R, B), its position.
        choice: of further tokens, with the rows' states.
        limits: token limit of each row, including the first token.
        keep: keep the cache; by default it is emptied while it is read.
    """

    cache: Any
    valid: Tensor | None
    token: Tensor
    logp: Tensor | None
    position: Tensor
    choice: Choice
    limits: Sequence[int]
    keep: bool = False


@dataclass(frozen=True)
class Waiting:
    """Prompts to read once enough slots are free."""

    rows: int
    read: Callable[[], Prompts]


@dataclass(frozen=True)
class Answers:
    """The answers to the rows of one `Prompts`.

    Attributes:
        tokens: of each row, including the end token.
        logps: of the tokens; empty for a choice without log-probabilities.
    """

    tokens: list[list[int]]
    logps: list[list[float]]


class DecodeLoop:
    """Rows that are decoded together.

    Args:
        model: that `step.supported` accepts.
        slots: number of concurrent rows. room: most tokens after a row's first one.
        rules: end tokens and padding.
        graph: record and replay the step; by default on CUDA.

    Raises:
        EnvironmentFault: a graph was requested on a CPU.
    """

    step: Step

    def __init__(
        self,
        model: Any,
        slots: int,
        room: int,
        rules: Rules,
        *,
        graph: bool | None = None,
    ) -> None:
        self.model, self.rules = model, rules
        self.device = next(model.parameters()).device
        self.cache = DecodeCache(slots, room, self.device)
        cuda = self.device.type == "cuda"
        if graph and not cuda:
            raise EnvironmentFault(
                "graph", True, "a CPU has no graphs to replay", "leave graph to its default"
            )
        self.recorded = cuda if graph is None else graph
        self._rows: list[tuple[int, int] | None] = [None] * slots
        self._replay: Callable[[], None] | None = None
        self._moves = -1
        self._made = self._steps = 0

    # A fixed set of rows

    def start(self, prompts: Prompts, repeat: int = 1) -> None:
        """Fill all slots; `restart` returns to this state.

        Args:
            prompts: slots / `repeat` rows.
            repeat: number of adjacent copies of each row.
        """
        rows = [row for row in range(len(prompts.token)) for _ in range(repeat)]
        self._put(prompts, list(range(len(rows))), rows)
        self.step.keep_start()
        self._steps = _FIRST_STEPS
        self._prepare()

    def restart(self) -> None:
        """Return to the state after the prefill, except for the random state."""
        self.step.restart()
        self._made = 0

    def advance(self, tokens: int) -> None:
        """Generate tokens without reading them, and without synchronising.

        Raises:
            ConfigError: the buffers lack the space.
        """
        room = self.cache.room
        if self._made + tokens > room:
            raise ConfigError(
                "tokens",
                tokens,
                f"the buffers have room for {room} and hold {self._made}",
                "reserve more room, or restart the loop",
            )
        self._make(tokens)
        self._made += tokens

    # Rows that come and go

    def answer(self, waiting: Iterable[Waiting]) -> list[Answers]:
        """Read prompts as slots become free, and answer them all.

        Args:
            waiting: prompts with at most as many rows as slots.

        Returns:
            The answers, in the order of `waiting`.

        Raises:
            ConfigError: prompts with more rows than slots.
        """
        queue, results = iter(waiting), list[Answers]()
        following = next(queue, None)
        while following is not None or any(self._rows):
            self._leave(results)
            while following is not None and following.rows <= self._rows.count(None):
                self._enter(following, results)
                following = next(queue, None)
            self._leave(results)
            if following is not None and following.rows > len(self._rows):
                raise ConfigError(
                    "rows",
                    following.rows,
                    f"the loop has {len(self._rows)} slots",
                    "read fewer prompts together, or make more slots",
                )
            if any(self._rows):
                self._prepare()
                self._make(1 if self._replay is self.step else _LOOK_EVERY)
        return results

    def _enter(self, group: Waiting, results: list[Answers]) -> None:
        free = [slot for slot, row in enumerate(self._rows) if row is None][: group.rows]
        self._put(group.read(), free, list(range(group.rows)))
        for row, slot in enumerate(free):
            self._rows[slot] = len(results), row
        empty: list[list[Any]] = [[[] for _ in range(group.rows)] for _ in range(2)]
        results.append(Answers(*empty))

    @torch.inference_mode()
    def _leave(self, results: Mapping[int, Answers] | Sequence[Answers]) -> None:
        """Return the rows that have ended; on a CPU, compact the others."""
        if not any(self._rows):
            return
        step = self.step
        ended = step.finished[:, 0].tolist()
        over = [slot for slot, row in enumerate(self._rows) if row is not None and ended[slot]]
        if over:
            counts = step.made[over].tolist()
            tokens = step.written[over].tolist()
            logps = None if step.logps is None else step.logps[over].tolist()
            for at, slot in enumerate(over):
                number, row = self._rows[slot] or (0, 0)
                results[number].tokens[row] = tokens[at][: counts[at]]
                if logps is not None:
                    results[number].logps[row] = logps[at][: counts[at]]
                self._rows[slot] = None
        if self.recorded:
            return
        last = len(self._rows) - 1
        for hole in over:
            while last > hole and self._rows[last] is None:
                last -= 1
            if last > hole:
                step.move(hole, last)
                self._rows[hole], self._rows[last] = self._rows[last], None
                step.finished[last] = True

    # Both

    @torch.inference_mode()
    def _put(self, prompts: Prompts, slots: Sequence[int], rows: Sequence[int]) -> None:
        first = not self.cache.keys
        self.cache.put(slots, prompts.cache, prompts.valid, rows, keep=prompts.keep)
        if first:
            choice = prompts.choice.empty(self.cache.slots)
            self.step = Step(self.model, self.cache, choice, self.rules)
        self.step.choice.put(slots, prompts.choice, rows)
        limits = [prompts.limits[row] for row in rows]
        self.step.put(slots, prompts.token, prompts.logp, prompts.position, limits, rows)

    @torch.inference_mode()
    def _prepare(self) -> None:
        """Record the step again if its tensors have moved, or exclude empty slots."""
        if not self.recorded:
            if any(self._rows):
                active = 1 + max(slot for slot, row in enumerate(self._rows) if row is not None)
                self.step.narrow(active, trim=True)
            self._replay = self.step
        elif self._steps < _FIRST_STEPS:
            self._replay = self.step
        elif self._moves != self.cache.moves:
            self._moves = self.cache.moves
            self._replay = self._record()

    @torch.inference_mode()
    def _make(self, tokens: int) -> None:
        assert self._replay is not None
        for _ in range(tokens):
            self.step.choice.draw(self.step.active)
            self._replay()
        self._steps += tokens

    def _record(self) -> Callable[[], None]:
        """Warm up on a side stream (kernels compile, libraries allocate), then record."""
        state = self.step.state()
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream(self.device)
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP):
                    self.step()
            torch.cuda.current_stream(self.device).wait_stream(side)
            self.step.restart(state)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.step()
            self.step.restart(state)
        replay: Callable[[], None] = graph.replay
        return replay

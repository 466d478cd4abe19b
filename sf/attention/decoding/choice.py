"""Choice of the next token from the logits: greedy, or sampled with a seed per row.

Shape suffixes: S rows of the loop, A rows in use (the first ones), B rows of a prefill, V
vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sf.errors import ConfigError

__all__ = ["Choice", "Forbidden", "Greedy", "Rules", "Sampled"]


@dataclass(frozen=True)
class Rules:
    """The rules of greedy choice, a part of `GenerationConfig`.

    Attributes:
        end: end-of-sequence tokens; after one, a row gets `pad`.
        pad: token after the end.
        forbidden: tokens that are never chosen.
        repetition_penalty: as in transformers, over prompt and reply; 1 is none.
    """

    end: tuple[int, ...] = ()
    pad: int = 0
    forbidden: tuple[int, ...] = ()
    repetition_penalty: float = 1.0


class Choice(ABC):
    """Chooses tokens for several rows, each with its own state."""

    scored = False
    """Whether a choice comes with its log-probability."""

    @abstractmethod
    def empty(self, slots: int) -> Self:
        """The same rules for S rows without a state."""

    @abstractmethod
    def put(self, slots: Sequence[int], other: Self, rows: Sequence[int]) -> None:
        """Copy the state of another choice's rows."""

    @abstractmethod
    def draw(self, active: int) -> None:
        """Draw the noise for the first A rows' next token; never part of a recording."""

    @abstractmethod
    def __call__(self, logits_AV: Tensor) -> tuple[Tensor, Tensor | None]:
        """Tokens int64 (A, 1) and their float32 log-probabilities (A, 1), for float32 logits."""

    @abstractmethod
    def written(self) -> Any:
        """A copy of the state that changes with chosen tokens, for `rewind`."""

    @abstractmethod
    def rewind(self, to: Any) -> None:
        """Discard the tokens that were chosen since the call of `written`."""


class Forbidden:
    """Tokens that are never chosen.

    A mask on the device: a recorded step could not assign to a list of indices, which are copied
    from the host.
    """

    def __init__(self, tokens: Sequence[int], vocabulary: int, device: torch.device) -> None:
        self.tokens = list(tokens)
        self._mask_V = torch.zeros(vocabulary, dtype=torch.bool, device=device)
        self._mask_V[self.tokens] = True

    def exclude(self, scores_AV: Tensor) -> Tensor:
        """Scores with -inf at the tokens."""
        return scores_AV.masked_fill(self._mask_V, float("-inf")) if self.tokens else scores_AV


class Greedy(Choice):
    """The most likely token, with transformers' processors in their order.

    Args:
        rules: which tokens may be chosen.
        vocabulary: V.
        device: of the logits.
        seen_BL: int64 tokens read so far, V for none; needed only for a repetition penalty.

    Raises:
        ConfigError: a repetition penalty without the tokens.
    """

    def __init__(
        self, rules: Rules, vocabulary: int, device: torch.device, seen_BL: Tensor | None = None
    ) -> None:
        self.rules, self.vocabulary, self.device = rules, vocabulary, device
        self._forbidden = Forbidden(rules.forbidden, vocabulary, device)
        self.seen: Tensor | None = None
        if rules.repetition_penalty != 1.0:
            if seen_BL is None:
                raise ConfigError("prompt", None, "a repetition penalty needs the prompt's tokens")
            shape = len(seen_BL), vocabulary + 1
            seen = torch.zeros(shape, dtype=torch.bool, device=device)
            self.seen = seen.scatter_(1, seen_BL, True)[:, :vocabulary].contiguous()

    def empty(self, slots: int) -> Greedy:
        none = torch.empty(slots, 0, dtype=torch.long, device=self.device)
        return Greedy(self.rules, self.vocabulary, self.device, none)

    def put(self, slots: Sequence[int], other: Greedy, rows: Sequence[int]) -> None:
        if self.seen is not None and other.seen is not None:
            self.seen[list(slots)] = other.seen[list(rows)]

    def draw(self, active: int) -> None:
        """Do nothing: greedy choice needs no noise."""

    def __call__(self, logits_AV: Tensor) -> tuple[Tensor, None]:
        active, penalty = len(logits_AV), self.rules.repetition_penalty
        if self.seen is not None:
            harder = torch.where(logits_AV < 0, logits_AV * penalty, logits_AV / penalty)
            logits_AV = torch.where(self.seen[:active], harder, logits_AV)
        chosen = self._forbidden.exclude(logits_AV).argmax(-1, keepdim=True)
        if self.seen is not None:
            self.seen[:active].scatter_(1, chosen, True)
        return chosen, None

    def written(self) -> Tensor | None:
        return None if self.seen is None else self.seen.clone()

    def rewind(self, to: Tensor | None) -> None:
        if self.seen is not None and to is not None:
            self.seen.copy_(to)


class Sampled(Choice):
    """A sample of the softmax at a temperature, with its log-probability.

    The argmax of log p + Gumbel noise is a sample of p. Each row's noise has its own seed, so it is
    independent of the rank, the batch and earlier draws: a different number of ranks and a resumed
    run sample the same answers.

    The log-probability is over the whole vocabulary at the temperature, as in the training forward
    pass; forbidden and truncated tokens are removed only from sampling, as in TRL.

    Args:
        temperature: > 0.
        forbidden: token ids that are never sampled.
        seeds: one per row.
        vocabulary: V.
        device: of the logits.
        truncate: transformers logits warpers, applied in order to the log-probabilities without
            the forbidden tokens; tokens that they set to -inf are not sampled.
    """

    scored = True

    def __init__(
        self,
        temperature: float,
        forbidden: Sequence[int],
        seeds: Sequence[int],
        vocabulary: int,
        device: torch.device,
        truncate: Sequence[Callable[[Any, Tensor], Tensor]] = (),
    ) -> None:
        self.temperature, self.truncate = temperature, truncate
        self._forbidden = Forbidden(forbidden, vocabulary, device)
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.noise = torch.ones(len(seeds), vocabulary, device=device)

    def empty(self, slots: int) -> Sampled:
        shape = self.noise.shape[1], self.noise.device
        zeros = [0] * slots
        return Sampled(self.temperature, self._forbidden.tokens, zeros, *shape, self.truncate)

    def put(self, slots: Sequence[int], other: Sampled, rows: Sequence[int]) -> None:
        for slot, row in zip(slots, rows, strict=True):
            self.generators[slot] = other.generators[row]

    def written(self) -> None:
        """Randomness goes on."""

    def rewind(self, to: None) -> None:
        """Randomness goes on."""

    def draw(self, active: int) -> None:
        for row, generator in zip(self.noise[:active], self.generators, strict=False):
            row.exponential_(generator=generator)

    def __call__(self, logits_AV: Tensor) -> tuple[Tensor, Tensor]:
        every = torch.log_softmax(logits_AV.float() / self.temperature, dim=-1)
        scores = self._forbidden.exclude(every)
        for truncate in self.truncate:
            scores = truncate(None, scores)
        noisy = every - self.noise[: len(every)].log()
        noisy = noisy.masked_fill(scores.isneginf(), float("-inf"))
        sampled = noisy.argmax(-1, keepdim=True)
        return sampled, every.gather(1, sampled)

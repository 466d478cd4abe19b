"""How tokens of a rollout are drawn: one noise seed per rollout, truncation as in transformers.

Shapes: R rollouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

__all__ = ["SeededSampling", "Truncation", "sampling_seeds", "truncations", "vision_token_ids"]

VISION_TOKENS = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
)


def vision_token_ids(tokenizer: Any) -> list[int]:
    """Ids that must not be sampled: as part of a prompt they would announce pixels.

    (TRL suppresses the image token alone.)
    """
    known = tokenizer.get_vocab()
    return [known[token] for token in VISION_TOKENS if token in known]


def sampling_seeds(seed: int, step: int, places: Sequence[int]) -> list[int]:
    """A seed per rollout, from its place in the global batch of its step."""
    return [
        int(np.random.SeedSequence([seed, step, place]).generate_state(1)[0]) for place in places
    ]


class Truncation(Protocol):
    """Sets the scores of tokens that must not be sampled to -inf (a transformers logits warper)."""

    def __call__(self, input_ids: Any, scores: Any) -> Any: ...


def truncations(top_k: int, top_p: float, min_p: float) -> list[Truncation]:
    """transformers' warpers in transformers' order.

    Args:
        top_k: number of most likely tokens that may be sampled; 0: all.
        top_p: smallest probability mass of the most likely tokens that may be sampled, in (0, 1].
        min_p: least probability relative to the most likely token, in [0, 1]; 0: none.
    """
    chosen: list[Truncation] = []
    if top_k:
        chosen.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        chosen.append(TopPLogitsWarper(top_p))
    if min_p:
        chosen.append(MinPLogitsWarper(min_p))
    return chosen


class SeededSampling:
    """Samples a token per rollout, with its log-probability.

    The largest of log p + Gumbel noise is a sample of p. Each rollout has noise of its own seed, so
    it does not matter which rank or which batch it is drawn in, nor what was drawn before: another
    number of ranks and a resumed run sample the same answers.

    The log-probability is that of the whole vocabulary at the temperature, which is what the
    training forward computes; forbidden and truncated tokens are removed from sampling only, as in
    TRL.

    Args:
        temperature: sampling temperature, > 0.
        forbidden: token ids.
        seeds: one per rollout.
        device: of the logits.
        truncate: applied in turn to the log-probabilities without the forbidden tokens.
    """

    def __init__(
        self,
        temperature: float,
        forbidden: Sequence[int],
        seeds: Sequence[int],
        device: Any,
        truncate: Sequence[Truncation] = (),
    ) -> None:
        self.temperature, self.forbidden = temperature, list(forbidden)
        self.truncate = truncate
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, vocabulary) logits -> (R,) tokens, (R,) float32 log-probabilities."""
        every = torch.log_softmax(logits.float() / self.temperature, dim=-1)
        waiting = torch.empty_like(every)
        for row, generator in zip(waiting, self.generators, strict=True):
            row.exponential_(generator=generator)
        noisy = every - waiting.log()
        noisy[:, self.forbidden] = float("-inf")
        if self.truncate:
            scores = every.clone()
            scores[:, self.forbidden] = float("-inf")
            for truncate in self.truncate:
                scores = truncate(None, scores)
            noisy = noisy.masked_fill(scores.isneginf(), float("-inf"))
        sampled = noisy.argmax(-1)
        return sampled, every.gather(1, sampled[:, None]).squeeze(1)

"""The sampling rules and seeds of rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

__all__ = ["Truncation", "sampling_seeds", "truncations", "vision_token_ids"]

VISION_TOKENS = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
)


def vision_token_ids(tokenizer: Any) -> list[int]:
    """Ids that must not be sampled: in a prompt they are placeholders for pixels.

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

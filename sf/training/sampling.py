"""The sampling rules and seeds of rollouts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from sf.attention.decoder_hooks import unwrapped

__all__ = ["Truncation", "forbidden_ids", "sampling_seeds", "truncations"]

VISION_TOKENS = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
)


def forbidden_ids(tokenizer: Any, model: Any) -> list[int]:
    """Ids that must not be sampled: in a prompt they are placeholders for pixels.

    (TRL suppresses the image token alone.) Nor may ids that a checkpoint never generates
    (`suppress_tokens`, such as a converted LLaVA-Video's rows beyond its vocabulary).
    """
    known, whole = tokenizer.get_vocab(), unwrapped(model)
    ids = [known[token] for token in VISION_TOKENS if token in known]
    ids += [whole.config.image_token_id, whole.config.video_token_id]
    ids += whole.generation_config.suppress_tokens or []
    return sorted(set(ids))


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

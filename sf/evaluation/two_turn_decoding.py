"""Greedy decoding of a prompt that continues a cached first part.

Penalties in a checkpoint's generation settings are not applied.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sf.attention import sparsify
from sf.attention.decoding import Prefilled, Rules, decode
from sf.attention.decoding.generate import position_after
from sf.errors import UnsupportedModelError

if TYPE_CHECKING:
    from sf.selection import Policy

__all__ = ["More", "greedy", "more_of", "positions_of"]


@dataclass(frozen=True)
class More:
    """The continuation of a prompt: `ids` and `valid`, long [B, M], padded on the left."""

    ids: Tensor
    valid: Tensor


def more_of(
    processor: Any, talks: Sequence[list[dict[str, Any]]], replies: Sequence[str], device: str
) -> More:
    """The continuation of a first turn's cache: its reply, and the second question.

    Args:
        processor: of the model.
        talks: conversations of three turns: user, assistant, user.
        replies: the assistant's texts, appended to the first prompt as in generation.
        device: of the tensors.

    Raises:
        UnsupportedModelError: the chat template rewrites an earlier turn.
    """
    texts = []
    for talk, reply in zip(talks, replies, strict=True):
        first = processor.apply_chat_template(talk[:1], tokenize=False)
        whole = processor.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        _, encoded, rest = whole.removeprefix(first).partition(reply)
        if not whole.startswith(first) or not encoded:
            raise UnsupportedModelError(
                "chat template",
                type(processor).__name__,
                "it changes the first turns when a further one follows, so no cache can be kept",
                "leave out the two-turn check: calibrate.two_turn.pairs 0",
            )
        texts.append(reply + rest)
    encoded = processor.tokenizer(
        texts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
    )
    return More(encoded["input_ids"].to(device), encoded["attention_mask"].to(device))


def positions_of(model: Any, inputs: Any, ids_BL: Tensor, valid_BL: Tensor) -> Tensor:
    """RoPE positions of prompt and continuation: [3, B, L] for the Qwen families, else [B, L]."""
    inner = model.model
    if not hasattr(inner, "get_rope_index"):
        return (valid_BL.cumsum(-1) - 1).clamp(min=0)
    types = inputs["mm_token_type_ids"]
    text = types.new_zeros(len(types), ids_BL.shape[1] - types.shape[1])
    grids = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
    positions: Tensor = inner.get_rope_index(
        ids_BL,
        mm_token_type_ids=torch.cat([types, text], dim=1),
        attention_mask=valid_BL,
        **{name: inputs[name] for name in grids if name in inputs},
    )[0]
    return positions


@torch.inference_mode()
def greedy(
    model: Any, inputs: Any, more: More | None, policy: Policy | None, limit: int
) -> tuple[list[list[int]], Tensor]:
    """Greedy replies to a prompt and its continuation.

    Args:
        model: in evaluation mode.
        inputs: the prompt, from `sf.data.vision.encode`; only its tokens are selected from.
        more: tokens that continue on the prompt's cache; None for none.
        policy: selection of the prefill; None is dense.
        limit: maximum number of tokens.

    Returns:
        The tokens of each reply, with its end token, and token ratios at the prompt, float
        (layers, B) on the CPU.
    """
    width = inputs["input_ids"].shape[1]
    ids, valid = inputs["input_ids"], inputs["attention_mask"]
    if more is not None:
        ids, valid = torch.cat([ids, more.ids], dim=1), torch.cat([valid, more.valid], dim=1)
    positions = positions_of(model, inputs, ids, valid)
    with nullcontext() if policy is None else sparsify(model, policy) as trace:
        output = model(
            **inputs, position_ids=positions[..., :width], use_cache=True, logits_to_keep=1
        )
        if more is not None:
            output = model(
                input_ids=more.ids,
                attention_mask=valid,
                position_ids=positions[..., width:],
                past_key_values=output.past_key_values,
                use_cache=True,
                logits_to_keep=1,
            )
    ends = model.generation_config.eos_token_id
    start = Prefilled(
        model=model,
        prompt=ids,
        valid=valid.bool(),
        token=output.logits[:, -1].argmax(-1),
        position=position_after(positions[..., -1:], len(ids)),
        cache=output.past_key_values,
        rules=Rules(end=tuple(ends) if isinstance(ends, list) else (ends,)),
        trace=trace,
    )
    replies = decode(start, max_new_tokens=limit).tokens
    layers = model.config.get_text_config().num_hidden_layers
    dense = torch.ones(layers, len(ids))
    return replies, dense if trace is None else trace.layer_ratios.float().cpu()
